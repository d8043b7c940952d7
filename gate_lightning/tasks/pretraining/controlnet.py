"""Training of a ControlNet for a frozen U-Net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from gate_lightning.backbones.tiny.architecture import MatmulAttention, build_controlnet, write_folder
from gate_lightning.tasks.pretraining.encoding import model_folder
from gate_lightning.tasks.pretraining.objective import (
    Weighting,
    diffuse,
    error_per_sample,
    loss_weights,
    spread_timesteps,
)
from gate_lightning.tasks.pretraining.optimisation import OptimisedModule


class ControlNetTask(OptimisedModule):
    """Noise prediction with the residuals of a ControlNet; U-Net and text encoder do not change.

    Args:
        folder: model folder with ``unet/ text_encoder/ scheduler/``.
        loss_weighting: see `loss_weights`.
        drop_prompt: share of samples trained without words, so that the control alone must suffice.
        optimisation: `OptimisedModule`'s arguments.
    """

    weights: Tensor

    def __init__(
        self,
        folder: str | Path,
        loss_weighting: Weighting = "balanced",
        drop_prompt: float = 0.2,
        **optimisation: Any,
    ) -> None:
        super().__init__(**{"lr": 5e-4, "warmup": 100, **optimisation})
        folder = model_folder(folder)
        load: dict[str, Any] = {"torch_dtype": torch.float32, "local_files_only": True}
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **load)
        self.text_encoder = CLIPTextModel.from_pretrained(
            folder, subfolder="text_encoder", dtype=torch.float32, local_files_only=True
        )
        self.noise_scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        self.controlnet = build_controlnet(self.unet)
        self.unet.requires_grad_(False).eval()
        self.text_encoder.requires_grad_(False).eval()
        self.unet.set_attn_processor(MatmulAttention())
        self.controlnet.set_attn_processor(MatmulAttention())
        self.drop_prompt = drop_prompt
        self.register_buffer(
            "weights", loss_weights(self.noise_scheduler.alphas_cumprod, loss_weighting), persistent=False
        )

    def predict(self, noisy: Tensor, timesteps: Tensor, prompts: Tensor, control: Tensor | None) -> Tensor:
        """Predicted noise (B, 4, h, w); ``control`` (B, 3, H, W) in [0, 1], or None for the U-Net alone."""
        if control is None:
            return self.unet(noisy, timesteps, prompts).sample
        down, mid = self.controlnet(noisy, timesteps, prompts, control, return_dict=False)
        return self.unet(
            noisy, timesteps, prompts, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted noise error of ``latents`` (B, 4, h, w) given ``tokens`` (B, L) and ``control`` (B, 3, H, W)."""
        latents, generator = batch["latents"], self.step_generator()
        timesteps = spread_timesteps(len(latents), len(self.weights), generator).to(latents.device)
        noisy, target = diffuse(self.noise_scheduler, latents, self.noise_like(latents, generator), timesteps)
        tokens = self._without_words(batch["tokens"], torch.rand(len(latents), generator=generator) < self.drop_prompt)
        with torch.no_grad():
            prompts = self.text_encoder(tokens)[0]
        error = error_per_sample(self.predict(noisy, timesteps, prompts, batch["control"]), target)
        self.log("train/eps_mse", error.mean(), prog_bar=True)
        return (self.weights[timesteps] * error).mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Noise error with the control, without it, and with another image's, at fixed noise."""
        latents, control = batch["latents"], batch["control"]
        generator = torch.Generator().manual_seed(1_000 * batch_idx + self.global_rank)
        timesteps = spread_timesteps(len(latents), len(self.weights), generator).to(latents.device)
        noisy, target = diffuse(self.noise_scheduler, latents, self.noise_like(latents, generator), timesteps)
        prompts = self.text_encoder(batch["tokens"])[0]
        cases = {"": control, "_without_control": None, "_wrong_control": control.roll(1, dims=0)}
        for name, given in cases.items():
            error = error_per_sample(self.predict(noisy, timesteps, prompts, given), target).mean()
            self.log(f"val/eps_mse{name}", error, sync_dist=True, batch_size=len(latents))

    def export(self, folder: Path) -> None:
        """Write ``controlnet/``."""
        write_folder(folder, controlnet=self.controlnet)

    def _without_words(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        blank = torch.full_like(tokens, self.text_encoder.config.pad_token_id)
        blank[:, 0] = self.text_encoder.config.bos_token_id
        return torch.where(chosen.to(tokens.device)[:, None], blank, tokens)
