"""Stable Diffusion with low-rank changes: fitted to private images by ``diffusers`` and ``peft``, and drawn from.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022): a U-Net removes noise from
the latents ``z`` of a variational autoencoder (VAE), told by a text encoder what is to be seen. All three are frozen,
and only low-rank changes of the U-Net's attention are trained (LoRA, Hu et al. 2021), as in diffusers'
``train_text_to_image_lora.py``, whose loss this is:

    z ~ VAE(enlarged image);  t uniform;  z_t = sqrt(abar_t) z + sqrt(1 - abar_t) noise
    loss = w(t) || U(z_t, t, prompt) - target ||^2,   target: the noise, or the velocity where the model predicts that

Images are drawn as its pipelines do, but for two ends of image-to-image: strength 0 is the VAE's own rendering of the
image, and strength 1 starts from noise alone. (The pipeline fails at the one, and at the other starts from the image
with the noise of the last time step, which does not hide it altogether.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import interpolate

from coalmine.artefacts import read_safetensors
from coalmine.diffusion.denoiser import Wanted, draw_in_parts
from coalmine.diffusion.latent_settings import FOLDERS, LatentFit, LatentSampling, lack
from coalmine.diffusion.sampling import from_pixels, to_pixels
from coalmine.diffusion.settings import FLAT
from coalmine.diffusion.training import Examples, Streams, drop_labels, train
from coalmine.errors import CoalmineError
from coalmine.redaction import without_secrets
from coalmine.seeds import torch_generator
from coalmine.shadows import Fitted, Setup, Shadow, Synthetic
from coalmine.training.augment import draw_and_augment
from coalmine.training.device import arithmetic

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

ADAPTED = ["to_q", "to_k", "to_v", "to_out.0"]
"""The weights that LoRA changes, those of diffusers' script: of every attention."""

BASE = "base"
"""Beside the low-rank changes, the digest of the weights that they change: uint8 ``(32,)``, SHA-256."""

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    # Latents are not bounded as pixels are; eta stays 0.
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def snapshot(own: LatentFit) -> Path:
    """Return the folder of a model; one on the hub is fetched into the hub's own cache unless it is there.

    Several jobs may call it at once: the hub's client locks each file that it fetches. Only safetensors weights and the
    texts beside them are fetched, of the folders that are read.

    Raises:
        CoalmineError: it cannot be fetched, or is no Stable Diffusion.
    """
    if own.path is not None:
        folder = Path(own.path).expanduser()
        lacking = lack(folder)
        if lacking:
            raise CoalmineError(f"The folder {folder} {lacking}")
        return folder
    from huggingface_hub import snapshot_download

    reason = ""
    for at_hand in (True, False):
        try:
            found = snapshot_download(
                str(own.hub),
                revision=own.revision,
                allow_patterns=["model_index.json"]
                + [f"{folder}/*.{suffix}" for folder in FOLDERS for suffix in ("safetensors", "json", "txt")],
                # The same weights once more, in half precision or before averaging.
                ignore_patterns=["*.fp16.*", "*.non_ema.*"],
                local_files_only=at_hand,
            )
        except (OSError, ValueError) as error:
            reason = f"cannot be fetched ({without_secrets(error)})"
            continue
        reason = f"{lacking}" if (lacking := lack(Path(found))) else ""
        if not reason:
            return Path(found)
    raise CoalmineError(
        f"{own.hub} at {own.revision} {reason}. Without a network, copy its folder from where there is one, and set "
        "fit.path to it in place of hub and revision."
    )


class StableDiffusion:
    """A frozen Stable Diffusion, and the low-rank changes of one shadow model at a time, none at first.

    Args:
        own: which model, and how it is trained.
        classes: names of the private data's classes.
        device: where to compute.

    Attributes:
        own: as given.
        device: as given.
        adapter: the low-rank changes by peft's names, float32; they can be overwritten.
        digest: of the frozen weights, uint8 ``(32,)``.

    Raises:
        CoalmineError: the model cannot be read.
    """

    def __init__(self, own: LatentFit, classes: Sequence[str], device: torch.device) -> None:
        folder, texts = snapshot(own), own.prompts(classes)
        self.own, self.device = own, device
        self._dtype = torch.bfloat16 if own.precision == "bfloat16" else torch.float32
        with _reading(folder):
            self._embeddings = _embed(folder, texts, device)
            self._read(folder)
        self.adapter = self._adapt()
        self.digest = _digest(folder)

    def _read(self, folder: Path) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        self._vae = _network(AutoencoderKL, folder / "vae", self._dtype)
        self._unet = _network(UNet2DConditionModel, folder / "unet", self._dtype)
        for network in (self._vae, self._unet):
            network.to(self.device).eval().requires_grad_(False)
        self._schedule = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        if self._schedule.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"it predicts {self._schedule.config.prediction_type}, not the noise or the velocity")

    def _adapt(self) -> dict[str, nn.Parameter]:
        from peft import LoraConfig

        with torch.random.fork_rng(devices=()):  # peft draws first values that `begin` replaces
            self._unet.add_adapter(LoraConfig(r=self.own.rank, lora_alpha=self.own.rank, target_modules=ADAPTED))
        adapter = {}
        for name, parameter in self._unet.named_parameters():
            if "lora_" in name:
                parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
                adapter[name.replace(".default.", ".")] = parameter
        return adapter

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Start anew: first factors from ``N(0, 1 / rank^2)`` by a CPU generator, second ones 0, so nothing changes."""
        for name, parameter in self.adapter.items():
            parameter.zero_()
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / self.own.rank)

    @torch.no_grad()
    def take(self, state: Mapping[str, np.ndarray], scale: float = 1.0) -> None:
        """Take the low-rank changes that :func:`fit` found, times ``scale``.

        Raises:
            CoalmineError: if they are not of these weights.
        """
        if state.keys() != {*self.adapter, BASE} or not np.array_equal(state[BASE], self.digest):
            where = self.own.path or f"{self.own.hub} at {self.own.revision}"
            raise CoalmineError(
                f"The weights of {where} are not those that were fine-tuned; restore them, or delete the generators "
                "that were made from the former ones, so that they are made anew."
            )
        for name, parameter in self.adapter.items():
            value = torch.from_numpy(state[name].copy()).to(self.device)
            parameter.copy_(value * scale if "lora_B" in name else value)

    @property
    def factor(self) -> int:
        """How many times smaller than an image its latents are."""
        halved: int = len(self._vae.config.block_out_channels) - 1
        return 1 << halved

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Return standard normal latents ``(count, channel, height, width)`` by a CPU generator."""
        side = self.own.resolution // self.factor
        return torch.randn(count, self._vae.config.latent_channels, side, side, generator=generator).to(self.device)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Compute in the precision of ``own``."""
        mixed = self.own.precision == "bfloat16"
        with (
            arithmetic("float32" if mixed else self.own.precision),
            torch.autocast(self.device.type, torch.bfloat16, enabled=mixed),
        ):
            yield

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> DiagonalGaussianDistribution:
        """Return the distribution of the latents of images, before scaling.

        Args:
            images: float ``(n, channel, height, width)``, from -1 to 1; they are enlarged to ``resolution``. Grey ones
                become RGB with three equal channels.
        """
        side = self.own.resolution
        enlarged = resized(images, (side, side)).expand(-1, 3, -1, -1)
        posterior: DiagonalGaussianDistribution = self._vae.encode(enlarged.to(self._dtype)).latent_dist
        return posterior

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Return latents as the U-Net sees them, float32."""
        return latents.float() * float(self._vae.config.scaling_factor)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Return images ``(n, channel, height, width)`` of :meth:`scaled` latents, about from -1 to 1.

        Args:
            latents: ``(n, channel, height, width)``.
            shape: height, width and number of channels: 3, or 1 for their mean.
        """
        height, width, channels = shape
        unscaled = latents / float(self._vae.config.scaling_factor)
        images = resized(self._vae.decode(unscaled.to(self._dtype)).sample.float(), (height, width))
        return images if channels == 3 else images.mean(dim=1, keepdim=True)

    def predict(self, latents: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return what the U-Net predicts, float32 like ``latents``.

        Args:
            latents: ``(n, channel, height, width)``, noisy.
            time: int64 ``()`` or ``(n,)``, time steps.
            labels: int64 ``(n,)``, the number of classes standing for the empty prompt.
        """
        predicted: torch.Tensor = self._unet(latents, time, self._embeddings[labels], return_dict=False)[0]
        return predicted.float()

    def loss(
        self, latents: torch.Tensor, time: torch.Tensor, noise: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss, a scalar.

        Args:
            latents: :meth:`scaled`, ``(n, channel, height, width)``.
            time: int64 ``(n,)``, time steps.
            noise: standard normal, like ``latents``.
            labels: int64 ``(n,)``.
        """
        schedule, own = self._schedule, self.own
        predicted = self.predict(schedule.add_noise(latents, noise, time), time, labels)
        predicts_noise = schedule.config.prediction_type == "epsilon"
        target = noise if predicts_noise else schedule.get_velocity(latents, noise, time)
        alphas = schedule.alphas_cumprod.to(time.device)[time]
        weight = min_snr_weight(alphas / (1 - alphas), own.snr_gamma, predicts_noise=predicts_noise)
        return weighted_error(predicted - target, weight, own.distribution)

    @property
    def times(self) -> int:
        """Number of time steps in training."""
        count: int = self._schedule.config.num_train_timesteps
        return count

    @torch.no_grad()
    def draw(
        self,
        labels: torch.Tensor,
        noise: torch.Tensor,
        own: LatentSampling,
        *,
        latents: torch.Tensor | None = None,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """Draw latents, :meth:`scaled`, for each label; deterministic, given ``noise``.

        Args:
            labels: int64 ``(n,)``.
            noise: standard normal ``(n, channel, height, width)``.
            own: scheduler, steps, guidance.
            latents: what to start from, :meth:`scaled`; None: noise alone.
            strength: share of the steps that ``latents`` go back, to the nearest whole one; 1 forgets them.
        """
        solver = self._solver(own.scheduler)
        every = _distinct_times(solver, own.steps, self.device)
        kept = every if latents is None else every[len(every) - round(strength * len(every)) :]
        x = noise
        if latents is not None and strength < 1:
            x = solver.add_noise(latents, noise, kept[:1]) if len(kept) else latents
        # PNDM makes its first step by Heun's method, which visits the second time step twice.
        visited = torch.cat([kept[:2], kept[1:]]) if own.scheduler == "pndm" else kept
        for time in visited:
            x = solver.step(self._guided(x, time, labels, own.guidance), time, x, return_dict=False)[0]
        return x

    def _guided(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor, guidance: float) -> torch.Tensor:
        if guidance == 1:
            return self.predict(x, time, labels)
        nothing = torch.full_like(labels, len(self._embeddings) - 1)
        without, told = self.predict(torch.cat([x, x]), time, torch.cat([nothing, labels])).chunk(2)
        return without + guidance * (told - without)

    def _solver(self, name: str) -> Any:
        import diffusers

        kind, changes = _SCHEDULERS[name]
        return getattr(diffusers, kind).from_config(self._schedule.config, **changes)


def min_snr_weight(snr: torch.Tensor, gamma: float | None, *, predicts_noise: bool) -> torch.Tensor:
    """Return the min-SNR weight of the squared error of a prediction, like ``snr``.

    Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (ICCV 2023), section 3.4: the error of
    the image has weight ``min(SNR, gamma)``, hence that of the noise ``min(SNR, gamma) / SNR`` and that of the velocity
    ``min(SNR, gamma) / (SNR + 1)``, with ``SNR = abar / (1 - abar)``.

    Args:
        snr: signal-to-noise ratios, any shape.
        gamma: the bound; None: all weights are 1.
        predicts_noise: else the velocity.
    """
    if gamma is None:
        return torch.ones_like(snr)
    return snr.clamp(max=gamma) / (snr if predicts_noise else snr + 1)


def weighted_error(difference: torch.Tensor, weight: torch.Tensor, distribution: float) -> torch.Tensor:
    """Return the loss of predictions, a scalar.

    That is the weighted mean square, and ``distribution`` times the mean square of the batch's weighted sum: Yuan et
    al., "Real-Fake: Effective Training Data Synthesis Through Distribution Matching" (ICLR 2024), as in their code.

    Args:
        difference: predictions less targets, ``(n, channel, height, width)``.
        weight: ``(n,)``.
        distribution: weight of the second term.
    """
    error = (weight * difference.square().mean(dim=(1, 2, 3))).mean()
    if not distribution:
        return error
    together = (weight[:, None, None, None] * difference).sum(dim=0)
    return error + distribution * together.square().mean()


def resized(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return float images ``(n, channel, height, width)`` of another size, by antialiased bilinear interpolation."""
    return interpolate(images, size=size, mode="bilinear", antialias=True)


class _Steps:
    """Steps of AdamW on batches drawn with replacement."""

    def __init__(self, model: StableDiffusion, data: Examples, streams: Streams) -> None:
        self._model, self._data, self._streams = model, data, streams
        self._trained = list(model.adapter.values())
        self.optimiser = torch.optim.AdamW(self._trained, model.own.learning_rate)

    def step(self, number: int) -> torch.Tensor:
        """Make update ``number``, from 0, and return its loss."""
        own = self._model.own
        for group in self.optimiser.param_groups:
            group["lr"] = own.learning_rate * min(1.0, (number + 1) / (own.warmup + 1))
        self.optimiser.zero_grad(set_to_none=True)
        with self._model.arithmetic():
            loss = self._loss()
            loss.backward()  # type: ignore[no-untyped-call]
        if own.gradient_norm is not None:
            nn.utils.clip_grad_norm_(self._trained, own.gradient_norm)
        self.optimiser.step()
        return loss.detach()

    def _loss(self) -> torch.Tensor:
        model, data, streams, own = self._model, self._data, self._streams, self._model.own
        drawn = torch.randint(len(data), (own.batch_size,), generator=streams.order).to(model.device)
        images = data.images[drawn]
        if own.augmentation != FLAT:
            images = draw_and_augment(images, own.augmentation, streams.order)
        labels = drop_labels(data.labels[drawn], data.no_class, own.label_dropout, streams.order)
        latents = model.scaled(model.encode(from_pixels(images)).sample(streams.noise))
        time = torch.randint(model.times, labels.shape, generator=streams.noise, device=model.device)
        noise = torch.randn(latents.shape, generator=streams.noise, device=model.device)
        return model.loss(latents, time, noise, labels)


def fit(shadows: Sequence[Shadow], own: LatentFit, setup: Setup) -> Iterator[Fitted]:
    """Fine-tune on the data of each shadow model; yield its low-rank changes and the digest of what they change."""
    model = StableDiffusion(own, setup.class_names, setup.device)
    for shadow in shadows:
        model.begin(torch_generator(setup.seed, setup.method, shadow.number, "fit", "lora"))
        streams = Streams(setup.device, setup.seed, setup.method, shadow.number, "fit")
        data = Examples.put(shadow.images, shadow.labels, setup.classes, setup.device)
        steps, name = _Steps(model, data, streams), f"model {shadow.number}"
        # Of the whole network, only these are averaged, saved and returned.
        changes = nn.ParameterList(model.adapter.values())
        trained, seconds = train(changes, steps, own, streams, setup.checkpoint(shadow), setup.progress, name)
        state = dict(zip(model.adapter, trained.values(), strict=True))
        yield Fitted({**state, BASE: torch.from_numpy(model.digest)}, seconds)


def read(shadow: Shadow, scale: float, setup: Setup, former: StableDiffusion | None = None) -> StableDiffusion:
    """Return the model that was fitted for a shadow model.

    Args:
        shadow: the shadow model.
        scale: what its low-rank changes are multiplied by.
        setup: of the method.
        former: another shadow model's, which is changed if it differs by its low-rank changes only.
    """
    if setup.generator is None:
        raise CoalmineError(f"{setup.method} needs the generative models of its shadow models (--generators)")
    header, state = read_safetensors(setup.generator(shadow))
    own = LatentFit.model_validate_json(json.dumps(header["spec"]["settings"]["fit"]))
    reused = former is not None and former.own == own
    model = former if former is not None and reused else StableDiffusion(own, setup.class_names, setup.device)
    model.take(state, scale)
    return model


def draw(model: StableDiffusion, shadow: Shadow, wanted: Wanted, own: LatentSampling, setup: Setup) -> Synthetic:
    """Draw the synthetic set of a shadow model, of the size of its private images.

    Raises:
        CoalmineError: if the solver diverges.
    """

    def part(rows: slice, generator: torch.Generator) -> np.ndarray:
        labels = torch.from_numpy(wanted.labels[rows]).to(setup.device)
        noise = model.noise(len(labels), generator)
        start = wanted.start(rows, setup.device)
        with model.arithmetic():
            latents = None if start is None else model.scaled(model.encode(start).mode())
            drawn = model.draw(labels, noise, own, latents=latents, strength=wanted.strength)
            images = model.decode(drawn, shadow.pool.shape[1:])
        if not bool(torch.isfinite(images).all()):
            raise CoalmineError(
                f"{setup.method}: an image of model {shadow.number} is not finite; raise steps (now {own.steps}), or "
                f"set fit.precision (now {model.own.precision}) to float32"
            )
        return to_pixels(images).numpy()

    return draw_in_parts(shadow, wanted, own.images_at_once, setup, part)


def _embed(folder: Path, texts: Sequence[str], device: torch.device) -> torch.Tensor:
    """Return what the U-Net is told for each text, float32 ``(n, token, width)``."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = _network(CLIPTextModel, folder / "text_encoder", torch.float32).to(device).eval()
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    with torch.no_grad(), arithmetic("float32"):
        return torch.cat([encoder(part)[0] for part in tokens.split(64)])


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Return a network with all of its weights: the libraries would make up those that are not found."""
    network, found = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=dtype, output_loading_info=True
    )
    if found["missing_keys"]:
        raise ValueError(
            f"{folder.name} lacks {len(found['missing_keys'])} weights, {min(found['missing_keys'])} first"
        )
    return network


def _distinct_times(solver: Any, steps: int, device: torch.device) -> torch.Tensor:
    """Prepare a solver for so many steps; return their times, int64, falling."""
    solver.set_timesteps(steps, device=device)
    return torch.tensor(list(dict.fromkeys(solver.timesteps.tolist())), dtype=torch.int64, device=device)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Say of what a library cannot read where it lies."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CoalmineError(f"{folder} is no Stable Diffusion that can be read ({error}); fetch it again.") from error


def _digest(folder: Path) -> np.ndarray:
    state = hashlib.sha256()
    for file in sorted(folder.glob("*/*.safetensors")):
        if file.parent.name in FOLDERS:
            with open(file, "rb") as opened:
                state.update(hashlib.file_digest(opened, "sha256").digest())
    return np.frombuffer(state.digest(), dtype=np.uint8).copy()
