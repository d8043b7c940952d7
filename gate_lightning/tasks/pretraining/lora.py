"""Training of low-rank adapters for a frozen U-Net (and, on request, its text encoders)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from torch.optim import Optimizer

from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.adapter_files import write_diffusers, write_kohya
from gate_lightning.tasks.pretraining.denoising import DenoisingTask, Weighting
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.commands import override

__all__ = ["TARGETS", "LoraTask", "lora_config", "target_names"]

log = logging.getLogger(__name__)

#: groups of module names; "attention" alone is plain LoRA, all of them is what kohya's tools call LoCon
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projections": ("proj_in", "proj_out"),
    "convolutions": ("conv1", "conv2"),
}
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class LoraTask(DenoisingTask):
    """Denoising with trainable low-rank adapters, on images with captions.

    Args:
        backbone: a model of the Stable Diffusion family: SD 1.x, SD 2.x, SDXL, or the embedded one.
        rank: of the adapters.
        alpha: their scale times the rank; None is half the rank, GATE's choice.
        targets: keys of `TARGETS`, or module names.
        text_lr: learning rate of text-encoder adapters; None leaves the text encoders alone.
        name: file name of the result, without suffix.
        optimizer, scheduler, loss_weighting, plain_attention, seed: see `DenoisingTask`.

    Raises:
        ConfigError: rank or targets that do not work.
    """

    backbone: UNetBackbone

    def __init__(
        self,
        backbone: UNetBackbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        *,
        rank: int = 64,
        alpha: float | None = None,
        targets: Sequence[str] = tuple(TARGETS),
        text_lr: float | None = None,
        loss_weighting: Weighting = "uniform",
        plain_attention: bool = False,
        name: str = "adapter",
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, scheduler, loss_weighting, plain_attention, seed)
        self.rank = whole_number(rank, "task.rank", 1)
        self.alpha = rank / 2 if alpha is None else alpha
        self.text_lr, self.name, self.trains_text = text_lr, name, text_lr is not None
        # as files call the parts
        self.adapted: dict[str, Any] = {"unet": backbone.unet} if text_lr is None else dict(backbone.adapted_parts)
        self._add_adapters(targets)

    def _add_adapters(self, targets: Sequence[str]) -> None:
        names = target_names(self.backbone.unet, targets)
        # Peft initialises with the global generator; the seed makes the start of a run reproducible on its own.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for part, module in self.adapted.items():
                module.add_adapter(lora_config(self.rank, self.alpha, names if part == "unet" else TEXT_TARGETS))
        trained = sum(p.numel() for p in self.trained_parameters())
        log.info("Adapters of rank %d, alpha %g: %.2f M trained parameters.", self.rank, self.alpha, trained / 1e6)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """U-Net adapters at the optimiser's learning rate, text adapters at ``text_lr``."""
        groups: list[dict[str, Any]] = []
        for part, module in self.adapted.items():
            own = {} if part == "unet" else {"lr": self.text_lr}
            groups.append({"params": [p for p in module.parameters() if p.requires_grad], **own})
        return groups

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        """Error on training images at fixed noise, with the adapters and without."""
        noised = self.noised(batch, self.generator("validation", batch_idx))
        for name, on in (("val/error", True), ("val/error_without_adapter", False)):
            self._switch(on)
            try:
                error = self.error(*noised, batch.captions)
            finally:
                self._switch(True)
            self.log(name, error.mean(), sync_dist=True, batch_size=len(batch))

    def _switch(self, on: bool) -> None:
        for module in self.adapted.values():
            (module.enable_adapters if on else module.disable_adapters)()

    def export(self, folder: Path) -> None:
        """Write ``<name>.safetensors`` for diffusers and ``<name>.kohya.safetensors`` for kohya-style tools."""
        parts: dict[str, nn.Module] = self.adapted
        write_diffusers(self._file(folder), parts)
        write_kohya(folder / f"{self.name}.kohya.safetensors", parts, self.alpha)

    def usage(self, folder: Path) -> str:
        """The file, the key that takes it and, where there are files of other steps, the command that ranks them."""
        taken = override("technique.lora.weights.moderate", self._file(folder).resolve())
        ranked = override("task.adapters", folder.resolve())
        choice = f"\n  to choose among its steps: python eval.py task=lora_choice {ranked} dataset=<your images>"
        return (
            f"LoRA: {self._file(folder)}\n  to steer with it: python train.py techniques=lora {taken} "
            "(.overtrained in place of .moderate: the longer one of GATE's two)"
        ) + (choice if any(folder.glob("step_*")) else "")

    def _file(self, folder: Path) -> Path:
        return folder / f"{self.name}.safetensors"


def lora_config(rank: int, alpha: float, modules: Sequence[str]) -> LoraConfig:
    """Settings of adapters in the modules that are called so, or whose names end so."""
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(modules), init_lora_weights=True)


def target_names(unet: nn.Module, targets: Sequence[str]) -> list[str]:
    """Ends of the names of the modules that ``targets``, keys of `TARGETS` or such ends themselves, mean.

    Raises:
        ConfigError: none, or one that the U-Net does not have.
    """
    names = [name for target in targets for name in TARGETS.get(target, (target,))]
    modules = [name for name, _ in unet.named_modules()]
    unknown = [n for n in names if not any(m == n or m.endswith("." + n) for m in modules)]
    if unknown or not names:
        raise ConfigError(
            f"targets name modules the U-Net does not have: {unknown or 'none given'}. Expected some of "
            f"{', '.join(TARGETS)} or ends of module names such as attn2.to_k."
        )
    return names
