"""Small random backbones and LoRA files for tests; imported by name (tests/ is on the path through conftest.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from gate_lightning.backbones.adm.loading import load_adm_backbone
from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.raw_pixels import PixelBackbone
from gate_lightning.backbones.stable_diffusion.architectures import build_random_backbone
from gate_lightning.backbones.stable_diffusion.cleandift import load_cleandift_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.backbones.vision.loading import load_vision_backbone
from gate_lightning.structures import Conditions, Identity
from tests.support.xl_networks import xl_like

VISION = ("dinov2_tiny", "dinov3_tiny")
#: besides these, ``sd2_deep``: sd2_like with as many repeats as the released network
MEMBERS = ("tiny", "one_repeat", "sd2_like", "xl_like", "pixels", "adm", "cleandift", *VISION)
WORDS = ("a", "of", "photo", "red", "circle", "house")


def build(member: str, seed: int = 0) -> Backbone:
    """A fresh backbone: tiny, of other depths, in the style of SD 2, SDXL, ADM, CleanDIFT or DINO, or raw pixels."""
    if member == "pixels":
        return PixelBackbone()
    if member == "xl_like":
        return xl_like(seed)
    if member == "adm":
        return load_adm_backbone("random", architecture="adm_tiny", seed=seed)
    if member in VISION:
        return load_vision_backbone("random", architecture=member, seed=seed)
    if member == "cleandift":
        return load_cleandift_backbone("random", base="", architecture="tiny", seed=seed)
    if member == "tiny":
        return build_random_backbone("tiny", seed)
    tokenizer = build_tokenizer(WORDS)
    schedule = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae = _one_repeat() if member == "one_repeat" else _sd2_like(2 if member == "sd2_deep" else 1)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=40,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        text_encoder = CLIPTextModel(text)
    schedule["prediction_type"] = "epsilon" if member == "one_repeat" else "v_prediction"
    return UNetBackbone(
        unet, vae, text_encoder, tokenizer, DiffusionSchedule(schedule), Identity(member, "", str(seed))
    )


def _one_repeat() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    cross = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        down_block_types=cross,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=8,
    ), _autoencoder((8, 8, 16))


def _sd2_like(repeats: int) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=repeats,
        transformer_layers_per_block=2,
        use_linear_projection=True,
        cross_attention_dim=32,
        attention_head_dim=(1, 2, 4, 4),
        norm_num_groups=8,
    ), _autoencoder((8, 8, 8, 8))


def _autoencoder(channels: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.18215,
    )


def random_images(count: int, height: int = 64, width: int = 96, seed: int = 7) -> Tensor:
    """(count, 3, height, width) in [-1, 1], smooth enough to have edges rather than speckle."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 8, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")


def conditions(count: int, **own: Any) -> Conditions:
    """Conditions with sample ids s0, s1, …"""
    return Conditions(tuple(f"s{index}" for index in range(count)), **own)


def adapted_layers(backbone: UNetBackbone) -> dict[str, nn.Module]:
    """Layers a test LoRA acts on, by name in diffusers format: linear, 3 × 3 and 1 × 1 convolution, text encoder."""
    kinds = (
        "to_q",
        "to_k",
        "to_out.0",
        "ff.net.0.proj",
        "conv1",
        "conv2",
        "proj_in",
        "time_emb_proj",
        "samplers.0.conv",
    )
    chosen: dict[str, nn.Module] = {}
    for path, module in backbone.unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and path.endswith(kinds):
            chosen[f"unet.{path}"] = module
    for path, module in backbone.text_encoder.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(("q_proj", "fc1")):
            chosen[f"text_encoder.text_model.{path}"] = module
    return chosen


def random_pairs(
    layers: dict[str, nn.Module], rank: int = 3, seed: int = 0, size: float = 0.05
) -> dict[str, tuple[Tensor, Tensor]]:
    """(down, up) for every layer, large enough to change features visibly."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, layer in layers.items():
        out, into, *kernel = layer.weight.shape
        down = torch.randn(rank, into, *kernel, generator=generator) * size
        up = torch.randn(out, rank, *([1] * len(kernel)), generator=generator) * size
        pairs[name] = (down, up)
    return pairs


def save_diffusers(path: Path, pairs: dict[str, tuple[Tensor, Tensor]]) -> Path:
    """The pairs as diffusers writes them (no alpha: strength 1)."""
    state = {}
    for name, (down, up) in pairs.items():
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = down, up
    save_file(state, path)
    return path


def save_kohya(path: Path, pairs: dict[str, tuple[Tensor, Tensor]], alpha: float) -> Path:
    """The pairs under kohya's names, with alpha."""
    state = {}
    for name, (down, up) in pairs.items():
        part, _, rest = name.partition(".")
        mangled = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + rest.replace(".", "_")
        state[f"{mangled}.lora_down.weight"], state[f"{mangled}.lora_up.weight"] = down, up
        state[f"{mangled}.alpha"] = torch.tensor(alpha)
    save_file(state, path)
    return path


@torch.no_grad()
def merge(layers: dict[str, nn.Module], pairs: dict[str, tuple[Tensor, Tensor]], strength: float) -> None:
    """Oracle: add strength · up · down to the weights themselves."""
    for name, (down, up) in pairs.items():
        delta = up.flatten(1).double() @ down.flatten(1).double()
        weight = layers[name].weight
        weight += (strength * delta).to(weight).reshape(weight.shape)


def steps(layers: Iterable[str]) -> list[str]:
    """Layers by their place in the computation: queries, keys and values of a block are made in any order.

    transformers 5.17 begins with the keys, 5.23 with the queries.
    """
    return [re.sub(r"-[qkv]$", "", layer) for layer in layers]


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 distance."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
