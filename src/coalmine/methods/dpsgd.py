"""DP-SGD with augmentation multiplicity: the defence with a guarantee, and its vacuous relatives.

De et al., "Unlocking High-Accuracy Differentially Private Image Classification through Scale" (2022), as the audit
protocol's predecessor uses it (Aerni, Zhang & Tramèr, CCS 2024): train the run's classifier on the private data with
``coalmine.training.dp_step``. In every step each sample takes part with probability ``batch_size / population``; the
gradients of its ``views`` augmented copies are averaged, then clipped to ``clip``; Gaussian noise is added to the sum;
the moving average of the weights is published.

``population`` is public: the number of private samples of a shadow model on average over the audit design. Neither it
nor anything else here depends on the data of one model, so that (epsilon, delta) holds for adding or removing any one
sample, canaries included. docs/dpsgd.md says what the guarantee covers.

Give either ``epsilon``, and the noise is chosen to meet it, or ``noise_multiplier``, and epsilon is what it is: with
little noise it is vacuous, and reported as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat

from coalmine import budget
from coalmine.budget import Budget
from coalmine.costs.work import Counter, Work
from coalmine.errors import CoalmineError
from coalmine.shadows import Setup, Shadow

if TYPE_CHECKING:
    from coalmine.accounting import Guarantee
    from coalmine.models.settings import ModelSettings
    from coalmine.outline import Outline
    from coalmine.training.loop import Trained
    from coalmine.training.recipe import Recipe

RECIPE = ("augmentation", "precision")
"""What this method takes from the run's training recipe; it has its own settings for the rest."""


class Settings(Budget):
    """Hyper-parameters; "the predecessor" are its high-utility settings for CIFAR-10."""

    learning_rate: PositiveFloat = Field(default=4.0, description="Constant; the predecessor: 4, De et al.: 2 to 4.")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="Both: 0.")
    average: float | None = Field(
        default=0.9999, gt=0, lt=1, description="Decay of the moving average of weights; both: 0.9999. Null: none."
    )


def objection(settings: Settings, model: ModelSettings, recipe: Recipe, outline: Outline) -> tuple[str, str] | None:
    """Return the field and the reason why these settings cannot work, or None."""
    if getattr(model, "norm", None) == "batch":
        return "model", (
            "has batch norm, in which the samples of a batch see each other, so that no gradient can be clipped by "
            f"itself; set another one for this entry, e.g. model: {{name: {model.name}, norm: group}}."
        )
    if recipe.precision == "bfloat16":
        return "training.precision", "is bfloat16, which per-sample gradients do not support; set float32 or tf32."
    if recipe.augmentation.siamese is not None:
        return "training.augmentation.siamese", "is set, but DP-SGD augments each sample by itself; set null here."
    if settings.views > 1 and not (recipe.augmentation.flip or recipe.augmentation.shift):
        return "views", (
            f"is {settings.views}, but without augmentation all views of a sample are equal; set views: 1 or, for this "
            "entry, training: {augmentation: {shift: 1}}."
        )
    return budget.objection(settings, outline.population)


def guarantee(settings: Settings, population: float) -> Guarantee:
    """Return the guarantee, see :func:`coalmine.budget.guarantee`."""
    return budget.guarantee(settings, population)


def train(shadows: Sequence[Shadow], settings: Settings, setup: Setup) -> Iterator[Trained]:
    """Yield one privately trained model per shadow model, in order."""
    from coalmine.training.private import PrivateRecipe, train_privately

    if setup.mechanism is None:
        raise CoalmineError(f"{setup.method}: DP-SGD needs its guarantee, privacy/{setup.method}.json (--privacy)")
    recipe = PrivateRecipe(
        steps=setup.mechanism.steps,
        sampling_rate=setup.mechanism.sampling_rate,
        noise_multiplier=setup.mechanism.noise_multiplier,
        expected_batch_size=settings.batch_size,
        clip=settings.clip,
        views=settings.views,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        average=settings.average,
        micro_batch=settings.micro_batch,
        augmentation=setup.recipe.augmentation,
        precision=setup.recipe.precision,
    )
    return train_privately(
        setup.model,
        [shadow.training_set() for shadow in shadows],
        recipe,
        setup.normalisation,
        [setup.generators(shadow, "training") for shadow in shadows],
        setup.classes,
        device=setup.device,
        progress=setup.progress,
        names=[f"model {shadow.number}" for shadow in shadows],
        checkpoint=lambda position: setup.checkpoint(shadows[position], "training"),
    )


def work(settings: Settings, counter: Counter) -> Work:
    """Return what one shadow model takes."""
    return counter.private_steps(
        counter.model, settings.steps, settings.batch_size, settings.views, settings.micro_batch
    )
