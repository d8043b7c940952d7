"""A small random network of SDXL's block structure, and the pipeline of diffusers made of the same parts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.structures import Identity

WORDS = ("a", "of", "photo", "red", "circle", "house")
SCHEDULE: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def xl_like(seed: int = 0, numbers: int = 6, force_upcast: bool = True, depth: int = 3, **own: Any) -> SDXLBackbone:
    """Three levels (no attention; 2 and ``depth`` transformer blocks), two text encoders of unequal width and marks."""
    first, second = build_tokenizer(WORDS), build_tokenizer(WORDS)
    second.pad_token = "!"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, depth),
            attention_head_dim=(1, 2, 4),
            cross_attention_dim=24 + 32,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=8 * numbers + 20,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=8,
            scaling_factor=0.13025,
            force_upcast=force_upcast,
        )
        text = CLIPTextModel(_text(first, 24, 2, "quick_gelu"))
        text_2 = CLIPTextModelWithProjection(_text(second, 32, 3, "gelu"))
    return SDXLBackbone(
        unet, vae, text, text_2, first, second, DiffusionSchedule(SCHEDULE), Identity("xl_like", "", str(seed)), **own
    )


def xl_pipeline(backbone: SDXLBackbone, **own: Any) -> StableDiffusionXLImg2ImgPipeline:
    """The oracle: diffusers' pipeline around the very same modules."""
    return StableDiffusionXLImg2ImgPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        text_encoder_2=backbone.text_encoder_2,
        tokenizer=backbone.tokenizer,
        tokenizer_2=backbone.tokenizer_2,
        unet=backbone.unet,
        scheduler=EulerDiscreteScheduler.from_config(SCHEDULE),
        add_watermarker=False,
        **own,
    )


def _text(tokenizer: Any, width: int, layers: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=40,
        hidden_act=activation,
        projection_dim=20,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
