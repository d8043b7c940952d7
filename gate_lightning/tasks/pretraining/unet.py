"""Training of a latent text-to-image U-Net together with its text encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny.architecture import build_scheduler, write_folder
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.tasks.pretraining.denoising import DenoisingTask, Weighting

__all__ = ["UNetTask"]


class UNetTask(DenoisingTask):
    """Denoising with all weights of U-Net and text encoder trainable.

    Args:
        backbone: ``backbone=tiny_untrained`` starts from random weights; others are trained further.
        optimizer, scheduler, loss_weighting, plain_attention, seed: see `DenoisingTask`.
    """

    trains_text = True

    def __init__(
        self,
        backbone: UNetBackbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        *,
        loss_weighting: Weighting = "balanced",
        plain_attention: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, scheduler, loss_weighting, plain_attention, seed)
        backbone.unet.requires_grad_(True)
        backbone.text_encoder.requires_grad_(True)

    def frozen_description(self) -> dict[str, Any]:
        """Nothing that is read is frozen."""
        return {}

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        """Error at fixed noise: mean, by quarters of the timesteps, and how much another image's caption adds."""
        noisy, timesteps, target = self.noised(batch, self.generator("validation", batch_idx))
        error = self.error(noisy, timesteps, target, batch.captions)
        wrong = self.error(noisy, timesteps, target, [*batch.captions[-1:], *batch.captions[:-1]])
        values = {"val/error": error.mean(), "val/wrong_caption_adds": (wrong - error).mean()}
        quarter = torch.div(timesteps * 4, len(self.weights), rounding_mode="floor")
        values |= {f"val/error_t{q}": error[quarter == q].mean() for q in range(4) if bool((quarter == q).any())}
        self.log_dict(values, sync_dist=True, batch_size=len(batch))

    def export(self, folder: Path) -> None:
        """Write ``unet/ text_encoder/ tokenizer/ scheduler/`` and the pipeline's index."""
        parts = {name: getattr(self.backbone, name) for name in ("unet", "text_encoder", "tokenizer")}
        write_folder(folder, **parts, scheduler=build_scheduler())
