"""Networks from settings: with fresh weights (``build``) or with given ones (``restore``)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from coalmine.errors import CoalmineError
from coalmine.models import convnet, resnet, settings, small, wide_resnet
from coalmine.models.layers import Classifier, initialise


def build(
    model: settings.ModelSettings, channels: int, image_size: int, classes: int, generator: torch.Generator
) -> Classifier:
    """Return a network on the CPU, in training mode, with weights drawn from ``generator`` alone.

    No global random state is read or changed.

    Args:
        model: the architecture.
        channels: the images' channels.
        image_size: their height and width in pixels.
        classes: the number of classes.
        generator: a CPU generator; all weights are drawn from it (``layers.initialise``).

    Raises:
        CoalmineError: if the images are too small for the network.
    """
    network = skeleton(model, channels, image_size, classes).to_empty(device="cpu")
    initialisation = model.initialisation if isinstance(model, settings.WideResNet) else "uniform"
    initialise(network, generator, initialisation)
    return network


def restore(
    model: settings.ModelSettings, channels: int, image_size: int, classes: int, state: Mapping[str, torch.Tensor]
) -> Classifier:
    """Return a network in evaluation mode that holds ``state`` itself (no copy), named as by ``build().state_dict()``.

    Raises:
        CoalmineError: if ``state`` belongs to another network.
    """
    network = skeleton(model, channels, image_size, classes)
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise CoalmineError(
            f"the weights do not fit a {model.name} for {channels}x{image_size}x{image_size} images and {classes} "
            f"classes ({first.rstrip('.')}); use the settings that the model was trained with, or train it again"
        ) from error
    return network.eval()


def skeleton(model: settings.ModelSettings, channels: int, image_size: int, classes: int) -> Classifier:
    """Return a network without weights (on the ``meta`` device): shapes and names only."""
    smallest = 2**model.depth if isinstance(model, settings.ConvNet) else 1
    if image_size < smallest:
        raise CoalmineError(
            f"a convnet of depth {smallest.bit_length() - 1} halves the image at every block and so needs "
            f"{smallest}x{smallest} pixels, these images have {image_size}x{image_size}; lower depth"
        )
    with torch.device("meta"):
        match model:
            case settings.ResNet():
                return resnet.ResNet(model, channels, classes)
            case settings.WideResNet():
                return wide_resnet.WideResNet(model, channels, classes)
            case settings.ConvNet():
                return convnet.ConvNet(model, channels, image_size, classes)
            case settings.SmallNet():
                return small.SmallNet(model, channels, image_size, classes)
            case settings.MLP():
                return small.MLP(model, channels, image_size, classes)
