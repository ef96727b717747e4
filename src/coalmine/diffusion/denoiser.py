"""Denoisers of shadow models: fitted to private data, read again, and synthetic sets drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from coalmine.artefacts import Header, read_safetensors
from coalmine.diffusion import settings
from coalmine.diffusion.network import ConditionalUNet, adapt
from coalmine.diffusion.objective import Objective, build
from coalmine.diffusion.sampling import from_pixels, sample, to_pixels
from coalmine.diffusion.settings import Drawing, Fit, PrivateFit, Sampling, Start
from coalmine.diffusion.training import Examples, Ordinary, Private, Streams, train
from coalmine.errors import CoalmineError
from coalmine.seeds import torch_generator
from coalmine.shadows import Fitted, Setup, Shadow, Synthetic
from coalmine.training.clock import Clock
from coalmine.training.device import arithmetic


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A network, and what it was trained to do."""

    network: ConditionalUNet
    objective: Objective


def fit(shadows: Sequence[Shadow], own: Fit | PrivateFit, setup: Setup) -> Iterator[Fitted]:
    """Train one denoiser on the data of each shadow model, with privacy if ``own`` says how; yield them in order."""
    start = _Start(own, setup)
    for shadow in shadows:
        images = shadow.images
        denoiser = start.denoiser(shadow, images.shape[3], images.shape[1])
        network: torch.nn.Module = denoiser.network
        if own.lora:
            network = adapt(network, own.lora, torch_generator(setup.seed, setup.method, shadow.number, "fit", "lora"))
        network = network.to(setup.device)
        streams = Streams(setup.device, setup.seed, setup.method, shadow.number, "fit")
        data = Examples.put(images, shadow.labels, setup.classes, setup.device)
        update: Ordinary | Private
        if isinstance(own, PrivateFit):
            if setup.mechanism is None:
                raise CoalmineError(f"{setup.method} needs its guarantee, privacy/{setup.method}.json (--privacy)")
            if setup.mechanism.steps != own.steps:
                accounted = setup.mechanism.steps
                raise CoalmineError(
                    f"privacy/{setup.method}.json accounts for {accounted} steps, but fit.steps is {own.steps}"
                )
            update = Private(network, denoiser.objective, data, own, streams, setup.mechanism)
        else:
            update = Ordinary(network, denoiser.objective, data, own, streams)
        name = f"model {shadow.number}"
        yield Fitted(*train(network, update, own, streams, setup.checkpoint(shadow), setup.progress, name))


class _Start:
    """Where the training of every shadow model starts: at a new network, or at the pre-trained one."""

    def __init__(self, own: Start, setup: Setup) -> None:
        self._own, self._setup = own, setup
        self._header: Header = {}
        self._state: dict[str, torch.Tensor] | None = None
        if own.pretrained is not None:
            if setup.pretrained is None:
                raise CoalmineError(f"{setup.method} needs pretrained/{own.pretrained}.safetensors (--pretrained)")
            self._header, self._state = _read(setup.pretrained)
            self._check_classes(setup.pretrained)

    def _check_classes(self, path: Path) -> None:
        known = self._header["shape"]["classes"]
        if self._own.classes == "kept" and known != self._setup.classes:
            raise CoalmineError(
                f"{path} knows {known} classes, but the private data have {self._setup.classes}: its class embedding "
                f"cannot be kept; set methods.{self._setup.method}.fit.classes to new."
            )

    def denoiser(self, shadow: Shadow, channels: int, size: int) -> Denoiser:
        setup, own = self._setup, self._own
        weights = torch_generator(setup.seed, setup.method, shadow.number, "fit", "initialisation")
        if self._state is None:
            assert own.network
            assert own.objective
            network = ConditionalUNet(own.network, channels, size, setup.classes, weights)
            return Denoiser(network, build(own.objective))
        pretrained = settings.Pretraining.model_validate_json(json.dumps(self._header["spec"]["settings"]))
        network = ConditionalUNet(pretrained.network, channels, size, setup.classes, weights)
        network.take(self._state, keep_classes=own.classes == "kept")
        return Denoiser(network, build(pretrained.objective))


def read(path: Path, device: torch.device) -> Denoiser:
    """Read the denoiser of a shadow model, ready to draw images on ``device``."""
    header, state = _read(path)
    made = header["spec"]
    source: dict[str, Any] = made["pretrained"]["settings"] if made.get("pretrained") else made["settings"]["fit"]
    own = TypeAdapter(settings.UNet).validate_json(json.dumps(source["network"]))
    objective: settings.EDM | settings.DDPM = TypeAdapter(settings.Objective).validate_json(
        json.dumps(source["objective"])
    )
    shape = header["shape"]
    network = ConditionalUNet(own, shape["channels"], shape["image_size"], shape["classes"])
    network.load_state_dict(state)
    return Denoiser(network.to(device).eval().requires_grad_(False), build(objective))


def _read(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    header, arrays = read_safetensors(path)
    return header, {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True, eq=False)
class Wanted:
    """What images are asked for.

    Attributes:
        labels: int64 ``(n,)``.
        source: int64 ``(n,)``, the private index that each starts from, else -1.
        images: uint8 ``(m, height, width, channel)``, all that ``source`` may name; None to start from noise.
        strength: how far they go back to noise, from 0 to 1.
    """

    labels: np.ndarray
    source: np.ndarray
    images: np.ndarray | None = None
    strength: float = 1.0

    def start(self, rows: slice, device: torch.device) -> torch.Tensor | None:
        """Return the images that these start from, float ``(k, channel, height, width)`` from -1 to 1, or None."""
        if self.images is None:
            return None
        return from_pixels(torch.from_numpy(self.images[self.source[rows]]).movedim(-1, 1).to(device))


def asked_for(settings: Drawing, shadow: Shadow, setup: Setup) -> Wanted:
    """Ask for what the settings say: images from a shadow model's own, or from noise."""
    if settings.strength is not None:
        return from_images(shadow, settings.images, settings.strength, setup)
    assert settings.images
    return from_noise(settings.images, setup.classes)


def from_noise(count: int, classes: int) -> Wanted:
    """Ask for images from noise, of all classes alike, one class after the other: that tells nothing of the data."""
    return Wanted(np.arange(count) % classes, np.full(count, -1))


def from_images(shadow: Shadow, count: int | None, strength: float, setup: Setup) -> Wanted:
    """Ask for images that start from a shadow model's own, each with its label.

    Fewer than there are start from a random choice of these (the data may be sorted by class), more from all of them,
    again and again.
    """
    available = len(shadow.index)
    position = np.arange(available if count is None else count) % available
    if count is not None and count < available:
        position = np.sort(setup.rng(shadow, "images").choice(available, count, replace=False))
    return Wanted(shadow.labels[position], shadow.index[position], shadow.pool, strength)


def draw(shadow: Shadow, wanted: Wanted, own: Sampling, setup: Setup) -> Synthetic:
    """Draw the synthetic set of a shadow model from its denoiser."""
    if setup.generator is None:
        raise CoalmineError(f"{setup.method} needs the denoisers of its shadow models (--generators)")
    denoiser = read(setup.generator(shadow), setup.device)

    def part(rows: slice, generator: torch.Generator) -> np.ndarray:
        return _draw_part(denoiser, wanted, rows, shadow.pool.shape[1:], own, generator, setup)

    return draw_in_parts(shadow, wanted, own.images_at_once, setup, part)


def draw_in_parts(
    shadow: Shadow,
    wanted: Wanted,
    at_once: int,
    setup: Setup,
    draw_part: Callable[[slice, torch.Generator], np.ndarray],
) -> Synthetic:
    """Draw the synthetic set of a shadow model part by part, from the last checkpoint on.

    Each part has a random stream of its own, and is written to disk as soon as it is there: the set may be larger than
    memory, and an interrupted run ends with the same bytes.

    Args:
        shadow: the shadow model.
        wanted: its labels and sources.
        at_once: images of a part.
        setup: of the method.
        draw_part: given the rows of a part and its CPU generator, returns uint8 (k, height, width, channel).
    """
    shape, count, checkpoint = shadow.pool.shape[1:], len(wanted.labels), setup.checkpoint(shadow)
    canvas = checkpoint.canvas((count, *shape), "uint8")
    saved = checkpoint.load()
    made = int(saved["made"]) if saved else 0
    if made:
        setup.progress(f"model {shadow.number}: taken up after {made:,} of {count:,} images")
    clock = Clock(-(-(count - made) // at_once), at_once)
    for part, first in enumerate(range(made, count, at_once), start=1):
        rows = slice(first, min(first + at_once, count))
        generator = torch_generator(setup.seed, setup.method, shadow.number, "sampling", first // at_once)
        canvas[rows] = draw_part(rows, generator)
        if clock.is_time_to_report():
            setup.progress(f"model {shadow.number}, {clock.report(part, f'{rows.stop:,} of {count:,} images')}")
        if checkpoint.due():
            if isinstance(canvas, np.memmap):
                canvas.flush()
            checkpoint.save({"made": np.array(rows.stop)})
    return Synthetic(images=canvas, labels=wanted.labels, source=wanted.source)


def _draw_part(
    denoiser: Denoiser,
    wanted: Wanted,
    rows: slice,
    shape: tuple[int, ...],
    own: Sampling,
    generator: torch.Generator,
    setup: Setup,
) -> np.ndarray:
    """Return uint8 ``(k, height, width, channel)``."""
    labels = torch.from_numpy(wanted.labels[rows]).to(setup.device)
    height, width, channels = shape
    noise = torch.randn(len(labels), channels, height, width, generator=generator).to(setup.device)
    with arithmetic("float32"):
        drawn = sample(
            denoiser.objective,
            denoiser.network,
            labels,
            denoiser.network.no_class,
            noise,
            own,
            images=wanted.start(rows, setup.device),
            strength=wanted.strength,
        )
    return to_pixels(drawn).numpy()
