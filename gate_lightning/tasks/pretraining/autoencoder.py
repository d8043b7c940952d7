"""Training of the latent autoencoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gate_lightning.backbones.tiny.architecture import build_autoencoder, fold_latent_statistics, write_folder
from gate_lightning.tasks.pretraining.optimisation import OptimisedModule

log = logging.getLogger(__name__)


class AutoencoderTask(OptimisedModule):
    """Reconstruction (L1 + mean square) plus a faint Kullback-Leibler term.

    Args:
        autoencoder: what to train; the tiny one by default.
        kl_weight: weight of the summed divergence per image.
        fold_batches: validation batches whose latents give the channel statistics folded in at export.
        optimisation: `OptimisedModule`'s arguments.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL | None = None,
        kl_weight: float = 1e-6,
        fold_batches: int = 16,
        **optimisation: Any,
    ) -> None:
        super().__init__(**{"lr": 3e-3, "weight_decay": 1e-4, "warmup": 100, "decay_share": 0.6, **optimisation})
        self.autoencoder = autoencoder or build_autoencoder()
        self.kl_weight = kl_weight
        self.fold_batches = fold_batches

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of images ``batch["pixels"]`` (B, 3, H, W) in [-1, 1]."""
        pixels = batch["pixels"]
        posterior = self.autoencoder.encode(pixels).latent_dist
        noise = self.noise_like(posterior.mean, self.step_generator())
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - pixels
        square = error.square().mean()
        divergence = posterior.kl().mean()
        self.log_dict({"train/mse": square, "train/kl": divergence}, prog_bar=True)
        return error.abs().mean() + square + self.kl_weight * divergence

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Mean square error of the reconstruction from the posterior mean, per domain (0 source, 1 target)."""
        pixels = batch["pixels"]
        decoded = self.autoencoder.decode(self.autoencoder.encode(pixels).latent_dist.mean).sample
        error = (decoded.float() - pixels).square().mean(dim=(1, 2, 3))
        for name, index in (("source", 0), ("target", 1)):
            chosen = error[batch["domain"] == index]
            if len(chosen):
                self.log(f"val/mse_{name}", chosen.mean(), batch_size=len(chosen), sync_dist=True)

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Fold the latent statistics of source-domain validation images in and write ``vae/``."""
        self.autoencoder.eval()
        vae = build_autoencoder() if self.autoencoder.config.sample_size == 64 else None
        vae = vae or AutoencoderKL.from_config(self.autoencoder.config)
        vae.load_state_dict({k: v.cpu() for k, v in self.autoencoder.state_dict().items()})
        vae.eval()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        latents: list[Tensor] = []
        for i, batch in enumerate(data.val_dataloader()):
            if i == self.fold_batches:
                break
            latents.append(vae.encode(batch["pixels"][batch["domain"] == 0]).latent_dist.mean)
        values = torch.cat(latents).transpose(0, 1).flatten(1)
        fold_latent_statistics(vae, values.mean(dim=1), values.std(dim=1))
        log.info("Folded latent mean %s and std %s.", values.mean(dim=1).tolist(), values.std(dim=1).tolist())
        write_folder(folder, vae=vae)
