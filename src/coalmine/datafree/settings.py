"""The data-free methods as one table: which losses, with which weights, and how images and students are made.

Imports no torch.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from coalmine.settings import Settings

Algorithm = Literal["dafl", "dfad", "zskt", "dfq", "deepinversion", "cmi", "fast", "reduced"]
Divergence = Literal["kl", "l1", "js"]

ALGORITHMS: dict[str, dict[str, Any]] = {
    # Generative adversarial methods: one generator throughout; the student learns from fresh images only.
    "dafl": {
        "one_hot": 1.0, "target": "predicted", "activation": 0.001, "balance": 20.0,
        "rounds": 80, "generator_steps": 1, "distillation_steps": 5, "latent": 512, "memory": 4096,
    },
    "dfad": {
        "adversarial": 1.0, "divergence": "l1", "criterion": "l1",
        "rounds": 80, "generator_steps": 1, "distillation_steps": 5, "memory": 4096,
    },
    "zskt": {
        "adversarial": 1.0,
        "rounds": 40, "generator_steps": 1, "distillation_steps": 10, "latent": 100, "memory": 4096,
    },
    "dfq": {
        "one_hot": 1.0, "target": "predicted", "balance": 20.0, "batch_norm": 1.0, "adversarial": 1.0,
        "rounds": 40, "generator_steps": 1, "distillation_steps": 10, "memory": 4096,
    },
    # Inversion: every round makes a batch of images anew; the student learns from all that are remembered.
    "deepinversion": {
        "one_hot": 1.0, "batch_norm": 10.0, "adversarial": 1.0, "divergence": "js", "total_variation": 0.001,
        "source": "pixels", "rate": 0.1, "second_moment": 0.99, "roll": 2,
        "generator_steps": 2000, "learns_from": "memory", "temperature": 20.0,
    },
    "cmi": {
        "one_hot": 1.0, "batch_norm": 1.0, "adversarial": 0.5, "masked": True, "contrastive": 0.8, "augmented": True,
        "source": "fresh", "latent_rate": 0.001,
        "generator_steps": 200, "learns_from": "memory", "temperature": 20.0,
    },
    "fast": {
        "one_hot": 0.4, "batch_norm": 10.0, "adversarial": 1.33, "masked": True, "augmented": True,
        "statistics_momentum": 0.9, "source": "meta", "rate": 0.003, "latent_rate": 0.01,
        "generator_steps": 5, "warmup": 20, "reset": 120, "learns_from": "memory", "temperature": 20.0,
    },
    # What the audit protocol's predecessor evaluated: Fast-Datafree's loop with the statistics' loss alone.
    "reduced": {
        "batch_norm": 1.0, "augmented": True, "statistics_momentum": 0.9,
        "source": "generator", "rate": 0.005, "latent_rate": 0.015,
        "generator_steps": 2, "warmup": 20, "distillation_steps": None, "passes": 5,
        "learns_from": "memory", "temperature": 20.0,
    },
}  # fmt: skip
"""What each method sets; the rest stays as below.

The weights are those of the common benchmark of Fast-Datafree's public code for CIFAR-10, whose images have 32x32
pixels: WRN-40-2 teaches WRN-16-1 there. It leaves out DeepInversion's total variation, whose weight is that of its own
code, and has 5 steps of ZSKT's student for each of the generator's; 10 steps, and 100 inputs, are those of ZSKT's code.
DAFL: Chen et al., ICCV 2019. DFAD: Fang et al., 2019. ZSKT: Micaelli & Storkey, NeurIPS 2019. DFQ: Choi et al., CVPR
Workshops 2020. DeepInversion: Yin et al., CVPR 2020. CMI: Fang et al., IJCAI 2021. Fast-Datafree: Fang et al., AAAI
2022. Reduced: Aerni, Zhang & Tramèr, CCS 2024.
"""


class DataFree(Settings):
    """One data-free method. ``algorithm`` fills in what is not given; the defaults are what most methods share.

    ``training.epochs`` of the entry is the number of epochs in which the student learns, ``training`` its recipe.
    """

    algorithm: Algorithm = Field(description="Whose settings are taken where nothing else is said.")
    teacher: str = Field("undefended", description="The method whose model of the same shadow model is the teacher.")

    one_hot: NonNegativeFloat = Field(0.0, description="Weight: the teacher is sure of a class.")
    target: Literal["drawn", "predicted"] = Field(
        "drawn", description="Which class that is: drawn at random before the image is made, or what the teacher says."
    )
    activation: NonNegativeFloat = Field(0.0, description="Weight: the teacher's features are excited.")
    balance: NonNegativeFloat = Field(0.0, description="Weight: all classes appear equally often in a batch.")
    batch_norm: NonNegativeFloat = Field(
        0.0, description="Weight: statistics in the teacher's batch norm layers are those of the private data."
    )
    adversarial: NonNegativeFloat = Field(0.0, description="Weight: student and teacher disagree.")
    divergence: Divergence = Field("kl", description="Measure of that disagreement.")
    masked: bool = Field(False, description="It counts only where both name the same class.")
    contrastive: NonNegativeFloat = Field(0.0, description="Weight: images can be told apart (CMI).")
    total_variation: NonNegativeFloat = Field(0.0, description="Weight: neighbouring pixels are alike.")

    source: Literal["generator", "fresh", "meta", "pixels"] = Field(
        "generator",
        description="What makes images: one generator throughout, a fresh one for each batch, one that is meta-learned "
        "to need few steps, or the pixels themselves.",
    )
    batch_size: PositiveInt = Field(256, description="Images made at once (256).")
    rounds: PositiveInt = Field(1, description="Rounds an epoch, each of synthesis and then distillation.")
    generator_steps: PositiveInt = Field(description="Steps of synthesis in a round.")
    rate: PositiveFloat = Field(0.001, description="Adam's rate for the generator or the pixels.")
    latent_rate: PositiveFloat | None = Field(
        None, description="Adam's rate for the generator's input; null: not learned, but drawn anew at each step."
    )
    second_moment: float = Field(0.999, gt=0, lt=1, description="Adam's second decay; the first is 0.5.")
    latent: PositiveInt = Field(256, description="Numbers that the generator makes an image from.")
    width: PositiveInt = Field(64, description="Channels of the generator's last block (64).")
    augmented: bool = Field(
        False, description="Whether images are augmented as in training before the teacher judges them."
    )
    roll: int = Field(
        0,
        ge=0,
        description="Before that they are rolled by up to so many pixels, all alike, and mirrored if the recipe does.",
    )
    statistics_momentum: float = Field(
        0.0, ge=0, lt=1, description="Share of earlier batches in the statistics (Fast-Datafree: 0.9)."
    )
    meta: Literal["fomaml", "reptile"] = Field("fomaml", description="How the generator is meta-learned.")
    reset: PositiveInt | None = Field(
        None, description="Epoch after the warm-up in which the generator's first layer starts anew; null: none."
    )
    negatives: PositiveInt = Field(4096, description="Earlier images that an image is told apart from (CMI).")
    contrast_temperature: PositiveFloat = Field(0.2, description="Temperature of telling apart (CMI: 0.1 to 0.2).")
    bank: PositiveInt = Field(40960, description="Earlier images whose features are kept for it (CMI).")

    warmup: int = Field(0, ge=0, description="Epochs of synthesis alone, before those of the student.")
    distillation_steps: PositiveInt | None = Field(
        400, description="Steps of the student in a round (400), or null if `passes` says it."
    )
    passes: PositiveInt | None = Field(
        None, description="How often the student sees the whole memory in a round, in place of a number of steps."
    )
    learns_from: Literal["fresh", "memory"] = Field(
        "fresh", description="Fresh images of the generator, or all remembered ones."
    )
    criterion: Literal["kl", "l1"] = Field("kl", description="What the student minimises.")
    temperature: PositiveFloat = Field(1.0, description="Softens both answers in the student's KL.")
    memory: PositiveInt = Field(65536, description="Images remembered; the oldest leave first.")
    images: PositiveInt = Field(1000, description="Of these, so many are kept in the end, drawn at random.")

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        known = ALGORITHMS.get(str(given.get("algorithm")), {}) if isinstance(given, dict) else {}
        return {**known, **given} if known else given

    @model_validator(mode="after")
    def _goes_together(self) -> DataFree:
        if (self.distillation_steps is None) == (self.passes is None):
            raise ValueError("distillation_steps and passes are two ways to say one thing; give one, null the other")
        if self.learns_from == "fresh":
            if self.source != "generator" or self.latent_rate is not None:
                raise ValueError(
                    "learns_from: fresh needs a generator that draws new images at any time; set source: generator and "
                    "latent_rate: null, or learns_from: memory"
                )
            if self.passes is not None or self.warmup:
                raise ValueError(
                    "learns_from: fresh has no memory to pass through or fill; give distillation_steps and warmup: 0"
                )
        if self.source in ("fresh", "meta") and self.latent_rate is None:
            raise ValueError(f"source: {self.source} optimises its input, too; give latent_rate")
        if self.warmup and set(self.weights()) == {"adversarial"}:
            raise ValueError("warmup has no student, so that the adversarial loss says nothing; give warmup: 0")
        if self.reset is not None and self.source not in ("generator", "meta"):
            raise ValueError(
                f"reset draws a layer of a lasting generator anew, but source is {self.source}; give reset: null"
            )
        if not self.weights():
            raise ValueError(f"no loss has a weight, so that images would stay noise; give one of {', '.join(TERMS)}")
        return self

    def images_made(self, epochs: int) -> int:
        """Return how many images pass through the memory if the student learns for so many epochs."""
        each = self.distillation_steps if self.learns_from == "fresh" else 1
        return (self.warmup + epochs) * self.rounds * (each or 1) * self.batch_size

    def weights(self) -> dict[str, float]:
        """Return the losses that count, with their weights."""
        return {name: weight for name in TERMS if (weight := getattr(self, name))}


TERMS = ("one_hot", "activation", "balance", "batch_norm", "adversarial", "contrastive", "total_variation")
