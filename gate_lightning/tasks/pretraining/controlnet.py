"""Training of a ControlNet for a frozen U-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny.architecture import build_controlnet, write_folder
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.denoising import TRAINED, DenoisingTask, Weighting
from gate_lightning.utils.commands import override

__all__ = ["ControlNetTask"]


class ControlNetTask(DenoisingTask):
    """Denoising with the residuals of a trainable ControlNet; U-Net and text encoder are frozen.

    Args:
        backbone: the model that is to be steered.
        drop_prompt: share of samples trained without words, so that the control alone must suffice (ControlNet, §3.3).
        optimizer, scheduler, loss_weighting, plain_attention, seed: see `DenoisingTask`.
    """

    def __init__(
        self,
        backbone: UNetBackbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        *,
        drop_prompt: float = 0.5,
        loss_weighting: Weighting = "balanced",
        plain_attention: bool = True,
        seed: int = 0,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # its first layers start random
            backbone.add_controlnet(TRAINED, build_controlnet(backbone.unet, backbone.latent_stride))
        super().__init__(backbone, optimizer, scheduler, loss_weighting, plain_attention, seed)
        self.controlnet.requires_grad_(True)
        self.drop_prompt = drop_prompt

    @property
    def controlnet(self) -> Any:
        """The part in training."""
        return self.backbone.get_submodule(f"controlnets.{TRAINED}")

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        """Weighted error at random timesteps, with the control."""
        self._require_control(batch)
        generator = self.generator("training", batch_idx)
        noisy, timesteps, target = self.noised(batch, generator)
        dropped = (torch.rand(len(batch), generator=generator) < self.drop_prompt).tolist()
        captions = ["" if without else text for without, text in zip(dropped, batch.captions, strict=True)]
        return self.weighted(self.error(noisy, timesteps, target, captions, batch.control_images), timesteps)

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        """Error at fixed noise with the control, without it, and with another image's."""
        control_images = self._require_control(batch)
        noised = self.noised(batch, self.generator("validation", batch_idx))
        wrong = control_images.roll(1, dims=0)
        for name, control in {"": control_images, "_without_control": None, "_wrong_control": wrong}.items():
            error = self.error(*noised, batch.captions, control).mean()
            self.log(f"val/error{name}", error, sync_dist=True, batch_size=len(batch))

    @staticmethod
    def _require_control(batch: CaptionedBatch) -> Tensor:
        if batch.control_images is None:
            raise ConfigError(
                "the images of this data set come without control images; choose dataset=captioned_controls (edges of "
                "your own images, or dataset.control_folder=<folder>) or scene_controls"
            )
        return batch.control_images

    def export(self, folder: Path) -> None:
        """Write ``controlnet/``, a ControlNet's folder as diffusers writes it, in half precision."""
        write_folder(folder, controlnet=self.controlnet)

    def usage(self, folder: Path) -> str:
        """The folder, and the key that takes it."""
        taken = override("backbone.controlnets.canny", (folder / "controlnet").resolve())
        return (
            f"ControlNet: {folder / 'controlnet'}\n  to steer with it: python train.py techniques=controlnet {taken} "
            "(other control images than edges: any name in place of canny, technique.controlnet.name=<name> "
            "technique.controlnet.folder=<folder>)"
        )
