"""Which classifier to train: one typed block a family, told apart by ``name``. Imports no torch.

``coalmine.models.build.build`` makes the network from these settings.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from coalmine.settings import Settings

Norm = Literal["batch", "group", "instance", "none"]
"""Normalisation layers, all with a learned scale and offset.

``batch``: batch norm with running statistics (eps 1e-5, momentum 0.1). ``group``: group norm with 16 groups, or the
most below 16 that divide the channels; no sample sees another, as DP-SGD needs. ``instance``: one group a channel.
"""

Sizes = Annotated[tuple[PositiveInt, ...], Field(strict=False)]
"""Positive integers; a list, as YAML has it, is read as a tuple."""


class ResNet(Settings):
    """Residual network in its CIFAR form: a 3x3 stem without pooling, then stages of basic blocks.

    He et al., "Deep Residual Learning" (CVPR 2016), Figure 5 left. The defaults are ResNet-18 (11,173,962 weights
    with 3 channels and 10 classes), the network of S1.
    """

    name: Literal["resnet"] = "resnet"
    width: PositiveInt = Field(
        default=64, description="channels of the first stage, doubled by each later one; ResNet-18: 64"
    )
    blocks: Annotated[Sizes, Field(min_length=1)] = Field(
        default=(2, 2, 2, 2), description="basic blocks of each stage; ResNet-18: (2, 2, 2, 2)"
    )
    norm: Norm = Field(default="batch", description="normalisation after each convolution; the paper: batch")


class WideResNet(Settings):
    """Wide residual network WRN-depth-widen, pre-activation, without dropout.

    Zagoruyko & Komodakis, "Wide Residual Networks" (BMVC 2016), Table 1. The defaults are WRN-16-4 as in the paper
    (2,748,890 weights with 3 channels and 10 classes). The audit protocol's predecessor has biases in its
    convolutions and halves the image in the second convolution of a block: ``bias: true, downsample: second``
    (2,751,146 weights).
    """

    name: Literal["wide-resnet"] = "wide-resnet"
    depth: int = Field(default=16, ge=10, description="layers, 6 n + 4 for n blocks a stage; WRN-16-4: 16")
    widen: PositiveInt = Field(
        default=4, description="widening factor of the stages' 16, 32 and 64 channels; WRN-16-4: 4"
    )
    norm: Norm = Field(
        default="batch", description="normalisation before each activation; the paper: batch, DP-SGD: group"
    )
    bias: bool = Field(default=False, description="biases in the convolutions; the paper: false, the predecessor: true")
    downsample: Literal["first", "second"] = Field(
        default="first",
        description="which 3x3 convolution of a block has the stride; the paper: first, the predecessor: second",
    )

    @field_validator("depth")
    @classmethod
    def _has_whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"a wide residual network has 6 n + 4 layers (10, 16, 22, 28, 40, ...), not {depth}")
        return depth


class ConvNet(Settings):
    """The network of dataset distillation: depth times [3x3 convolution, norm, ReLU, 2x2 average pooling], linear.

    Gidaris & Komodakis (CVPR 2018); Zhao, Mopuri & Bilen, "Dataset Condensation" (ICLR 2021). The defaults are their
    ConvNet-3 (320,010 weights with 3 channels, 32x32 pixels and 10 classes).
    """

    name: Literal["convnet"] = "convnet"
    depth: PositiveInt = Field(default=3, description="blocks, each halving the image; CIFAR-10: 3")
    width: PositiveInt = Field(default=128, description="channels of every block; the papers: 128")
    norm: Norm = Field(default="instance", description="normalisation after each convolution; the papers: instance")


class SmallNet(Settings):
    """A small convolutional network for images of about 8x8 pixels, fast on one CPU thread.

    Two 3x3 convolutions that each halve the image, with norm and ReLU, then one hidden linear layer. The defaults
    have 70,186 weights for the demo's digits, and fit their mislabelled canaries within 30 to 40 epochs.
    """

    name: Literal["small-cnn"] = "small-cnn"
    width: PositiveInt = Field(
        default=32, description="channels of the first convolution; the second has twice as many"
    )
    hidden: PositiveInt = Field(default=192, description="units of the hidden layer, the features' dimension")
    norm: Norm = Field(default="batch", description="normalisation after each convolution")


class MLP(Settings):
    """A multilayer perceptron on the pixels: hidden layers with ReLU, then linear."""

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[Sizes, Field(min_length=1)] = Field(default=(256, 256), description="units of each hidden layer")


ModelSettings = Annotated[ResNet | WideResNet | ConvNet | SmallNet | MLP, Field(discriminator="name")]
"""Any classifier, chosen by ``name``."""
