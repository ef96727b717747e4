"""Training a denoiser: the same loss with an ordinary optimiser or with differentially private steps.

    image, label <- a batch of the data, augmented, some labels replaced by "no class"
    sigma, noise <- drawn for each image
    one step of Adam on  mean of  weight(sigma) (D(image + sigma noise; sigma, label) - image)^2
    the moving average of the weights follows; it is what is published

With privacy, a batch is a Poisson sample, each of its examples brings K copies of itself with a noise level and noise
of their own, and the step is ``coalmine.training.dp_step``: the gradient of an example is the mean over its copies,
clipped, and noise is added to the sum. The loss of private data is printed nowhere then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from coalmine.checkpoint import Checkpoint
from coalmine.diffusion.network import merged
from coalmine.diffusion.objective import Objective, denoising_loss
from coalmine.diffusion.sampling import from_pixels
from coalmine.diffusion.settings import Learning, PrivateFit
from coalmine.errors import CoalmineError
from coalmine.mechanism import Mechanism
from coalmine.seeds import torch_generator
from coalmine.training.augment import draw_and_augment
from coalmine.training.average import MovingAverage
from coalmine.training.clock import Clock
from coalmine.training.device import arithmetic
from coalmine.training.ensemble import exported
from coalmine.training.recipe import Augmentation
from coalmine.training.state import of_optimiser, prefixed, restore_optimiser, under


@dataclass(frozen=True, eq=False)
class Examples:
    """Images and labels to learn from, on the device.

    Attributes:
        images: uint8 ``(n, channel, height, width)``.
        labels: int64 ``(n,)``.
        no_class: the label that stands for no class.
    """

    images: torch.Tensor
    labels: torch.Tensor
    no_class: int

    @staticmethod
    def put(images: np.ndarray, labels: np.ndarray, no_class: int, device: torch.device) -> Examples:
        """Put uint8 images (n, height, width, channel) and labels (n,) on the device."""
        channels_first = np.ascontiguousarray(np.moveaxis(images, -1, 1))
        return Examples(torch.from_numpy(channels_first).to(device), torch.from_numpy(labels).to(device), no_class)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


class Streams:
    """The randomness of one training: of batches and augmentation, of noise levels and noise, of the DP mechanism.

    The first is drawn on the CPU, the others where the network is.
    """

    def __init__(self, device: torch.device, seed: int, *names: str | int) -> None:
        self.order = torch_generator(seed, *names, "order")
        self.noise = _placed(torch_generator(seed, *names, "noise"), device)
        self.mechanism = _placed(torch_generator(seed, *names, "mechanism"), device)

    def all(self) -> dict[str, torch.Generator]:
        """Return the generators by name."""
        return {"order": self.order, "noise": self.noise, "mechanism": self.mechanism}


def _placed(generator: torch.Generator, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(generator.initial_seed())


class Ordinary:
    """Steps of Adam on batches drawn with replacement."""

    def __init__(
        self, network: nn.Module, objective: Objective, data: Examples, own: Learning, streams: Streams
    ) -> None:
        self._network, self._objective, self._data, self._own, self._streams = network, objective, data, own, streams
        self.optimiser = torch.optim.Adam(_trained(network), own.learning_rate)

    def step(self, number: int) -> torch.Tensor:
        """Make update ``number``, from 0, and return its loss."""
        own, streams, data = self._own, self._streams, self._data
        drawn = torch.randint(len(data), (own.batch_size,), generator=streams.order).to(data.images.device)
        images = from_pixels(_augmented(data.images[drawn], own.augmentation, streams.order))
        labels = drop_labels(data.labels[drawn], data.no_class, own.label_dropout, streams.order)
        sigma, noise = draw_noise(self._objective, images, streams.noise)
        with _dropout_from(streams.order, self._network):
            loss = denoising_loss(self._objective, self._network, images, sigma, noise, labels)
        for group in self.optimiser.param_groups:
            group["lr"] = own.learning_rate * min(1.0, (number + 1) / (own.warmup + 1))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.detach()


class Private:
    """Differentially private steps of Adam on Poisson samples (Ghalebikesabi et al. 2023, section 3)."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        data: Examples,
        own: PrivateFit,
        streams: Streams,
        mechanism: Mechanism,
    ) -> None:
        from coalmine.training.dp_step import DPStep

        self._objective, self._data, self._own, self._streams = objective, data, own, streams
        self._rate = mechanism.sampling_rate
        self.optimiser = torch.optim.Adam(_trained(network), own.learning_rate)
        self._step = DPStep(
            network,
            partial(denoising_loss, objective),
            self.optimiser,
            clip=own.clip,
            noise_multiplier=mechanism.noise_multiplier,
            expected_batch_size=own.batch_size,
            generator=streams.mechanism,
            micro_batch=own.micro_batch,
        )

    def step(self, number: int) -> None:
        """Make update ``number``."""
        taken = torch.rand(len(self._data), generator=self._streams.order) < self._rate
        copies = draw_copies(self._objective, self._data, taken.nonzero()[:, 0], self._own, self._streams)
        # The fused kernels of attention have no rule for gradients of single examples, and PyTorch then loops over
        # these: 1.5 times as slow as plain products for a U-Net of 16x16 images.
        with sdpa_kernel(SDPBackend.MATH):
            self._step(*copies)


def draw_copies(
    objective: Objective, data: Examples, drawn: torch.Tensor, own: PrivateFit, streams: Streams
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return K copies of each example drawn: images, levels, noise and labels, ``(n, K, ...)`` each.

    Args:
        objective: draws the levels.
        data: the private data.
        drawn: int64 ``(n,)``, the examples of the batch, perhaps none.
        own: K, and what differs between copies.
        streams: of randomness.
    """
    here, copies = drawn.to(data.images.device), own.views
    differing = copies if own.vary == "all" else 1
    images = data.images[here][:, None].expand(-1, differing, -1, -1, -1)
    labels = data.labels[here][:, None].expand(-1, differing)
    if len(drawn):
        images = _augmented(images, own.augmentation, streams.order)
        labels = drop_labels(labels, data.no_class, own.label_dropout, streams.order)
    seen = from_pixels(images).expand(-1, copies, -1, -1, -1)
    sigma, noise = draw_noise(objective, seen, streams.noise)
    return seen, sigma, noise, labels.expand(-1, copies)


def drop_labels(labels: torch.Tensor, no_class: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Return the labels, any shape, with a random share of them replaced by ``no_class``."""
    dropped = (torch.rand(labels.shape, generator=generator) < share).to(labels.device)
    return torch.where(dropped, no_class, labels)


def draw_noise(
    objective: Objective, images: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a noise level ``(...)`` and standard normal noise for each of the images ``(..., channel, h, w)``."""
    sigma = objective.draw(tuple(images.shape[:-3]), generator)
    return sigma, torch.randn(images.shape, generator=generator, device=images.device)


def _augmented(images: torch.Tensor, augmentation: Augmentation, generator: torch.Generator) -> torch.Tensor:
    varies = augmentation.flip or augmentation.shift
    return draw_and_augment(images, augmentation, generator) if varies else images


@contextmanager
def _dropout_from(generator: torch.Generator, network: nn.Module) -> Iterator[None]:
    """Let dropout draw from a stream: PyTorch has it draw from the global generators, which no checkpoint keeps."""
    if not any(isinstance(layer, nn.Dropout) and layer.p for layer in network.modules()):
        yield
        return
    cards = {one.device for one in network.parameters() if one.is_cuda}
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def _trained(network: nn.Module) -> list[nn.Parameter]:
    return [one for one in network.parameters() if one.requires_grad]


class Update(Protocol):
    """Makes the steps of a training."""

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """Its state is part of a checkpoint."""
        ...

    def step(self, number: int) -> torch.Tensor | None:
        """Make update ``number``, from 0, and return its loss, if it may be told."""
        ...


def train(
    network: nn.Module,
    update: Update,
    own: Learning | PrivateFit,
    streams: Streams,
    checkpoint: Checkpoint,
    progress: Callable[[str], None],
    name: str,
) -> tuple[dict[str, torch.Tensor], float]:
    """Make all steps, from the last checkpoint on if there is one.

    Args:
        network: on its device; what ``update`` updates.
        update: makes a step.
        own: number of steps, decay of the moving average.
        streams: the randomness that ``update`` draws from.
        checkpoint: where the state is saved now and then.
        progress: prints a line.
        name: of the model in progress and errors.

    Returns:
        The averaged weights, low-rank changes merged, on the CPU; and the seconds that training took.

    Raises:
        CoalmineError: if the loss or a weight is no longer finite.
    """
    average = MovingAverage(network, own.average)
    state = _State(network, update.optimiser, average, streams)
    done, before = state.take_up(checkpoint)
    if done:
        progress(f"{name}: taken up after step {done:,} of {own.steps:,}")
    clock = Clock(own.steps - done, own.batch_size)
    network.train()
    with arithmetic("float32"):
        for number in range(done, own.steps):
            loss = update.step(number)
            average.update()
            if clock.is_time_to_report():
                told = f"step {number + 1:,} of {own.steps:,}"
                if loss is not None:
                    told += f": loss {_finite(float(loss), name, own):.4g}"
                progress(f"{name}, {clock.report(number + 1 - done, told)}")
            if checkpoint.due():
                state.save(checkpoint, number + 1, before + clock.seconds())
    with torch.no_grad():
        for parameter, (_, averaged) in zip(network.parameters(), average.items(), strict=True):
            parameter.copy_(averaged)
    weights = {key: exported(tensor) for key, tensor in merged(network).state_dict().items()}
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    _finite(0.0 if finite else math.nan, name, own)
    return weights, before + clock.seconds()


def _finite(value: float, name: str, own: Learning | PrivateFit) -> float:
    if not math.isfinite(value):
        raise CoalmineError(
            f"{name}: the loss or a weight is no longer finite; lower learning_rate (now {own.learning_rate:g})"
        )
    return value


class _State:
    """All that the rest of a training depends on."""

    def __init__(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, average: MovingAverage, streams: Streams
    ) -> None:
        self._network, self._optimiser, self._average, self._streams = network, optimiser, average, streams

    def save(self, checkpoint: Checkpoint, done: int, seconds: float) -> None:
        """Save it after ``done`` steps that took so many seconds."""
        tensors = {
            **prefixed("network", self._network.state_dict()),
            **prefixed("optimiser", of_optimiser(self._optimiser)),
            **prefixed("average", self._average.state()),
            **prefixed("stream", {name: stream.get_state() for name, stream in self._streams.all().items()}),
        }
        arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
        checkpoint.save({"done": np.array(done), "seconds": np.array(seconds), **arrays})

    def take_up(self, checkpoint: Checkpoint) -> tuple[int, float]:
        """Restore what was saved; return the steps made and the seconds that they took.

        Both are 0 if nothing was saved, or on a device with other generators.
        """
        saved: Mapping[str, np.ndarray] | None = checkpoint.load()
        if saved is None:
            return 0, 0.0
        tensors = {name: torch.from_numpy(array.copy()) for name, array in saved.items()}
        streams, states = self._streams.all(), under("stream", tensors)
        if any(states[name].shape != stream.get_state().shape for name, stream in streams.items()):
            return 0, 0.0
        self._network.load_state_dict(under("network", tensors))
        restore_optimiser(self._optimiser, under("optimiser", tensors))
        self._average.restore(under("average", tensors))
        for name, stream in streams.items():
            stream.set_state(states[name])
        return int(saved["done"]), float(saved["seconds"])
