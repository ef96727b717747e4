"""Settings of a Stable Diffusion that is fine-tuned: which one, how images are shown to it, how it learns.

Imports no torch, and not ``coalmine.diffusion.latent``: what can be checked before any job starts is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from coalmine.diffusion.settings import FLAT, Learning
from coalmine.errors import CoalmineError
from coalmine.settings import Settings
from coalmine.training.recipe import Augmentation

PACKAGES = ("diffusers", "peft", "transformers")
REMEDY = "pip install 'coalmine[stable-diffusion]'"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""The weights that are read, by folder: ``<name>.safetensors``, or its parts by ``<name>.safetensors.index.json``."""
FOLDERS = (*WEIGHTS, "tokenizer", "scheduler")
"""The folders of a Stable Diffusion that are read. Not among them: the safety checker, which blanks tiny pictures."""


class LatentFit(Learning):
    """How a Stable Diffusion is fine-tuned on the private data of one shadow model."""

    path: str | None = Field(
        default=None, min_length=1, description="Folder of the model in diffusers' layout; null with `hub`."
    )
    hub: str | None = Field(default=None, description="Its name on the Hugging Face hub, owner/name; null with `path`.")
    revision: str | None = Field(default=None, description="Its commit, 40 hexadecimal digits; required with `hub`.")
    resolution: int = Field(
        default=512,
        ge=8,
        multiple_of=8,
        description="Side in pixels that images are enlarged to; Stable Diffusion 1.5: 512.",
    )
    prompt: str = Field(default="a photo of a {}", description="Text of every image, {} being the name of its class.")
    names: dict[str, str] = Field(default_factory=dict, description="Names for prompts by the classes' own names.")
    rank: PositiveInt = Field(default=4, description="Of each weight's low-rank change; diffusers' script: 4.")
    batch_size: PositiveInt = Field(default=8, description="Images a step, with replacement; Real-Fake: 8.")
    learning_rate: PositiveFloat = Field(default=1e-4, description="Of AdamW; diffusers' script and Real-Fake: 1e-4.")
    average: float = Field(
        default=0.0, ge=0, lt=1, description="Decay of the moving average of the changes, 0 for none, as in both."
    )
    label_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of prompts replaced by the empty one; diffusers' script: none."
    )
    augmentation: Augmentation = Field(
        default=FLAT, description="Before enlarging, each time that images are drawn; both scripts flip."
    )
    snr_gamma: PositiveFloat | None = Field(
        default=5.0, description="gamma of the min-SNR weight (Hang et al. 2023; Real-Fake: 5); null: no weight."
    )
    distribution: NonNegativeFloat = Field(
        default=0.0,
        description="Weight of Real-Fake's distribution matching (0.003 there): the squared sum, over a batch, of what "
        "is wrong with the predictions; 0: none, as in diffusers' script.",
    )
    gradient_norm: PositiveFloat | None = Field(
        default=1.0, description="Largest norm of a step's gradient; diffusers' script: 1. Null: any."
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        default="bfloat16",
        description="Arithmetic of the frozen networks, in training and in drawing; the changes are float32 always.",
    )

    @model_validator(mode="after")
    def _names_one_model(self) -> LatentFit:
        if (self.path is None) == (self.hub is None):
            raise ValueError("set either path, a folder, or hub and revision")
        if self.hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.hub):
            raise ValueError(f"hub is {self.hub!r}, but a model on the hub is named owner/name")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("hub and revision belong together: without its commit, a model may change")
        if self.revision is not None and not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(f"revision is {self.revision!r}, but a commit has 40 hexadecimal digits (not a branch)")
        return self

    @model_validator(mode="after")
    def _says_what_is_to_be_seen(self) -> LatentFit:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt is {self.prompt!r}; it needs one {{}}, for the name of the class")
        return self

    def prompts(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the prompt of every class, and the empty one at last, which stands for no class.

        Args:
            classes: names of the private data's classes.

        Raises:
            CoalmineError: if ``names`` renames what is no class.
        """
        unknown = sorted(self.names.keys() - set(classes))
        if unknown:
            raise CoalmineError(f"names has {unknown[0]!r}, but the classes are {', '.join(classes)}; mend fit.names.")
        return (*(self.prompt.replace("{}", self.names.get(name, name)) for name in classes), "")


class LatentSampling(Settings):
    """How images are drawn, deterministically but for the noise that they start from."""

    scheduler: Literal["ddim", "pndm", "dpmsolver", "unipc"] = Field(
        default="ddim",
        description="What solves for images, a scheduler of diffusers without randomness. Stable Diffusion 1's own: "
        "pndm; Real-Fake: unipc.",
    )
    steps: PositiveInt = Field(default=25, description="Of the solver, from noise alone; Real-Fake: 30.")
    guidance: float = Field(
        default=7.5,
        ge=1,
        description="g of U(no prompt) + g (U(prompt) - U(no prompt)); 1: none. diffusers: 7.5, Real-Fake: 2.",
    )
    lora_scale: NonNegativeFloat = Field(
        default=1.0, description="What the low-rank changes are multiplied by; Real-Fake: 0.5, 0 for the public model."
    )
    images_at_once: PositiveInt = Field(
        default=16, description="Images that are drawn together; part of the random streams, so it changes numbers."
    )


def objection(own: LatentFit) -> tuple[str, str] | None:
    """Return the field of ``own`` and the reason why it cannot work, or None."""
    if own.augmentation.siamese is not None:
        return "augmentation.siamese", "is set, but images are augmented each by itself; leave it out."
    if own.path is None:
        return None
    folder = Path(own.path).expanduser()
    if not folder.is_dir():
        return "path", f"is {own.path!r}, which is no folder (looked from {Path.cwd()}); name that of a model."
    lacking = lack(folder)
    return ("path", f"is {own.path!r}, which {lacking}") if lacking else None


def missing_packages() -> str | None:
    """Say which packages are not installed, or None."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    return f"needs {' and '.join(missing)}, not installed here; install them: {REMEDY}" if missing else None


def lack(folder: Path) -> str | None:
    """Say why a folder holds no Stable Diffusion that can be read, or None; its weights are not looked into."""
    index = folder / "model_index.json"
    if not index.is_file():
        return "has no model_index.json; name the folder that diffusers' save_pretrained wrote, or git cloned."
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError):
        return "has a model_index.json that names no pipeline; fetch the model again."
    if kind != "StableDiffusionPipeline":
        return f"holds a {kind}, but a StableDiffusionPipeline is needed (versions 1 and 2)."
    for name in FOLDERS:
        if not (folder / name).is_dir():
            return f"has no folder {name}; fetch the model again."
    for name, weights in WEIGHTS.items():
        if not any((folder / name / f"{weights}.safetensors{end}").is_file() for end in ("", ".index.json")):
            return (
                f"has no {name}/{weights}.safetensors; other formats can run code and are not read: convert them by "
                "diffusers' save_pretrained(..., safe_serialization=True)."
            )
    return None
