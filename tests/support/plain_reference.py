"""Features the plain way: diffusers' own modules, one branch at a time, ordinary forward hooks.

Nothing here uses this package's engine. That the procedure is the one of the released GATE and DIFT code is itself
tested against their outputs where these are at hand (tests/golden/test_reference.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.utils.seeding import keyed_noise

__all__ = ["LAYERS", "SCHEDULE", "Parts", "PlainReference", "reference_parts"]

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
#: layer id → module of diffusers' U-Net, written down by hand
LAYERS = {
    "down-level0-downsampler-out": "down_blocks.0.downsamplers.0",
    "mid-vit-out": "mid_block.attentions.0",
    "up-level0-upsampler-out": "up_blocks.0.upsamplers.0",
    "up-level1-upsampler-out": "up_blocks.1.upsamplers.0",
    "up-level2-upsampler-out": "up_blocks.2.upsamplers.0",
    "up-level3-repeat2-vit-out": "up_blocks.3.attentions.2",
    "up-level1-repeat2-res-out": "up_blocks.1.resnets.2",
    "up-level1-repeat1-vit-block0-cross-q": "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_q",
    "up-level2-repeat1-vit-block0-cross-q": "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q",
    "up-level3-repeat0-vit-block0-self-k": "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k",
}
_WORDS = ("a", "of", "photo", "red", "horse", "house")


@dataclass(frozen=True)
class Parts:
    """The networks of a Stable Diffusion pipeline with a ControlNet, in evaluation mode."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    controlnet: ControlNetModel


def reference_parts() -> Parts:
    """A small pipeline of Stable Diffusion's shape whose weights are keyed random numbers: the same on any machine."""
    tokenizer = build_tokenizer(_WORDS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    shape = {"block_out_channels": (16, 24, 32, 32), "layers_per_block": 2, "norm_num_groups": 8}
    crossed = {"cross_attention_dim": 32, "attention_head_dim": 4}
    parts = Parts(
        UNet2DConditionModel(sample_size=16, **shape, **crossed),
        AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=8,
        ),
        CLIPTextModel(text),
        tokenizer,
        ControlNetModel(conditioning_embedding_out_channels=(8, 8, 16, 16), **shape, **crossed),
    )
    for name in ("unet", "vae", "text_encoder", "controlnet"):
        _fill(getattr(parts, name), name)
    return parts


@torch.no_grad()
def _fill(module: nn.Module, key: str) -> None:
    """Weights of about unit gain, norms about 1, biases small: activations neither vanish nor explode."""
    for name, parameter in module.named_parameters():
        noise = keyed_noise(parameter.shape, "reference", key, name)
        if parameter.ndim > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            parameter.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    module.eval().requires_grad_(False)


class PlainReference:
    """Reads features as the field's code does: encode, sample the posterior, add noise, one pass, hooks.

    Args:
        parts: the networks.
        schedule: config of the noise schedule.
    """

    def __init__(self, parts: Parts, schedule: Mapping[str, object] = SCHEDULE) -> None:
        self.parts = parts
        self.alphas = DDPMScheduler.from_config(dict(schedule)).alphas_cumprod.double()

    @torch.no_grad()
    def features(
        self,
        images: Tensor,
        posterior_noise: Tensor,
        noise: Tensor,
        timestep: int,
        prompt: str,
        layers: Sequence[str],
        control: Tensor | None = None,
        paths: Mapping[str, str] = LAYERS,
    ) -> dict[str, Tensor]:
        """Layer id → (B, C, h, w).

        Args:
            images: (B, 3, H, W) in [-1, 1].
            posterior_noise, noise: (B, 4, h, w), of the autoencoder's sample and of the diffusion.
            timestep: the denoiser is told.
            prompt: of all images.
            layers: layer ids, keys of ``paths``.
            control: control images (B, 3, H, W) in [0, 1], or None for no ControlNet.
            paths: layer id → path of a module of the U-Net.
        """
        posterior = self.parts.vae.encode(images).latent_dist
        latents = (posterior.mean + posterior.std * posterior_noise) * self.parts.vae.config.scaling_factor
        alpha = self.alphas[timestep]
        latents = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).float()
        length = min(self.parts.tokenizer.model_max_length, self.parts.text_encoder.config.max_position_embeddings)
        tokens = self.parts.tokenizer(
            [prompt], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        embeds = self.parts.text_encoder(tokens.input_ids)[0].expand(len(images), -1, -1)
        extra = {}
        if control is not None:
            down, middle = self.parts.controlnet(
                latents, timestep, encoder_hidden_states=embeds, controlnet_cond=control, return_dict=False
            )
            extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:
                module = self.parts.unet.get_submodule(paths[layer])

                def keep(_: nn.Module, __: object, output: object, layer: str = layer) -> None:
                    value = output if isinstance(output, Tensor) else output[0]  # type: ignore[index]
                    found[layer] = value if value.ndim == 4 else _as_map(value, latents.shape[-2:])

                stack.callback(module.register_forward_hook(keep).remove)
            self.parts.unet(latents, timestep, encoder_hidden_states=embeds, **extra)
        return {layer: found[layer] for layer in layers}


def _as_map(tokens: Tensor, latent_size: Sequence[int]) -> Tensor:
    """(B, N, C) → (B, C, h, w), the grid being that of the latents at the level with N positions."""
    height, width = latent_size
    while height * width > tokens.shape[1]:
        height, width = -(-height // 2), -(-width // 2)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, width)
