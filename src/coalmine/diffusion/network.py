"""The U-Net of ``diffusers`` as Coalmine uses it: images, times and labels in, one tensor out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from coalmine.diffusion.settings import LoRA, UNet

ADAPTED = r".*\.(conv1|conv2|conv_shortcut|time_emb_proj|to_q|to_k|to_v|to_out\.0)"
"""The weights that LoRA changes: of residual blocks and of attention."""


class ConditionalUNet(nn.Module):
    """A U-Net that is told the noise level and the class of each image.

    Args:
        own: architecture.
        channels: of an image.
        size: its height and width in pixels, divisible by 2 as often as the network halves it.
        classes: number of classes; one more label, ``classes`` itself, stands for no class.
        generator: CPU generator of the weights; None leaves them as PyTorch made them, to be overwritten.
    """

    def __init__(
        self, own: UNet, channels: int, size: int, classes: int, generator: torch.Generator | None = None
    ) -> None:
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__()
        levels = range(len(own.multipliers))
        self.no_class = classes
        # PyTorch draws first weights from its global generator only.
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0 if generator is None else int(torch.randint(2**62, (), generator=generator)))
            self.unet = UNet2DModel(
                sample_size=size,
                in_channels=channels,
                out_channels=channels,
                layers_per_block=own.blocks,
                block_out_channels=tuple(own.width * multiplier for multiplier in own.multipliers),
                down_block_types=tuple("AttnDownBlock2D" if one in own.attention else "DownBlock2D" for one in levels),
                up_block_types=tuple(
                    "AttnUpBlock2D" if one in own.attention else "UpBlock2D" for one in reversed(levels)
                ),
                add_attention=bool(own.attention),
                norm_num_groups=math.gcd(32, own.width // 2),
                attention_head_dim=math.gcd(8, own.width),
                dropout=own.dropout,
                num_class_embeds=classes + 1,
            )

    def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return float ``(n, channel, height, width)``.

        Args:
            x: ``(n, channel, height, width)``.
            time: float ``(n,)``, whatever the objective makes of the noise level.
            labels: int64 ``(n,)``, from 0 to ``classes``.
        """
        output: torch.Tensor = self.unet(x, time, labels, return_dict=False)[0]
        return output

    def take(self, state: Mapping[str, torch.Tensor], *, keep_classes: bool) -> None:
        """Take the weights of a pre-trained network.

        Args:
            state: of a network that may know other classes.
            keep_classes: take its class embedding, too; else only its `no class`, and the classes keep the random
                vectors that they have: with equal ones, the network would first have to tell them apart.
        """
        name = "unet.class_embedding.weight"
        own = self.state_dict()[name].clone()
        own[-1] = state[name][-1]
        self.load_state_dict(dict(state) if keep_classes else {**state, name: own})


def adapt(network: nn.Module, own: LoRA, generator: torch.Generator) -> nn.Module:
    """Return the network with low-rank changes of its weights, 0 at first, which alone (and the classes) are trained.

    Args:
        network: a :class:`ConditionalUNet`; it is changed.
        own: rank and scale.
        generator: CPU generator of the changes' first factors.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=own.rank, lora_alpha=own.scale * own.rank, target_modules=ADAPTED)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        adapted: nn.Module = get_peft_model(network, config)
    for name, parameter in adapted.named_parameters():
        if "class_embedding" in name:
            parameter.requires_grad_()
    return adapted


def merged(network: nn.Module) -> nn.Module:
    """Return the plain network, low-rank changes added to the weights that they change."""
    merge = getattr(network, "merge_and_unload", None)
    return merge() if merge else network
