"""What the methods share that match expert trajectories: their settings, and students that follow a piece of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from coalmine.costs.work import GRADIENT, SECOND_GRADIENT, Counter, Work
from coalmine.distillation import start
from coalmine.errors import CoalmineError
from coalmine.shadows import Setup, Shadow
from coalmine.training.recipe import Siamese

if TYPE_CHECKING:
    import torch

    from coalmine.distillation.matching import Inner, Matched
    from coalmine.distillation.optimise import Variable
    from coalmine.distillation.space import Space
    from coalmine.distillation.trajectories import Trajectories
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline


_IMAGES_AT_ONCE = 1024
"""Of those that an expert only looks at."""


class Imitation(start.Start):
    """Hyper-parameters of matching trajectories; the defaults are MTT's for CIFAR-10 at 10 images per class."""

    experts: str = Field(description="Entry of the section `experts` whose trajectories are matched.")
    iterations: PositiveInt = Field(5000, description="Pieces of trajectories, one an iteration (MTT: 5,000).")
    steps: PositiveInt = Field(30, description="N, steps of a student on the synthetic set (MTT: 30, or 50).")
    expert_epochs: PositiveInt = Field(2, description="M, epochs of the expert that these steps imitate (MTT: 2).")
    max_start: PositiveInt = Field(
        20, description="A piece starts after an epoch below this one (MTT: 2, 20 and 40 for 1, 10 and 50 per class)."
    )
    batch_syn: PositiveInt | None = Field(
        None, description="Synthetic images of each step; null: all (MTT for 1 and 10 images per class)."
    )
    learning_rate: PositiveFloat = Field(100.0, description="Of pixels (MTT: 100; 1,000 for 50 images per class).")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of pixels and of the step size (0.5).")
    step_size: PositiveFloat = Field(
        0.001, description="First size of a student's step; it is learned (MTT: 0.001, or 0.01 for 1 image per class)."
    )
    step_rate: float = Field(
        1e-5, ge=0, description="Learning rate of the step size (MTT: 1e-5, or 1e-7 for 1 image per class)."
    )
    siamese: Siamese | None = Field(Siamese(), description="Augmentation of each step of a student; null for none.")
    estimator: Literal["exact", "tesla"] = Field(
        "exact",
        description="exact: the gradient of the loss. tesla: TESLA's estimator of it, which holds a student's weights "
        "constant and is another one beyond one step.",
    )
    memory: Literal["unrolled", "checkpointed"] | None = Field(
        None,
        description="Of the exact gradient. unrolled (null): the graph of all steps. checkpointed: of one step at a "
        "time, for about a quarter more time; the same up to rounding.",
    )

    @model_validator(mode="after")
    def _has_memory_of_the_exact_gradient_only(self) -> Imitation:
        if self.estimator == "tesla" and self.memory is not None:
            raise ValueError(
                f"memory: {self.memory} is a way to compute the exact gradient, but the estimator is tesla, which "
                "always holds one step at a time; leave memory out, or set estimator: exact"
            )
        return self


def objection(settings: Imitation, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    experts = outline.experts[settings.experts]
    last = settings.max_start - 1 + settings.expert_epochs
    if last > experts.epochs:
        return "max_start", (
            f"is {settings.max_start}: a piece may start after epoch {settings.max_start - 1} and ends expert_epochs "
            f"({settings.expert_epochs}) later, but the experts {settings.experts} are trained for {experts.epochs} "
            "epochs; lower max_start or give the experts more epochs."
        )
    if experts.zca and outline.channels == 1:
        return "experts", (
            f"names {settings.experts}, which whiten their images (zca: true), but the run's images have a single "
            "channel; the papers whiten colour images only: set zca: false for these experts."
        )
    images = None if outline.classes is None else settings.images_per_class * outline.classes
    if images is not None and settings.batch_syn is not None and settings.batch_syn > images:
        return "batch_syn", f"is {settings.batch_syn}, but a synthetic set has only {images} images; lower it."
    return start.objection(settings, outline)


def work(settings: Imitation, network: ModelSettings, images: int, counter: Counter) -> Work:
    """Return what the students of one shadow model take.

    Unrolled, the graphs of all steps are held. Otherwise one is, and every step's gradient is computed twice; TESLA
    takes no gradient back through the weights, which saves a third of the second one.

    Args:
        settings: of the method.
        network: of experts and students.
        images: of a synthetic set.
        counter: of the run.
    """
    unrolled = settings.estimator == "exact" and settings.memory != "checkpointed"
    passes = SECOND_GRADIENT if unrolled else SECOND_GRADIENT + (GRADIENT if settings.estimator == "exact" else 0.0)
    graphs, steps = settings.steps if unrolled else 1, settings.iterations * settings.steps
    batch = min(settings.batch_syn or images, images)
    return counter.steps(network, steps, batch, passes=passes, graphs=graphs)


@dataclass(frozen=True)
class Piece:
    """A piece of a trajectory: an expert's weights after epoch ``start``, and those some epochs later."""

    expert: int
    start: int


class Students:
    """Networks that start where experts stood and are trained on synthetic sets, one a shadow model.

    Args:
        shadows: the shadow models.
        settings: of the method.
        setup: of the method; it knows the files of the experts.

    Attributes:
        trajectories: the experts of each shadow model.
        spaces: the space of each shadow model's images: its experts' own.

    Raises:
        CoalmineError: if the experts are others than the method names, or saw images normalised otherwise.
    """

    def __init__(self, shadows: Sequence[Shadow], settings: Imitation, setup: Setup) -> None:
        from coalmine.distillation.space import Space

        self._settings, self._device = settings, setup.device
        self.trajectories = [_opened(shadow, settings, setup) for shadow in shadows]
        self.spaces: list[Space] = [
            Space(setup.normalisation, setup.device, own.whitening) for own in self.trajectories
        ]
        self._networks = self.trajectories[0].networks(len(shadows), setup.device)

    def draw(self, first: int, end: int, generators: Sequence[torch.Generator]) -> list[Piece]:
        """Draw a piece for each shadow model: any of its experts, from an epoch ``first <= start < end``."""
        import torch

        return [
            Piece(
                expert=int(torch.randint(own.experts, (), generator=generator)),
                start=int(torch.randint(first, end, (), generator=generator)),
            )
            for own, generator in zip(self.trajectories, generators, strict=True)
        ]

    def match(
        self,
        pieces: Sequence[Piece],
        images: torch.Tensor,
        labels: torch.Tensor,
        rates: torch.Tensor,
        generators: Sequence[torch.Generator],
    ) -> Matched:
        """Have the students imitate a piece each, and return the loss with its gradients (``matching``).

        Args:
            pieces: one for each shadow model.
            images: ``(model, image, channel, height, width)``.
            labels: int64 ``(model, image)``; or float ``(model, image, class)``, whose softmax is the probabilities,
                and then gradients by them follow those by the images.
            rates: the students' step sizes ``(model,)``.
            generators: each shadow model's, for the order of the images and their augmentation.
        """
        import torch

        from coalmine.distillation import matching

        settings = self._settings
        begin, target = (self._weights(pieces, later) for later in (0, settings.expert_epochs))
        inner = self._inner(images, labels, generators)
        variables = [images, labels] if labels.is_floating_point() else [images]
        checkpointed = settings.memory == "checkpointed"
        exact = matching.adjoint if checkpointed else matching.unrolled
        match = matching.tesla if settings.estimator == "tesla" else exact
        with torch.enable_grad():
            return match(inner, settings.steps, begin, target, rates.detach(), variables)

    def final_logits(self, model: int, expert: int, images: torch.Tensor) -> torch.Tensor:
        """Return what an expert of a shadow model says in the end of ``(image, channel, height, width)``."""
        import torch

        own = self.trajectories[model]
        networks = own.networks(1, self._device)
        weights = [weight[None].to(self._device) for weight in own.snapshot(expert, own.epochs)]
        with torch.no_grad():
            return torch.cat(
                [networks.logits(weights, batch[None])[0] for batch in torch.split(images, _IMAGES_AT_ONCE)]
            )

    def _inner(self, images: torch.Tensor, labels: torch.Tensor, generators: Sequence[torch.Generator]) -> Inner:
        """Draw the batches of all steps and their augmentation; return the loss of each."""
        import torch

        from coalmine.distillation.matching import draw_batches
        from coalmine.distillation.networks import mean_cross_entropy
        from coalmine.training import siamese

        settings, (models, count) = self._settings, images.shape[:2]
        batches = draw_batches(generators, count, settings.batch_syn or count, settings.steps)
        batches = [batch.to(self._device) for batch in batches]
        rows = torch.arange(models, device=self._device)[:, None]
        augmentation = settings.siamese
        drawn = [
            [siamese.draw(augmentation, one, batch.shape[1]) for one in generators] if augmentation else []
            for batch in batches
        ]

        def inner(weights: Sequence[torch.Tensor], step: int) -> torch.Tensor:
            x, y = images[rows, batches[step]], labels[rows, batches[step]]
            if augmentation:
                x = siamese.apply_each(x, augmentation, drawn[step])
            if y.is_floating_point():
                y = y.softmax(-1)
            return mean_cross_entropy(self._networks.logits(weights, x), y)

        return inner

    def _weights(self, pieces: Sequence[Piece], later: int) -> list[torch.Tensor]:
        """Return the experts' weights so many epochs after their pieces start, stacked ``(model, *shape)``."""
        import torch

        snapshots = [
            own.snapshot(piece.expert, piece.start + later)
            for own, piece in zip(self.trajectories, pieces, strict=True)
        ]
        return [torch.stack(weights).to(self._device) for weights in zip(*snapshots, strict=True)]


def step_sizes(settings: Imitation, models: int, setup: Setup) -> Variable:
    """Return the learned step size of each shadow model's students, ``(model,)``."""
    import torch

    from coalmine.distillation.optimise import Variable

    return Variable(
        torch.full((models,), settings.step_size, device=setup.device), settings.step_rate, settings.momentum
    )


def check_step_sizes(rates: Variable, iteration: int, shadows: Sequence[Shadow], setup: Setup) -> None:
    """Refuse to go on with a step size that is not positive: no network can be trained with it.

    Raises:
        CoalmineError: if the step size of one of the shadow models is not.
    """
    if not bool((rates.value <= 0).any()):
        return
    model = int(rates.value.argmin())
    raise CoalmineError(
        f"{setup.method}, model {shadows[model].number}: the learned step size is {float(rates.result[model]):.3g} at "
        f"iteration {iteration + 1:,}, but must stay above 0; lower step_rate (now {rates.rate:g}) or raise step_size"
    )


def _opened(shadow: Shadow, settings: Imitation, setup: Setup) -> Trajectories:
    from coalmine.distillation.trajectories import Trajectories

    if setup.experts is None:
        raise CoalmineError(f"{setup.method} matches the experts {settings.experts}, but was given none (--experts)")
    opened = Trajectories(setup.experts(shadow))
    name = str(opened.header["spec"]["experts"])
    if name.removesuffix("-average") != settings.experts:
        raise CoalmineError(f"{opened.path} holds the experts {name}, but {setup.method} matches {settings.experts}")
    if opened.normalisation != setup.normalisation:
        raise CoalmineError(
            f"{opened.path}: these experts saw images normalised with {opened.normalisation}, but {setup.method} is to "
            f"use {setup.normalisation}; train the experts again"
        )
    return opened
