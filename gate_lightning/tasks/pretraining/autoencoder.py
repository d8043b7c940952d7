"""Training of the latent autoencoder."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny.architecture import fold_latent_statistics, write_folder
from gate_lightning.data.pretraining.batches import LabelledBatch
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.pretraining.denoising import require_master_weights
from gate_lightning.utils.finite import check_outputs
from gate_lightning.utils.seeding import torch_generator

__all__ = ["AutoencoderTask"]

log = logging.getLogger(__name__)


class AutoencoderTask(BaseTask):
    """Reconstruction (L1 + mean square) plus a faint Kullback-Leibler term.

    Args:
        backbone: its autoencoder is trained; ``backbone=tiny_untrained`` starts from random weights.
        optimizer, scheduler: see `BaseTask`.
        kl_weight: weight of the summed divergence per image.
        fold_batches: validation batches whose latents give the channel statistics folded in at export.
        seed: of the latents drawn from the posterior.
    """

    frozen_parts = ("backbone",)
    trains_backbone = True
    batch_type = LabelledBatch
    shown = ("train/mse", "train/kl")

    def __init__(
        self,
        backbone: UNetBackbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        kl_weight: float = 1e-6,
        fold_batches: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler)
        require_master_weights(backbone)
        self.backbone, self.seed = backbone, seed
        backbone.vae.requires_grad_(True)
        self.kl_weight, self.fold_batches = kl_weight, fold_batches

    @property
    def autoencoder(self) -> Any:
        """The part in training."""
        return self.backbone.vae

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """Loss of the batch's images."""
        posterior = self.autoencoder.encode(batch.images).latent_dist
        generator = torch_generator("training", self.seed, self.current_epoch, batch_idx, self.global_rank)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - batch.images
        square = error.square().mean()
        divergence = posterior.kl().mean()
        self.log_dict({"train/mse": square, "train/kl": divergence}, batch_size=len(batch))
        return error.abs().mean() + square + self.kl_weight * divergence

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        """Mean square error of the reconstruction from the posterior mean, by domain (0 source, 1 target)."""
        decoded = self.autoencoder.decode(self.autoencoder.encode(batch.images).latent_dist.mean).sample
        check_outputs(decoded, "reconstructed images")
        error = (decoded.float() - batch.images).square().mean(dim=(1, 2, 3))
        for name, index in (("source", 0), ("target", 1)):
            chosen = error[batch.labels["domain"] == index]
            if len(chosen):
                self.log(f"val/mse_{name}", chosen.mean(), batch_size=len(chosen), sync_dist=True)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Fold the statistics of source-domain validation latents into the autoencoder and write ``vae/``."""
        vae = copy.deepcopy(self.autoencoder).cpu().eval()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        latents: list[Tensor] = []
        for _, batch in zip(range(self.fold_batches), data.val_dataloader(), strict=False):
            latents.append(vae.encode(batch.images[batch.labels["domain"] == 0]).latent_dist.mean)
        values = torch.cat(latents).transpose(0, 1).flatten(1)
        fold_latent_statistics(vae, values.mean(dim=1), values.std(dim=1))
        log.info("folded latent mean %s and std %s", values.mean(dim=1).tolist(), values.std(dim=1).tolist())
        write_folder(folder, vae=vae)
