"""Settings of diffusion models: the network, what it is trained to do, how, and how images are drawn from it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from coalmine.budget import Budget
from coalmine.settings import Settings
from coalmine.training.recipe import Augmentation

if TYPE_CHECKING:
    from coalmine.outline import Outline

FLAT = Augmentation(flip=False, shift=0)


class UNet(Settings):
    """A class-conditional U-Net (``diffusers.UNet2DModel``)."""

    # Not strict, because YAML and JSON have lists but no tuples.
    width: int = Field(default=128, ge=4, multiple_of=4, description="Channels at full resolution.")
    multipliers: Annotated[tuple[PositiveInt, ...], Field(strict=False)] = Field(
        default=(1, 2, 2, 2),
        min_length=1,
        description="Channels at each resolution, in units of width; each but the last halves the image. Karras et "
        "al. for CIFAR-10: width 128, (2, 2, 2).",
    )
    blocks: PositiveInt = Field(default=2, description="Residual blocks at each resolution.")
    attention: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = Field(
        default=(), description="The resolutions with self-attention, 0 the full one; also in the middle if any."
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="In the residual blocks.")

    @model_validator(mode="after")
    def _attends_where_there_is_something(self) -> UNet:
        if any(level >= len(self.multipliers) for level in self.attention):
            raise ValueError(
                f"attention names {self.attention}, but the resolutions are 0 to {len(self.multipliers) - 1}"
            )
        return self


class EDM(Settings):
    """Karras et al. (2022): the network sees inputs and targets of unit variance at every noise level."""

    name: Literal["edm"]
    sigma_data: PositiveFloat = Field(
        default=0.5, description="Standard deviation of the images, from -1 to 1; a constant, not computed from data."
    )
    p_mean: float = Field(default=-1.2, description="Mean of ln(sigma) in training; Karras et al.: -1.2.")
    p_std: PositiveFloat = Field(default=1.2, description="Its standard deviation; Karras et al.: 1.2.")
    sigma_min: PositiveFloat = Field(default=0.002, description="Least noise level in sampling; Karras et al.: 0.002.")
    sigma_max: PositiveFloat = Field(default=80.0, description="Largest one; Karras et al.: 80.")
    rho: PositiveFloat = Field(default=7.0, description="How levels are spaced in between; Karras et al.: 7.")

    @model_validator(mode="after")
    def _levels_fall(self) -> EDM:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min is {self.sigma_min:g}, but must be less than sigma_max ({self.sigma_max:g})")
        return self


class Part(Settings):
    """One part of a mixture of uniform distributions of time steps."""

    weight: PositiveFloat = Field(description="Share of this part, relative to the others'.")
    low: int = Field(ge=0, description="First time step.")
    high: PositiveInt = Field(description="The time step after the last.")

    @model_validator(mode="after")
    def _is_not_empty(self) -> Part:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: a part needs low < high")
        return self


class DDPM(Settings):
    """Ho et al. (2020), with Nichol and Dhariwal's schedule (2021): discrete time steps."""

    name: Literal["ddpm"]
    steps: int = Field(default=1000, ge=2, description="T, number of time steps; Ho et al.: 1,000.")
    schedule: Literal["cosine", "linear"] = Field(
        default="cosine", description="How noise grows; linear: Ho et al., cosine: Nichol and Dhariwal."
    )
    prediction: Literal["epsilon", "v"] = Field(
        default="epsilon", description="What the network predicts: the noise, or the velocity (Salimans and Ho 2022)."
    )
    # Not strict, because YAML and JSON have lists but no tuples.
    times: Annotated[tuple[Part, ...], Field(strict=False)] = Field(
        default=(),
        description="Mixture of uniforms that time steps are drawn from in training, without re-weighting the loss "
        "(Ghalebikesabi et al. 2023); none: uniform over all.",
    )

    @model_validator(mode="after")
    def _noise_grows_in_enough_steps(self) -> DDPM:
        if self.schedule == "linear" and self.steps <= 20:
            raise ValueError(f"steps is {self.steps}, in which the linear schedule cannot grow; set more than 20")
        return self

    @model_validator(mode="after")
    def _times_exist(self) -> DDPM:
        for part in self.times:
            if part.high > self.steps:
                raise ValueError(f"times has a part up to {part.high}, but there are only {self.steps} time steps")
        return self


Objective = Annotated[EDM | DDPM, Field(discriminator="name")]


class Denoiser(Settings):
    """A network and what it is trained to do."""

    network: UNet = Field(description="Architecture.")
    objective: Objective = Field(description="EDM or DDPM.")


class Learning(Settings):
    """How a denoiser is trained without privacy."""

    steps: PositiveInt = Field(description="Updates.")
    batch_size: PositiveInt = Field(default=128, description="Images a step, drawn with replacement.")
    learning_rate: PositiveFloat = Field(default=2e-4, description="Of Adam, after the warm-up; Ho et al.: 2e-4.")
    warmup: int = Field(default=0, ge=0, description="Steps in which the learning rate rises to its value.")
    average: float = Field(
        default=0.999, gt=0, lt=1, description="Decay of the moving average of weights, which is what is published."
    )
    label_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of labels replaced by `no class`, which guidance needs."
    )
    augmentation: Augmentation = Field(default=FLAT, description="Of the images, each time that they are drawn.")


class Pretraining(Denoiser, Learning):
    """A denoiser that is trained on public data, once, and shared by all shadow models."""


class LoRA(Settings):
    """Low-rank adaptation (Hu et al. 2021) by ``peft``."""

    rank: PositiveInt = Field(default=4, description="Rank of each weight's change; diffusers' script: 4.")
    scale: PositiveFloat = Field(default=1.0, description="alpha / rank; diffusers' script: 1.")


class Start(Settings):
    """Where training on private data starts: at a new network, or at one that public data have trained."""

    network: UNet | None = Field(default=None, description="Architecture of a new network.")
    objective: Objective | None = Field(default=None, description="Its objective.")
    pretrained: str | None = Field(default=None, description="An entry of `pretrained`, in place of a new network.")
    classes: Literal["new", "kept"] = Field(
        default="new",
        description="The class embedding of a pre-trained network: new random ones, or those of the public classes.",
    )
    lora: LoRA | None = Field(
        default=None, description="Train low-rank changes and the class embedding only; null: all weights."
    )

    @model_validator(mode="after")
    def _has_one_start(self) -> Start:
        if self.pretrained is None and (self.network is None or self.objective is None):
            raise ValueError("set either pretrained, or network and objective for a new network")
        if self.pretrained is not None and (self.network is not None or self.objective is not None):
            raise ValueError("the pre-trained network brings its own network and objective; leave these out")
        if self.pretrained is None and self.lora is not None:
            raise ValueError("lora changes a pre-trained network; set pretrained, or lora: null")
        return self


class Fit(Start, Learning):
    """How a denoiser is trained on the private data of one shadow model."""


class PrivateFit(Start, Budget):
    """How a denoiser is trained with differential privacy (Ghalebikesabi et al. 2023; Dockhorn et al., DPDM, 2023)."""

    vary: Literal["all", "noise"] = Field(
        default="all",
        description="What differs between the K copies (`views`) of a sample. all: augmentation, noise level, noise "
        "and label dropout (Ghalebikesabi et al.). noise: level and noise only (DPDM's noise multiplicity).",
    )
    learning_rate: PositiveFloat = Field(default=3e-4, description="Of Adam; DPDM: 3e-4.")
    average: float = Field(
        default=0.999, gt=0, lt=1, description="Decay of the moving average of weights, which is what is published."
    )
    label_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="Share of labels replaced by `no class`, which guidance needs."
    )
    augmentation: Augmentation = Field(default=FLAT, description="Of the copies.")


class Drawing(Settings):
    """Whose generative models images are drawn from, how many, and what they start from."""

    fit: object = Field(default=None, description="How the generative models are trained; null with `generator`.")
    generator: str | None = Field(
        default=None, description="Another entry of this file, whose generative models are drawn from; null with `fit`."
    )
    images: PositiveInt | None = Field(
        default=None, description="Images of a set; null: as many as the private ones that they start from."
    )
    strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Image-to-image: the share of the noise levels that private images go back, 0 leaves them as they "
        "are (or as an autoencoder renders them), 1 forgets them. Null: images are drawn from noise.",
    )

    @model_validator(mode="after")
    def _has_generative_models_and_a_size(self) -> Drawing:
        if (self.fit is None) == (self.generator is None):
            raise ValueError("set either fit, or generator for the generative models of another entry")
        if self.strength is None and self.images is None:
            raise ValueError("images is required where they are drawn from noise (strength is null)")
        return self


class Sampling(Settings):
    """How images are drawn from a denoiser, deterministically but for the noise that they start from."""

    solver: Literal["heun", "euler"] = Field(
        default="euler",
        description="euler: one evaluation a step, which is DDIM for DDPM. heun: two (Karras et al., algorithm 1), for "
        "EDM only: DDPM's levels are too far apart at the start.",
    )
    levels: PositiveInt = Field(default=30, description="Steps; Karras et al. for CIFAR-10: 18 with heun.")
    guidance: NonNegativeFloat = Field(
        default=0.0, description="w of (1 + w) D(x, y) - w D(x, no class); 0: none (Ho and Salimans 2022)."
    )
    clip: bool = Field(default=False, description="Keep denoised images in the range of pixels in every step.")
    images_at_once: PositiveInt = Field(
        default=512, description="Images that are drawn together; part of the random streams, so it changes numbers."
    )

    def evaluations(self, steps: int) -> int:
        """Return how often the network is asked about an image that is drawn in so many steps."""
        return max(0, 2 * steps - 1 if self.solver == "heun" else steps) * (2 if self.guidance else 1)


def unfit(own: Fit | PrivateFit, sampling: Sampling, outline: Outline) -> tuple[str, str] | None:
    """Return the field of a method's settings and the reason why its denoisers cannot work, or None.

    Args:
        own: how they are trained.
        sampling: how images are drawn from them.
        outline: what is known about the run.
    """
    start = outline.pretrained[own.pretrained] if own.pretrained else own
    assert start.network
    assert start.objective
    if own.augmentation.siamese is not None:
        return "fit.augmentation.siamese", "is set, but a denoiser augments each image by itself; leave it out."
    if isinstance(own, PrivateFit) and start.network.dropout:
        field = "fit.pretrained" if own.pretrained else "fit.network.dropout"
        return field, "has dropout, whose randomness gradients of single examples do not support; set dropout: 0 there."
    if own.lora is not None and find_spec("peft") is None:
        return "fit.lora", "needs the package peft; install it: pip install 'coalmine[stable-diffusion]'"
    if sampling.solver == "heun" and start.objective.name == "ddpm":
        return "solver", "is heun, whose steps are unstable along DDPM's noise levels; take euler, which is DDIM."
    halved = 2 ** (len(start.network.multipliers) - 1)
    if outline.image_size and any(side % halved for side in outline.image_size):
        height, width = outline.image_size
        field = "fit.pretrained" if own.pretrained else "fit.network.multipliers"
        return field, f"halves images {len(start.network.multipliers) - 1} times, which {height}x{width} do not allow."
    return None
