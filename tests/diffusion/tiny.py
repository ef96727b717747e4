"""A Stable Diffusion of a hundred thousand random weights, laid out as version 1.5 on the hub: no network is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

CLASSES = tuple(map(str, range(10)))
TOKENS = 20


def save(folder: Path, *, prediction: str = "epsilon", seed: int = 0) -> Path:
    """Write the model and return its folder.

    Args:
        folder: where to; it is made.
        prediction: what the U-Net is said to predict.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        unet, vae = _unet(), _vae()
        vocabulary = _save_tokenizer(folder / "tokenizer")
        encoder = _text_encoder(vocabulary)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
    _rename_as_in_2022(folder)
    _scheduler(prediction).save_pretrained(folder / "scheduler")
    _write(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    return folder


def change(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    _write(file, {**json.loads(file.read_text()), **changes})


def _unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )


def _text_encoder(vocabulary: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def _save_tokenizer(folder: Path) -> int:
    """Write a byte-level vocabulary with the word `photo`; return its size."""
    printable = [chr(byte) for byte in range(33, 256) if byte not in (*range(127, 161), 173)]
    words = [*printable, *(f"{one}</w>" for one in printable), "ph", "pho", "to</w>", "photo</w>"]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    _write(folder / "vocab.json", {word: number for number, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\np h\nph o\nt o</w>\npho to</w>\n")
    special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **special},
    )
    return len(words)


def _scheduler(prediction: str) -> Any:
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def _rename_as_in_2022(folder: Path) -> None:
    """Give weights the names that version 1.5 has, which the libraries have to translate."""
    from safetensors.numpy import load_file, save_file

    file = folder / "text_encoder/model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": one for name, one in load_file(file).items()}
    save_file({**weights, "text_model.embeddings.position_ids": np.arange(TOKENS)[None]}, file, {"format": "pt"})
    file, former = folder / "vae/diffusion_pytorch_model.safetensors", {}
    for name, one in load_file(file).items():
        for now, then in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
            name = name.replace(f"attentions.0.{now}", f"attentions.0.{then}")
        former[name] = one
    save_file(former, file, {"format": "pt"})


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))
