"""Tiny random transformer backbones: what the contract must hold for DiT-like denoisers before the package has any.

Three architectures of diffusers with what is particular about each: SD 3 (flow matching, text and image as a tuple,
residuals between blocks), Flux (packed latents, text and image in one sequence, told σ), PixArt (noise prediction with
a variance, masked prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import DiffusionSchedule, FlowSchedule, NoiseSchedule
from gate_lightning.backbones.specs import Adapters, LayerSpec, PromptEmbeds, Residuals
from gate_lightning.structures import Identity

TRANSFORMERS = ("sd3_like", "flux_like", "pixart_like")
TOKENS, WIDTH, POOLED = 6, 32, 24
STRIDE = 8  # pixels per token: 4 of the autoencoder, 2 of the patches


class TransformerBackbone(Backbone):
    """What the three have in common: an autoencoder whose latents are cut into patches of 2 × 2, a toy text encoder."""

    def __init__(self, transformer: nn.Module, schedule: NoiseSchedule, layers: dict[str, LayerSpec]) -> None:
        super().__init__()
        self.transformer, self.schedule, self.layers = transformer, schedule, layers
        self.vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
        )
        self.words = nn.Embedding(256, WIDTH)
        self.family = type(self).__name__
        self.identity = Identity(self.family, "", "random")
        self.supports = frozenset({"prompt"})
        self.latent_channels, self.latent_stride = 4, 4
        self.size_multiple = self.minimum_size = STRIDE
        self.native_size = 64
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        return self.transformer

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(μ - shift) · scale and σ · scale, as SD 3 has it."""
        posterior = self.vae.encode(images.to(self.dtype)).latent_dist
        return (posterior.mean - 0.06) * 1.53, posterior.std * 1.53

    def encode_text(self, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """A vector per letter, padded to 6 letters; pooled vectors and a mask."""
        letters = torch.tensor([[*prompt.encode()[:TOKENS].ljust(TOKENS, b"\0")] for prompt in prompts])
        hidden = self.words(letters)
        return PromptEmbeds(hidden, hidden.mean(dim=1)[:, :POOLED], letters > 0)


class SD3Like(TransformerBackbone):
    """Blocks return (text, image); a ControlNet adds to the image stream between blocks."""

    def __init__(self) -> None:
        blocks: dict[str, LayerSpec] = {}
        for index in range(3):
            path = f"transformer_blocks.{index}"
            blocks[f"block{index}-in"] = LayerSpec(path, "input_tokens", 32, STRIDE, element="hidden_states")
            blocks[f"block{index}-attn"] = LayerSpec(f"{path}.attn", "tokens", 32, STRIDE)
            blocks[f"block{index}-ff-in"] = LayerSpec(f"{path}.ff", "input_tokens", 32, STRIDE)
            blocks[f"block{index}-out"] = LayerSpec(path, "tokens", 32, STRIDE, element=1)
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pooled_projection_dim=POOLED,
            out_channels=4,
            pos_embed_max_size=32,
        )
        super().__init__(transformer, FlowSchedule(shift=3.0), blocks)
        self.supports = frozenset({"prompt", "controlnet"})
        self.controls = nn.ModuleList(nn.Linear(3, 32) for _ in range(2))  # of the first two blocks
        self.freeze()

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        told = torch.full((len(latents),), self.schedule.time_input(timestep))
        between = None
        if residuals is not None:
            zero = torch.zeros(())
            between = [residuals.get(f"transformer_blocks.{index}", zero) for index in range(3)]
        prediction: Tensor = self.transformer(
            latents,
            prompt_embeds.hidden,
            prompt_embeds.pooled,
            told,
            block_controlnet_hidden_states=between,
            return_dict=False,
        )[0]
        return prediction

    def require_controlnet(self, name: str) -> None:
        assert name == "canny"

    def control_residuals(
        self, name: str, latents: Tensor, timestep: int, prompt_embeds: PromptEmbeds, control_images: Tensor
    ) -> Residuals:
        pooled = F.avg_pool2d(control_images, STRIDE).flatten(2).transpose(1, 2)
        return {f"transformer_blocks.{index}": control(pooled) for index, control in enumerate(self.controls)}


class FluxLike(TransformerBackbone):
    """Latents packed into a sequence outside the network; single blocks see text and image as one sequence."""

    def __init__(self) -> None:
        layers = {"double-out": LayerSpec("transformer_blocks.0", "tokens", 32, STRIDE, element=1)}
        for index in range(2):
            path = f"single_transformer_blocks.{index}"
            layers[f"single{index}-norm"] = LayerSpec(f"{path}.norm", "tokens", 32, STRIDE, offset=None)
            layers[f"single{index}-out"] = LayerSpec(path, "tokens", 32, STRIDE, element=1)
        transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=POOLED,
            axes_dims_rope=(4, 4, 8),
        )
        super().__init__(transformer, FlowSchedule("sigma"), layers)

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        rows, columns = (side // 2 for side in latents.shape[-2:])
        positions = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).float()
        packed: Tensor = self.transformer(
            F.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2),
            prompt_embeds.hidden,
            prompt_embeds.pooled,
            torch.full((len(latents),), self.schedule.time_input(timestep)),
            positions,
            torch.zeros(TOKENS, 3),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(packed.transpose(1, 2).unflatten(2, (rows, columns)), 2)


class PixArtLike(TransformerBackbone):
    """Noise prediction with a learned variance beside it; cross-attention masks the padding of prompts."""

    def __init__(self) -> None:
        layers: dict[str, LayerSpec] = {}
        for index in range(2):
            path = f"transformer_blocks.{index}"
            layers[f"block{index}-cross-q"] = LayerSpec(f"{path}.attn2.to_q", "tokens", 24, STRIDE)
            layers[f"block{index}-out"] = LayerSpec(path, "tokens", 24, STRIDE)
        transformer = PixArtTransformer2DModel(
            sample_size=16,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=WIDTH,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
        )
        schedule: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        super().__init__(transformer, DiffusionSchedule(schedule), layers)

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        prediction: Tensor = self.transformer(
            latents,
            prompt_embeds.hidden,
            torch.full((len(latents),), timestep),
            encoder_attention_mask=prompt_embeds.mask,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return prediction[:, :4]


def build_transformer(member: str, seed: int = 0) -> TransformerBackbone:
    """A fresh backbone of TRANSFORMERS whose modulations and text projections are large enough to matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"sd3_like": SD3Like, "flux_like": FluxLike, "pixart_like": PixArtLike}[member]()
