"""CleanDIFT (Stracke et al., CVPR 2025): a student that has, from clean latents, what its teacher has from noisy ones.

The teacher is the frozen model, read at random timesteps. The student reads the clean latents once, at one learned
timestep; a head for each layer, told the teacher's timestep, takes its features to the teacher's. The heads are for
training alone.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from gate_lightning.backbones.noise_schedule import CleanSchedule
from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.backbones.stable_diffusion.cleandift import INITIAL_TIMESTEP, OWN_TIMESTEP, clean_reader
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.tasks.pretraining.denoising import DiffusionTask
from gate_lightning.tasks.pretraining.lora import TARGETS, lora_config, target_names
from gate_lightning.tasks.pretraining.projection_heads import ProjectionHeads
from gate_lightning.tasks.pretraining.unet_files import write_unet
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.commands import override
from gate_lightning.utils.finite import check_outputs

__all__ = ["CleanDIFTTask", "similarities", "stratified_timesteps"]

log = logging.getLogger(__name__)

#: layers of the paper, as far as the network has them
_LAYERS = ("mid", *(f"us{count}" for count in range(1, 11)))
#: timesteps of the agreement in validation, as shares of the schedule
_VALIDATED = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)

Features = Mapping[str, Tensor]


def stratified_timesteps(batch: int, bins: int, length: int, generator: torch.Generator) -> Tensor:
    """(batch, bins) timesteps: of each image one from each of ``bins`` equal parts of [1, length - 1)."""
    places = (torch.arange(bins) + torch.rand(batch, bins, generator=generator)) / bins
    return (1 + places * (length - 2)).long().clamp(max=length - 2)


def similarities(student: Features, teacher: Features) -> Tensor:
    """(B, K) cosine similarities of the features (B, C, h, w) of K layers, averaged over positions, in float32."""
    pairs = ((student[layer].float(), teacher[layer].float()) for layer in teacher)
    return torch.stack([F.cosine_similarity(*pair, dim=1).mean(dim=(1, 2)) for pair in pairs], dim=1)


class CleanDIFTTask(DiffusionTask):
    """Fits a student to the features of a frozen teacher: Σ over layers of 1 − cosine similarity, averaged.

    Teacher and student share autoencoder, text encoders and, where adapters are trained, the U-Net.

    Args:
        backbone: the teacher, of the Stable Diffusion family: SD 1.x, SD 2.x, SDXL, or the embedded one.
        rank: of low-rank adapters on the U-Net, for large models; None trains a copy of all weights that act on the
            layers.
        alpha: scale of the adapters times their rank; None is the rank.
        targets: what gets adapters, see `LoraTask`.
        layers: layer ids or aliases whose features are compared; None for the paper's, mid and us1 … us10, as far as
            the network has them.
        bins: timesteps per image and step, one from each of as many equal parts of the schedule.
        own_timestep: the student's time input, from which its learned one begins.
        optimizer, scheduler, plain_attention, seed: see `DiffusionTask`.

    Raises:
        ConfigError: layers or targets that the network does not have.
    """

    frozen_parts = ("backbone", "student")
    shown = ("train/agreement",)
    backbone: UNetBackbone

    def __init__(
        self,
        backbone: UNetBackbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        *,
        rank: int | None = None,
        alpha: float | None = None,
        targets: Sequence[str] = tuple(TARGETS),
        layers: Sequence[str] | None = None,
        bins: int = 3,
        own_timestep: float = INITIAL_TIMESTEP,
        plain_attention: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, scheduler, plain_attention, seed)
        self.layers = tuple(layer for layer in _LAYERS if layer in backbone.aliases) if layers is None else (*layers,)
        self.bins, self.adapted = whole_number(bins, "task.bins", 1), rank is not None
        acting = self._acting_modules()
        unet = backbone.unet if rank is not None else copy.deepcopy(backbone.unet)
        self.student = clean_reader(backbone, own_timestep, backbone.identity, unet)
        self.timestep = nn.Parameter(torch.tensor(float(own_timestep)))
        assert isinstance(self.student.schedule, CleanSchedule)
        self.student.schedule.own_timestep = self.timestep  # type: ignore[assignment]  # a number that is learned
        info = backbone.feature_info(self.layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = ProjectionHeads({name: one.channels for name, one in info.items()}, self.schedule.length)
            if rank is None:
                for name in acting:
                    for parameter in unet.get_submodule(name).parameters(recurse=False):
                        parameter.requires_grad_(True)
            else:
                ends = tuple(target_names(unet, targets))
                chosen = [name for name in acting if name.endswith(tuple(f".{end}" for end in ends)) or name in ends]
                rank = whole_number(rank, "task.rank", 1)
                unet.add_adapter(lora_config(rank, float(rank if alpha is None else alpha), chosen))
        trained = sum(p.numel() for p in self.student.parameters() if p.requires_grad)
        heads = sum(p.numel() for p in self.heads.parameters())
        log.info("%.2f M trained parameters in the student, %.2f M in its heads.", trained / 1e6, heads / 1e6)

    @torch.no_grad()
    def _acting_modules(self) -> list[str]:
        """Modules of the U-Net with weights of their own that run before the last layer is read."""
        ran: list[str] = []
        backbone = self.backbone
        side = backbone.minimum_size // backbone.latent_stride
        latents = torch.zeros(1, backbone.latent_channels, side, side, device=backbone.device)
        with ExitStack() as hooks:
            for name, module in backbone.unet.named_modules():
                if next(module.parameters(recurse=False), None) is not None:
                    handle = module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
                    hooks.callback(handle.remove)
            self._read(backbone, latents, torch.zeros(1), backbone.encode_text([""]))
        return list(dict.fromkeys(ran))

    def _read(self, backbone: UNetBackbone, latents: Tensor, timesteps: Any, prompts: PromptEmbeds) -> Features:
        with FeatureRecorder(backbone, self.layers) as recorder:
            backbone.denoise(latents, timesteps, prompts)
        for layer, value in recorder.features.items():
            check_outputs(value, f"features of {layer}")
        return recorder.features

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        """Context without the adapters, where the U-Net is shared."""
        if not self.adapted:
            yield
            return
        unet: Any = self.backbone.unet
        unet.disable_adapters()
        try:
            yield
        finally:
            unet.enable_adapters()

    @torch.no_grad()
    def taught(self, latents: Tensor, timesteps: Tensor, prompts: PromptEmbeds) -> Features:
        """Features of the teacher from noisy latents (B, c, h, w) at timesteps (B,)."""
        with self._as_teacher():
            return self._read(self.backbone, latents, timesteps, prompts)

    def learned(self, latents: Tensor, prompts: PromptEmbeds) -> Features:
        """Features of the student from clean latents (B, c, h, w)."""
        return self._read(self.student, latents, 0, prompts)

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        """Loss at one timestep of each part of the schedule; the student reads each image once for all of them."""
        generator = self.generator("training", batch_idx)
        timesteps = stratified_timesteps(len(batch), self.bins, self.schedule.length, generator)
        found = [projected for _, projected, _ in self._compared(batch, timesteps, generator)]
        agreement = torch.cat(found).mean(dim=0)  # of each layer
        self.log("train/agreement", agreement.mean(), batch_size=len(batch))
        return (1.0 - agreement).sum()

    def validation_step(self, batch: CaptionedBatch, batch_idx: int) -> None:
        """Mean cosine similarity to the teacher at fixed timesteps and noise.

        ``val/agreement`` is that of the projected features, also by timestep; ``val/agreement_without_heads`` that of
        the student's own; ``val/agreement_untrained`` that of the teacher's, from clean latents as the student's.
        """
        generator = self.generator("validation", batch_idx)
        chosen = torch.tensor([round(share * self.schedule.length) for share in _VALIDATED])
        timesteps = chosen.expand(len(batch), -1)
        values: dict[str, list[Tensor]] = {}
        for column, projected, own in self._compared(batch, timesteps, generator, plain=True):
            values.setdefault(f"val/agreement_t{int(chosen[column])}", []).append(projected)
            values.setdefault("val/agreement", []).append(projected)
            for name, one in own.items():
                values.setdefault(f"val/agreement_{name}", []).append(one)
        means = {name: torch.cat(parts).mean() for name, parts in values.items()}
        self.log_dict(means, sync_dist=True, batch_size=len(batch))

    def _compared(
        self, batch: CaptionedBatch, timesteps: Tensor, generator: torch.Generator, plain: bool = False
    ) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        """Column of ``timesteps`` (B, n), similarities (R, K) of the projected features there, and, if ``plain``, those
        of what no head has changed."""
        latents = self.latents(batch)
        noise = torch.randn((timesteps.shape[1], *latents.shape), generator=generator).to(latents)
        for rows in self.of_equal_length(batch.captions):
            prompts = self.texts([batch.captions[row] for row in rows])
            clean, student = latents[rows], self.learned(latents[rows], prompts)
            untrained = self.taught(clean, self.timestep.detach().expand(len(rows)), prompts) if plain else {}
            for column in range(timesteps.shape[1]):
                told = timesteps[rows, column]
                noisy = self.mixed(clean, noise[column, rows], told)
                told = told.to(latents.device)
                teacher = self.taught(noisy, told, prompts)
                own = {"without_heads": student, "untrained": untrained} if plain else {}
                compared = {name: similarities(features, teacher) for name, features in own.items()}
                yield column, similarities(self.heads(student, told), teacher), compared

    def export(self, folder: Path) -> None:
        """Write ``unet/``: a plain U-Net of diffusers, adapters merged, the learned timestep in its file's header."""
        write_unet(folder / "unet", self.student.unet, {OWN_TIMESTEP: repr(float(self.timestep.detach()))})

    def usage(self, folder: Path) -> str:
        """The folder, and the keys that take it."""
        keys = {
            "backbone.weights": (folder / "unet").resolve(),
            "backbone.base": self.backbone.identity.name,
        }
        taken = " ".join(override(key, value) for key, value in keys.items())
        own = float(self.timestep.detach())
        return (
            f"CleanDIFT U-Net (timestep {own:.2f}): {folder / 'unet'}\n  to read features of clean "
            f"latents: python train.py backbone=cleandift_sd15 {taken} "
            f"backbone.native_size={self.backbone.native_size} techniques=none"
        )
