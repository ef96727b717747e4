"""Which classifier to train: one typed block a family, told apart by ``name``. Imports no torch.

``coalmine.models.build.build`` makes the network from these settings.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from coalmine.settings import Settings

Norm = Literal["batch", "group", "instance", "none"]
"""Normalisation layers, all with a learned scale and offset.

``batch``: batch norm with running statistics (eps 1e-5, momentum 0.1). ``group``: group norm with 16 groups, or the
most below 16 that divide the channels; no sample sees another, as DP-SGD needs. ``instance``: one group a channel.
"""

Order = Literal["norm-relu", "relu-norm"]
"""What stands between convolutions. ``norm-relu``: ``relu(norm(x))``. ``relu-norm``: ``norm(relu(x))``."""

Initialisation = Literal["uniform", "normal", "truncated-normal"]
"""How the weights of convolutions and linear layers are drawn.

``uniform``: weights and biases in +-1/sqrt(fan-in), PyTorch's default and so what the public code of the protocol and
its predecessor trains undefended models from. The others have biases 0 and weights of mean 0 and standard deviation
1/sqrt(fan-in). ``normal``: not truncated. ``truncated-normal``: a normal variable cut at two of its standard
deviations, which is made wider so that 1/sqrt(fan-in) is the standard deviation after the cut (which then stands at
+-2.27 of these), as by haiku's ``VarianceScaling``.
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
    (2,748,890 weights with 3 channels and 10 classes). The audit protocol's predecessor, where it trains without
    DP-SGD, has biases in its convolutions and halves the image in the second convolution of a block: ``bias: true,
    downsample: second`` (2,751,146 weights).

    For DP-SGD, two more forms, both with ``norm: group, bias: true, order: relu-norm``:

    - the predecessor's (Aerni, Zhang & Tramèr, CCS 2024; ``src/models.py`` with ``swap_order`` and ``custom_init``):
      ``downsample: second, initialisation: normal`` (2,751,562 weights: the projections' norms add 416). Its
      ``trunc_normal_`` is cut at +-2, eight standard deviations or more, and so a normal in effect. The same with
      ``downsample: first`` is the network of Sander, Stock & Sablayrolles, "TAN Without a Burn" (ICML 2023).
    - De et al.'s, "Unlocking High-Accuracy Differentially Private Image Classification through Scale" (2022), by their
      public code jax_privacy: ``weight_standardisation: true, initialisation: truncated-normal`` (2,753,818 weights,
      2,256 of them gains; with ``depth: 40`` their WRN-40-4, 8,961,306 weights). Three things of theirs are not kept:
      their strided 3x3 convolutions pad on the right and below only, their convolutions' raw weights are normal
      without truncation, and with ``widen: 1`` they project in the first stage, too.
    """

    name: Literal["wide-resnet"] = "wide-resnet"
    depth: int = Field(default=16, ge=10, description="layers, 6 n + 4 for n blocks a stage; WRN-16-4: 16")
    widen: PositiveInt = Field(
        default=4, description="widening factor of the stages' 16, 32 and 64 channels; WRN-16-4: 4"
    )
    norm: Norm = Field(
        default="batch", description="normalisation beside each activation; the paper: batch, DP-SGD: group"
    )
    bias: bool = Field(default=False, description="biases in the convolutions; the paper: false, the predecessor: true")
    downsample: Literal["first", "second"] = Field(
        default="first",
        description="which 3x3 convolution of a block has the stride; the paper: first, the predecessor: second",
    )
    weight_standardisation: bool = Field(
        default=False,
        description="standardise each convolution's kernels, with learned gains (norm: group or none); De et al.: true",
    )
    order: Order = Field(
        default="norm-relu",
        description="of norm and ReLU; relu-norm has a norm of its own before each projection; DP-SGD: relu-norm",
    )
    initialisation: Initialisation = Field(
        default="uniform",
        description="distribution of the first weights; predecessor's DP-SGD: normal, De et al.: truncated-normal",
    )

    @field_validator("depth")
    @classmethod
    def _has_whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"a wide residual network has 6 n + 4 layers (10, 16, 22, 28, 40, ...), not {depth}")
        return depth

    @model_validator(mode="after")
    def _standardises_what_no_norm_undoes(self) -> WideResNet:
        if self.weight_standardisation and self.norm in ("batch", "instance"):
            raise ValueError(
                f"weight_standardisation with {self.norm} norm, which sets the scale of each channel itself, is not "
                "supported; use norm: group or norm: none, or leave weight_standardisation out"
            )
        return self

    @model_validator(mode="after")
    def _sees_the_image(self) -> WideResNet:
        if self.order == "relu-norm" and self.norm == "instance":
            raise ValueError(
                "order: relu-norm with instance norm ends in feature maps of mean zero, so that pooling them gives the "
                "same for every image; use norm: group or order: norm-relu"
            )
        return self


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
