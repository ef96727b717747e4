"""The loop of all data-free methods: synthesise, remember, distil."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from coalmine.datafree.memory import Memory
from coalmine.datafree.objective import Objective
from coalmine.datafree.settings import DataFree
from coalmine.datafree.sources import make_source
from coalmine.datafree.student import Student
from coalmine.errors import CoalmineError
from coalmine.models.build import build, restore
from coalmine.models.layers import Classifier
from coalmine.seeds import torch_generator
from coalmine.shadows import Distilled, Setup, Synthetic, Teacher
from coalmine.training.augment import draw_and_augment
from coalmine.training.clock import Clock
from coalmine.training.device import arithmetic, parameter_dtype
from coalmine.training.ensemble import exported
from coalmine.training.state import prefixed, under

STREAMS = ("weights", "synthesis", "distillation", "choice")
"""Random streams: of the generator's weights, of making images, of teaching, of the images that are kept."""

IMAGES_AT_ONCE = 1024


class Loop:
    """One teacher, one student, and the images between them.

    Args:
        teacher: the trained model of one shadow model.
        settings: of the method.
        setup: the student's architecture and recipe, seed, device.
    """

    def __init__(self, teacher: Teacher, settings: DataFree, setup: Setup) -> None:
        self._settings, self._setup, self._recipe = settings, setup, setup.recipe
        self._classes, self._device = teacher.classes, setup.device
        self._name = f"model {teacher.number}"
        self._checkpoint = setup.checkpoint(teacher)
        self._streams = {
            name: torch_generator(setup.seed, setup.method, teacher.number, "data-free", name) for name in STREAMS
        }
        shape = (teacher.channels, teacher.image_size, teacher.image_size)
        fresh = build(setup.model, *shape[:2], teacher.classes, setup.generators(teacher, "student").initialisation)
        given = restore(teacher.model, *shape[:2], teacher.classes, teacher.state).requires_grad_(False)
        self._teacher, network = self._placed(given), self._placed(fresh)
        weights = self._streams["weights"]
        self._student = Student(network, self._recipe, settings)
        self._memory = Memory(settings.memory, shape, self._device)
        self._source = make_source(settings, shape, setup.normalisation, self._device, weights)
        augmentation = self._recipe.augmentation
        self._objective = Objective(settings, self._teacher, network, setup.normalisation, augmentation, weights)
        self._seconds = {"synthesis": 0.0, "training": 0.0}
        self._taught = ", nobody taught yet"

    def _placed(self, network: Classifier) -> Classifier:
        """Return a network on the device, channels last in memory: convolutions are faster so."""
        dtype = parameter_dtype(self._recipe.precision)
        return network.to(self._device, dtype).to(memory_format=torch.channels_last)

    def run(self) -> Distilled:
        """Make all epochs, from the last checkpoint on if there is one, and return the last student.

        Raises:
            CoalmineError: if a loss or a weight is no longer finite.
        """
        settings = self._settings
        rounds = (settings.warmup + self._recipe.epochs) * settings.rounds
        first = self._take_up()
        clock = Clock(rounds - first, 1, "rounds")
        with arithmetic(self._recipe.precision):
            for done in range(first, rounds):
                epoch, round_of_epoch = divmod(done, settings.rounds)
                if settings.reset and done == (settings.warmup + settings.reset) * settings.rounds:
                    self._source.reset()
                self._synthesise(has_student=epoch >= settings.warmup)
                if epoch >= settings.warmup:
                    self._distil(epoch - settings.warmup, round_of_epoch)
                if clock.is_time_to_report():
                    what = f"epoch {(done + 1) / settings.rounds:.1f}, {len(self._memory):,} images{self._taught}"
                    self._setup.progress(f"{self._name}, {clock.report(done + 1 - first, what)}")
                if self._checkpoint.due():
                    self._checkpoint.save(self._state(done + 1))
            student, kept = self._exported(), self._kept()
        return Distilled(student, kept, self._seconds["synthesis"], self._seconds["training"])

    def _synthesise(self, *, has_student: bool) -> None:
        """Make a batch of images and remember the best of its steps."""
        settings, generator = self._settings, self._streams["synthesis"]
        with self._timed("synthesis"):
            self._student.network.eval().requires_grad_(False)
            labels = torch.randint(self._classes, (settings.batch_size,), generator=generator).to(self._device)
            attempt = self._source.begin(generator)
            best, least = torch.empty(0), torch.tensor(math.inf, device=self._device)
            for _ in range(settings.generator_steps):
                images = attempt.images()
                loss = self._objective(images, labels, generator, adversarial=has_student)
                attempt.step(loss, self._objective.optimisers)
                best = images.detach() if not len(best) else torch.where(loss < least, images.detach(), best)
                least = torch.minimum(least, loss.detach())
            self._source.finish()
            self._objective.finish(best)
            self._check(least, "the loss of the images")
            if settings.learns_from == "memory":
                self._memory.add(best)

    def _distil(self, epoch: int, round_of_epoch: int) -> None:
        """Teach the student for one round."""
        with self._timed("training"):
            self._student.network.train().requires_grad_(True)
            steps = self._steps()
            whole = steps * self._settings.rounds
            for step, x in enumerate(self._batches(steps), start=epoch * whole + round_of_epoch * steps):
                # An epoch is as long as ``whole`` batches, whatever their size.
                rate = self._recipe.learning_rate_at(step, whole * self._recipe.batch_size)
                loss = self._student.learn(self._teacher, x, rate)
            self._taught = f": loss {self._check(loss, 'the loss of the student'):.4g}"

    def _steps(self) -> int:
        """Return the student's steps in this round."""
        if self._settings.distillation_steps is not None:
            return self._settings.distillation_steps
        assert self._settings.passes is not None
        return math.ceil(self._settings.passes * len(self._memory) / self._recipe.batch(len(self._memory)))

    def _batches(self, steps: int) -> Iterator[torch.Tensor]:
        """Yield what the student learns from, as networks see it: fresh images, or augmented ones of the memory."""
        generator = self._streams["distillation"]
        if self._settings.learns_from == "fresh":
            for _ in range(steps):
                images = self._source.sample(generator)
                self._memory.add(images)
                yield self._seen(images)
            return
        for rows in self._memory.batches(steps, self._recipe.batch_size, generator):
            yield self._seen(draw_and_augment(self._memory[rows], self._recipe.augmentation, generator))

    def _seen(self, images: torch.Tensor) -> torch.Tensor:
        """Return images as networks see them, channels last in memory as those are."""
        return self._objective.seen(images).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _kept(self) -> Synthetic:
        """Return a random sample of the memory, in the order in which the images came, and the teacher's answers."""
        count = min(self._settings.images, len(self._memory))
        chosen = torch.randperm(len(self._memory), generator=self._streams["choice"])[:count].sort().values
        images = self._memory[chosen]
        parts = torch.split(images, IMAGES_AT_ONCE)
        answers = [self._teacher(self._seen(part)).float().softmax(dim=1) for part in parts]
        return Synthetic(
            images=images.movedim(1, -1).cpu().contiguous().numpy(),
            labels=torch.cat(answers).cpu().numpy(),
            source=np.full(count, -1),
        )

    def _exported(self) -> dict[str, torch.Tensor]:
        """Return the student's weights and statistics, refused if they are not finite."""
        state = self._student.network.state_dict()
        finite = torch.stack([torch.isfinite(tensor).all() for tensor in state.values()]).all()
        self._check(torch.where(finite, 0.0, math.nan), "some weight of the student")
        return {name: exported(tensor) for name, tensor in state.items()}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Add the time that a phase takes; a phase ends by looking at a loss, so that a device has caught up."""
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start

    def _check(self, loss: torch.Tensor, what: str) -> float:
        value = float(loss)
        if not math.isfinite(value):
            raise CoalmineError(
                f"{self._setup.method}, {self._name}: {what} is {value}; lower rate (now {self._settings.rate:g}) or "
                f"training.learning_rate (now {self._recipe.learning_rate:g})"
            )
        return value

    def _state(self, done: int) -> dict[str, np.ndarray]:
        """Return all that the rest of the computation depends on."""
        tensors = {
            **prefixed("student", self._student.state()),
            **prefixed("source", self._source.state()),
            **prefixed("objective", self._objective.state()),
            **prefixed("stream", {name: stream.get_state() for name, stream in self._streams.items()}),
            "memory": self._memory.all(),
        }
        numbers = {"rounds": np.array(done), **{name: np.array(value) for name, value in self._seconds.items()}}
        return numbers | {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}

    def _take_up(self) -> int:
        """Restore the last checkpoint; return the rounds already made, 0 if there is none."""
        saved = self._checkpoint.load()
        if saved is None:
            return 0
        self._seconds = {name: float(saved[name]) for name in self._seconds}
        tensors = {name: torch.from_numpy(array.copy()) for name, array in saved.items()}
        self._student.restore(under("student", tensors))
        self._source.restore(under("source", tensors))
        self._objective.restore(under("objective", tensors))
        for name, state in under("stream", tensors).items():
            self._streams[name].set_state(state)
        self._memory.restore(tensors["memory"])
        done = int(saved["rounds"])
        self._setup.progress(f"{self._name}: taken up after {done:,} rounds")
        return done
