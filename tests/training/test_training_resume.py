"""Interrupted trainings: they go on where they stood and end with the same bytes as those that were not."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coalmine.checkpoint import Checkpoint
from coalmine.models.settings import MLP, ResNet, SmallNet
from coalmine.training import clock, loop, private
from coalmine.training.loop import ModelGenerators, Trained, train
from coalmine.training.private import PrivateRecipe, train_privately
from coalmine.training.recipe import Augmentation, Normalisation, Recipe, Siamese
from coalmine.training.sets import TrainingSet
from coalmine.training.whitening import fit

CPU = torch.device("cpu")
GREY = Normalisation(mean=(0.4,), std=(0.3,))
NET = SmallNet(width=4, hidden=8)
PLAIN = Augmentation(flip=False, shift=0)
DSA = Augmentation(flip=True, shift=1, siamese=Siamese())
CLASSES = 4


class KilledError(Exception):
    """Stands for a kill."""


class Every(Checkpoint):
    """A checkpoint that is due after every so many steps, whatever the time."""

    def __init__(self, path: Path, header: dict[str, Any], period: int) -> None:
        super().__init__(path, header)
        self._period, self._asked = period, 0

    def due(self) -> bool:
        self._asked += 1
        return self._asked % self._period == 0


def digits(n: int, seed: int = 0) -> TrainingSet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    images = rng.integers(0, 128, (n, 8, 8, 1)) + 30 * labels[:, None, None, None]
    return TrainingSet(images.astype(np.uint8), labels)


def soft(data: TrainingSet) -> TrainingSet:
    return replace(data, labels=(0.1 + 0.6 * np.eye(CLASSES)[data.labels]).astype(np.float32))


def recipe(**fields: Any) -> Recipe:
    defaults = {"epochs": 4, "batch_size": 16, "schedule": "cosine", "augmentation": Augmentation(flip=True, shift=2)}
    return Recipe(**{**defaults, **fields})


@dataclass
class Task:
    """Models to be trained, with checkpoints in a folder, and the updates that were made."""

    folder: Path
    sets: list[TrainingSet]
    how: Any = field(default_factory=recipe)
    model: Any = NET
    mode: Any = "sequential"
    first: int = 0
    period: int = 1
    header: str = "made by a test"
    updates: int = 0

    def path(self, position: int) -> Path:
        return self.folder / f"{self.first + position:03d}.npz"

    def run(self, after: int | None = None, *, checkpoints: bool = True, **options: Any) -> list[Trained]:
        """Train, and be killed instead of making one more than ``after`` updates."""
        generators = [ModelGenerators.named(11, "model", self.first + one) for one in range(len(self.sets))]
        options |= {"device": CPU}
        if checkpoints:
            options["checkpoint"] = self.open
        way = train_privately if isinstance(self.how, PrivateRecipe) else partial(train, mode=self.mode)
        with self.counted(after):
            return list(way(self.model, self.sets, self.how, GREY, generators, CLASSES, **options))

    def open(self, position: int) -> Checkpoint:
        return Every(self.path(position), {"made": self.header, "number": self.first + position}, self.period)

    @contextmanager
    def counted(self, after: int | None) -> Iterator[None]:
        place, name = (
            (private.DPStep, "__call__") if isinstance(self.how, PrivateRecipe) else (loop._Training, "_update")
        )
        update = getattr(place, name)
        self.updates = 0

        def make(*arguments: Any) -> Any:
            if self.updates == after:
                raise KilledError
            self.updates += 1
            return update(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, name, make)
            yield

    def kill(self, after: int, **options: Any) -> None:
        with pytest.raises(KilledError):
            self.run(after, **options)


def same(one: list[Trained], other: list[Trained]) -> bool:
    return [(a.position, a.steps) for a in one] == [(b.position, b.steps) for b in other] and all(
        list(a.state) == list(b.state)
        and all(a.state[name].numpy().tobytes() == b.state[name].numpy().tobytes() for name in a.state)
        for a, b in zip(one, other, strict=True)
    )


def private_recipe(**changes: Any) -> PrivateRecipe:
    defaults = {
        "steps": 12,
        "sampling_rate": 0.25,
        "expected_batch_size": 10,
        "noise_multiplier": 1.0,
        "clip": 1.0,
        "views": 2,
        "learning_rate": 0.5,
        "momentum": 0.0,
        "average": 0.9999,
        "micro_batch": 4,
        "augmentation": Augmentation(flip=True, shift=1),
        "precision": "float32",
    }
    return PrivateRecipe(**defaults | changes)


def white(data: TrainingSet) -> TrainingSet:
    return replace(data, whitening=fit(data.images), learning_rate=0.03)


GROUP = SmallNet(width=4, hidden=8, norm="group")
TASKS: dict[str, dict[str, Any]] = {
    "plain": {"sets": [digits(50)]},
    "many epochs drawn at once": {"sets": [digits(7)], "how": recipe(epochs=9, batch_size=4)},
    "nesterov, milestones": {"sets": [digits(50)], "how": recipe(nesterov=True, schedule="steps", milestones=(1, 3))},
    "siamese": {"sets": [digits(50)], "how": recipe(augmentation=DSA)},
    "soft labels": {"sets": [soft(digits(50))]},
    "a rate and a whitening of its own": {"sets": [white(digits(50))], "how": recipe(augmentation=PLAIN)},
    "residual network with batch norm": {"sets": [digits(40)], "model": ResNet(width=4, blocks=(1, 1))},
    "no batch norm": {"sets": [digits(40)], "model": MLP(hidden=(8,))},
    "bfloat16": {"sets": [digits(50)], "how": recipe(precision="bfloat16")},
    "float64": {"sets": [digits(50)], "how": recipe(precision="float64", momentum=0.0)},
    "several one after the other": {"sets": [digits(40), digits(33, 1)]},
    "stacked": {"sets": [digits(40, 1), digits(40, 2)], "mode": "stacked"},
    "stacked, different lengths": {"sets": [digits(50), digits(61, 1), digits(40, 2)], "mode": "stacked"},
    "stacked, siamese": {"sets": [digits(50), digits(35, 1)], "mode": "stacked", "how": recipe(augmentation=DSA)},
    "two stacks": {"sets": [digits(30), soft(digits(30)), digits(45, 2), soft(digits(40))], "mode": "stacked"},
    "private": {"sets": [digits(40)], "how": private_recipe(), "model": GROUP},
    "private, momentum, last iterate": {
        "sets": [digits(40)],
        "how": private_recipe(momentum=0.9, average=None),
        "model": GROUP,
    },
    "several private ones": {"sets": [digits(40), digits(30, 1)], "how": private_recipe(), "model": GROUP},
}


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("name", TASKS)
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path, name: str, period: int
) -> None:
    """And each kill costs no more than the updates since the last save."""
    rng = random.Random(f"{name} {period}")
    task = Task(tmp_path, **TASKS[name], period=period)
    whole = task.run(checkpoints=False)
    total, made = task.updates, 0
    for _ in range(3):
        task.kill(after=rng.randint(1, total // 3))
        made += task.updates
    assert same(task.run(), whole)
    assert total <= made + task.updates <= total + 3 * (period - 1)


@pytest.mark.parametrize("name", TASKS)
def test_saving_changes_nothing(tmp_path: Path, name: str) -> None:
    task = Task(tmp_path, **TASKS[name])
    assert same(task.run(), task.run(checkpoints=False))


@pytest.mark.parametrize("after", range(1, 16))
def test_a_stack_of_different_lengths_goes_on_from_each_of_its_steps(tmp_path: Path, after: int) -> None:
    """Before and after one of its models is finished, and when all but one are."""
    task = Task(tmp_path, **TASKS["stacked, different lengths"])
    whole = task.run(checkpoints=False)
    assert [trained.steps for trained in whole] == [13, 16, 10]
    task.kill(after)
    assert same(task.run(), whole)
    assert task.updates == 16 - after


@pytest.mark.parametrize("saves", range(24, 33))
def test_a_kill_between_the_files_of_a_stack_changes_nothing(tmp_path: Path, saves: int) -> None:
    """The models then stand at different steps."""
    task = Task(tmp_path, **TASKS["stacked, different lengths"])
    whole = task.run(checkpoints=False)
    save, left = Checkpoint.save, iter(range(saves))

    def fail(checkpoint: Checkpoint, arrays: Any) -> None:
        if next(left, None) is None:
            raise KilledError
        save(checkpoint, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", fail)
        with pytest.raises(KilledError):
            task.run()
    steps = [min(saves // 3 + (model < saves % 3), own.steps) for model, own in enumerate(whole)]
    assert [int(task.open(model).load()["made"]) for model in range(3)] == steps
    assert same(task.run(), whole)
    assert task.updates == 16 - steps[1]


def test_what_is_finished_is_not_trained_again(tmp_path: Path) -> None:
    for name in ("several one after the other", "stacked, different lengths", "several private ones"):
        task = Task(tmp_path / name, **TASKS[name])
        whole = task.run()
        assert same(task.run(), whole)
        assert task.updates == 0


def test_a_stack_goes_on_without_those_of_its_models_that_are_finished_and_gone(tmp_path: Path) -> None:
    """The kill came when they had been written: a job is then given the others alone, which are finished, too."""
    task = Task(tmp_path, **TASKS["stacked, different lengths"])
    whole = task.run()
    task.sets, task.first = task.sets[1:], 1
    rest = task.run()
    assert task.updates == 0
    assert same(rest, [replace(trained, position=trained.position - 1) for trained in whole[1:]])


@pytest.mark.parametrize("modes", [("stacked", "sequential"), ("sequential", "stacked")])
def test_a_model_goes_on_from_its_own_state_whatever_it_is_stacked_with(tmp_path: Path, modes: tuple[str, str]) -> None:
    """Up to rounding."""
    task = Task(tmp_path, [digits(50), digits(40, 1)], recipe(precision="float64"), mode=modes[0])
    whole = task.run(checkpoints=False)
    task.kill(after=7)
    task.mode = modes[1]
    for one, other in zip(task.run(), whole, strict=True):
        for name, tensor in one.state.items():
            torch.testing.assert_close(tensor, other.state[name], rtol=1e-9, atol=1e-9)
    assert task.updates == {"sequential": 13 + 10 - 2 * 7, "stacked": 10}[modes[1]]


CHANGES: dict[str, dict[str, Any]] = {
    "code, spec or inputs": {"header": "made by another test"},
    "number of the model": {"first": 1},
    "labels": {"sets": [replace(digits(40), labels=(digits(40).labels + 1) % 4)]},
    "images": {"sets": [replace(digits(40), images=255 - digits(40).images)]},
    "membership": {"sets": [replace(digits(41), labels=digits(40).labels, index=np.arange(1, 41))]},
    "rate of the set": {"sets": [replace(digits(40), learning_rate=0.02)]},
    "recipe": {"how": recipe(momentum=0.8)},
    "architecture": {"model": SmallNet(width=4, hidden=8, norm="group")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_state_of_another_training_is_not_taken_up(tmp_path: Path, change: str) -> None:
    Task(tmp_path, [digits(40)]).kill(after=6)
    other = Task(tmp_path, **{"sets": [digits(40)], **CHANGES[change]})
    if change == "number of the model":
        (tmp_path / "000.npz").rename(tmp_path / "001.npz")
    whole = other.run(checkpoints=False)
    assert same(other.run(), whole)
    assert other.updates == whole[0].steps
    if "sets" in CHANGES[change] or "how" in CHANGES[change]:
        assert not same(whole, Task(tmp_path, [digits(40)]).run(checkpoints=False))


PRIVATE_CHANGES = {
    "labels": {"sets": [replace(digits(40), labels=(digits(40).labels + 1) % 4)]},
    "noise": {"how": private_recipe(noise_multiplier=1.1)},
    "header": {"header": "made by another test"},
}


@pytest.mark.parametrize("change", PRIVATE_CHANGES)
def test_the_state_of_another_private_training_is_not_taken_up(tmp_path: Path, change: str) -> None:
    given = {"sets": [digits(40)], "how": private_recipe(), "model": GROUP}
    Task(tmp_path, **given).kill(after=6)
    other = Task(tmp_path, **{**given, **PRIVATE_CHANGES[change]})
    assert same(other.run(), other.run(checkpoints=False))
    Task(tmp_path / "again", **given).kill(after=6)
    other = Task(tmp_path / "again", **{**given, **PRIVATE_CHANGES[change]})
    other.run()
    assert other.updates == 12


def test_noise_of_a_device_with_other_generators_cannot_go_on(tmp_path: Path) -> None:
    """The state of a CUDA generator has 16 bytes."""
    task = Task(tmp_path, **TASKS["private"])
    whole = task.run(checkpoints=False)
    task.kill(after=6)
    checkpoint = task.open(0)
    saved = checkpoint.load()
    assert saved is not None
    checkpoint.save({**saved, "stream/noise": saved["stream/noise"][:16]})
    assert same(task.run(), whole)
    assert task.updates == 12


@pytest.mark.parametrize("name", ["plain", "private"])
def test_a_checkpoint_that_is_cut_or_damaged_costs_its_state_and_nothing_else(tmp_path: Path, name: str) -> None:
    task = Task(tmp_path, **TASKS[name])
    whole = task.run(checkpoints=False)
    task.kill(after=8)
    content = task.path(0).read_bytes()
    rng = random.Random(name)
    damaged = [content[:keep] for keep in (0, 1, 100, len(content) // 2, len(content) - 1)]
    for place in [*range(0, 40, 7), *rng.sample(range(len(content)), 8), *range(len(content) - 60, len(content), 9)]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    damaged += [b"\0" * len(content), b"no archive at all"]
    begun_anew = 0
    for one in damaged:
        task.path(0).write_bytes(one)
        assert same(task.run(), whole)
        begun_anew += task.updates == whole[0].steps
    assert begun_anew >= 12


class Counts:
    """An observer whose counts depend on every batch and its order."""

    def __init__(self, models: int) -> None:
        self.seen = torch.zeros(models, 64, dtype=torch.float64)

    def __call__(self, models: list[int], samples: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        row = torch.tensor(models)[:, None]
        self.seen[row, samples] = 0.5 * self.seen[row, samples] + logits.double().logsumexp(-1)

    def state(self, model: int) -> dict[str, torch.Tensor]:
        return {"seen": self.seen[model]}

    def restore(self, model: int, state: dict[str, torch.Tensor]) -> None:
        self.seen[model] = state["seen"]


@pytest.mark.parametrize("mode", ["sequential", "stacked"])
@pytest.mark.parametrize("after", [3, 11, 12])
def test_what_an_observer_has_seen_is_part_of_the_state(tmp_path: Path, mode: str, after: int) -> None:
    task = Task(tmp_path, [digits(50), digits(40, 1)], mode=mode)
    whole, resumed, finished = Counts(2), Counts(2), Counts(2)
    task.run(checkpoints=False, observe=whole)
    task.kill(after, observe=Counts(2))
    task.run(observe=resumed)
    assert torch.equal(whole.seen, resumed.seen)
    task.run(observe=finished)
    assert task.updates == 0
    assert torch.equal(whole.seen, finished.seen)
    task.run()  # nobody observes: another training
    assert task.updates > 0
    task.run(observe=finished)
    assert task.updates > 0


@pytest.mark.parametrize("name", ["plain", "stacked, different lengths", "private"])
def test_the_seconds_are_those_of_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    task, now = Task(tmp_path, **TASKS[name]), [0.0]
    update = task.counted

    @contextmanager
    def slow(after: int | None) -> Iterator[None]:
        with update(after):
            place, method = (
                (private.DPStep, "__call__") if isinstance(task.how, PrivateRecipe) else (loop._Training, "_update")
            )
            quick = getattr(place, method)

            def make(*arguments: Any) -> Any:
                result = quick(*arguments)
                now[0] += 10.0
                return result

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(place, method, make)
                yield

    task.counted = slow  # type: ignore[method-assign]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    task.kill(after=4)
    now[0] += 1000  # until somebody starts the job again
    task.kill(after=3)
    now[0] += 1000
    trained = task.run()
    total = max(one.steps for one in trained) * 10
    assert [one.seconds for one in trained] == pytest.approx([total / len(trained)] * len(trained))


def test_progress_says_where_a_training_was_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SECONDS_BETWEEN_REPORTS", 0.0)
    for name, line, following in (
        ("plain", "model 0: taken up after step 5 of 13", "model 0, epoch 1.9: loss "),
        ("stacked, different lengths", "3 models: taken up after step 5 of 16", "3 models, epoch 1.9: loss "),
        ("private", "model 0: taken up after step 5 of 12", "model 0, step 6 of 12, "),
    ):
        task, lines = Task(tmp_path / name, **TASKS[name]), []
        task.kill(after=5)
        task.run(progress=lines.append)
        assert lines[0] == line
        assert lines[1].startswith(following)
        assert lines[-1].endswith(" 0 s left")
