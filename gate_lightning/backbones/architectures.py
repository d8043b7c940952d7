"""Architectures that can be built without any file, with random weights: for tests, dry runs and cost estimates."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones import tiny
from gate_lightning.backbones.tiny_tokenizer import build_tokenizer
from gate_lightning.backbones.unet import UNetBackbone
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Identity

__all__ = ["ARCHITECTURES", "build_random_backbone"]

Parts = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTokenizer]

_SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
_SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_SD_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}
_CLIPS: dict[str, dict[str, Any]] = {
    "sd15": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "sd21": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
    },
}
_PREDICTIONS = {"tiny": "epsilon", "sd15": "epsilon", "sd21": "v_prediction"}
_CLIP_TOKENS = 77

#: what ``weights=random`` can build.
ARCHITECTURES = tuple(_PREDICTIONS)


def build_random_backbone(architecture: str = "tiny", seed: int = 0, controlnet: bool = True) -> UNetBackbone:
    """A backbone of a known architecture with random weights.

    Its tokenizer knows single bytes (and the tiny model's few words) only, so the text encoder's vocabulary is smaller
    than the released one's; everything else has the real sizes.

    Args:
        architecture: "tiny", "sd15" or "sd21".
        seed: of the weights.
        controlnet: add a ControlNet named "canny" whose zero convolutions are random too, so that it does something.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"architecture {architecture!r}: expected one of {', '.join(ARCHITECTURES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae, text_encoder, tokenizer = _tiny() if architecture == "tiny" else _stable_diffusion(architecture)
        control = _random_controlnet(unet, vae) if controlnet else None
    identity = Identity(f"random-{architecture}", str(seed), _parameters_digest(unet, vae, text_encoder))
    schedule = {**_SD_SCHEDULE, "prediction_type": _PREDICTIONS[architecture]}
    backbone = UNetBackbone(unet, vae, text_encoder, tokenizer, schedule, identity)
    if control is not None:
        backbone.add_controlnet("canny", control)
    return backbone


def _tiny() -> Parts:
    tokenizer = build_tokenizer(("a", "of", "on", "photo", "red", "blue", "circle", "house", "tree", "grass"))
    return tiny.build_unet(), tiny.build_autoencoder(), tiny.build_text_encoder(tokenizer), tokenizer


def _stable_diffusion(architecture: str) -> Parts:
    tokenizer = build_tokenizer(())
    tokenizer.model_max_length = _CLIP_TOKENS
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=_CLIP_TOKENS, **marks, **_CLIPS[architecture]
    )
    return UNet2DConditionModel(**_SD_UNETS[architecture]), AutoencoderKL(**_SD_VAE), CLIPTextModel(text), tokenizer


def _random_controlnet(unet: UNet2DConditionModel, vae: AutoencoderKL) -> ControlNetModel:
    channels = (16, 32, 96, 256)[: len(vae.config.block_out_channels)]
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    zero_convolutions = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in [*zero_convolutions, controlnet.controlnet_cond_embedding.conv_out]:
        convolution.reset_parameters()
    return controlnet


def _parameters_digest(*modules: nn.Module) -> str:
    # name, shape and first values: enough to tell seeds and architectures apart, cheap for a billion parameters
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().flatten()[:64].float().numpy().tobytes())
    return digest.hexdigest()
