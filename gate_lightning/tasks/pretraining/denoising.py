"""Training a part of a diffusion model to denoise: the loss, and what the tasks that use it share.

Weightings: "min_snr" is Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", for noise
prediction with γ = 5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import PromptEmbeds
from gate_lightning.backbones.tiny.architecture import MatmulAttention
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.base import BaseTask
from gate_lightning.techniques.schedule import noise_schedule
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.finite import check_outputs
from gate_lightning.utils.precision import own_precision
from gate_lightning.utils.seeding import torch_generator

__all__ = [
    "TRAINED",
    "DenoisingTask",
    "DiffusionTask",
    "Weighting",
    "loss_weights",
    "require_master_weights",
    "spread_timesteps",
]

Weighting = Literal["uniform", "min_snr", "balanced"]
#: name of the ControlNet in training, beside those that the backbone has
TRAINED = "trained"


def loss_weights(alphas_cumprod: Tensor, weighting: Weighting) -> Tensor:
    """Weight of the error at each timestep (T,), mean 1.

    Args:
        alphas_cumprod: (T,) ᾱ, the share of the signal's power.
        weighting: "uniform"; "min_snr": min(SNR, 5) / SNR; "balanced": √(1 + 1 / SNR), at most 10, which gives more
            weight to the noisy timesteps that decide what is where.

    Raises:
        ConfigError: unknown weighting.
    """
    check_choice(weighting, "task.loss_weighting", ("uniform", "min_snr", "balanced"))
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    if weighting == "uniform":
        weights = torch.ones_like(snr)
    elif weighting == "min_snr":
        weights = snr.clamp(max=5.0) / snr
    else:
        weights = (1.0 + 1.0 / snr).sqrt().clamp(max=10.0)
    return weights / weights.mean()


def spread_timesteps(batch: int, total: int, generator: torch.Generator) -> Tensor:
    """(batch,) timesteps, each uniform over its own stretch of [0, total): uniform together, with less variance."""
    spread = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (total / batch)
    return spread.long().clamp(max=total - 1)


def require_master_weights(backbone: Backbone) -> None:
    """Raise ConfigError unless the weights are float32: steps of an optimiser are too small for half precision."""
    if backbone.dtype != torch.float32:
        raise ConfigError(
            f"backbone.dtype is {backbone.dtype}; train with float32 weights, and where that is too slow with "
            "trainer.precision=bf16-mixed"
        )


class DiffusionTask(BaseTask):
    """Base of the tasks that train a part of a diffusion model on noisy latents of captioned images.

    Noise and timesteps are drawn on the CPU, keyed by seed, epoch, batch and process: a resumed run draws what the
    uninterrupted one would have drawn, on any device.

    Args:
        backbone: the model. Subclasses make the trained parts trainable.
        optimizer, scheduler: see `BaseTask`.
        plain_attention: attention as two matrix products, which is faster for small models on a CPU.
        seed: of noise and timesteps.

    Raises:
        ConfigError: a backbone without noise schedule, or whose weights are not float32.
    """

    frozen_parts: tuple[str, ...] = ("backbone",)
    trains_backbone = True
    batch_type = CaptionedBatch
    shown = ("train/error",)
    #: whether text encoders are among the trained parts
    trains_text = False

    def __init__(
        self,
        backbone: Backbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        plain_attention: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, scheduler)
        require_master_weights(backbone)
        self.backbone, self.seed = backbone, seed
        self.schedule = noise_schedule(backbone, "training")
        if plain_attention:
            for part in (backbone.denoiser, *getattr(backbone, "controlnets", {}).values()):
                part.set_attn_processor(MatmulAttention())  # type: ignore[operator]

    def frozen_description(self) -> dict[str, Any]:
        """Identity of the backbone's weights."""
        return {"backbone": self.backbone.description}

    def generator(self, purpose: str, batch_idx: int) -> torch.Generator:
        """Random numbers of one batch: another epoch draws others in training, the same in validation."""
        epoch = self.current_epoch if purpose == "training" else 0
        return torch_generator(purpose, self.seed, epoch, batch_idx, self.global_rank)

    def latents(self, batch: CaptionedBatch) -> Tensor:
        """Clean latents (B, c, h, w) float32: those of the batch, or of its images."""
        if batch.latents is not None:
            return batch.latents
        assert batch.images is not None, "a batch has images or latents"
        with torch.no_grad(), own_precision(self.device):
            return self.backbone.encode(batch.images).float()

    def texts(self, captions: Sequence[str]) -> PromptEmbeds:
        """Embeddings of captions; those of frozen text encoders in the type of their weights."""
        if self.trains_text:
            return self.backbone.encode_text(captions)
        with torch.no_grad(), own_precision(self.device):
            return self.backbone.encode_text(captions)

    def mixed(self, signal: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Every sample at its own noise level."""
        rows = zip(signal.split(1), noise.split(1), timesteps.tolist(), strict=True)
        return torch.cat([self.schedule.add_noise(own, of_own, timestep) for own, of_own, timestep in rows])

    def of_equal_length(self, captions: Sequence[str]) -> list[list[int]]:
        """Rows whose captions are equally long in tokens: these share a pass."""
        alike: dict[int, list[int]] = {}
        for row, caption in enumerate(captions):
            alike.setdefault(self.backbone.text_length(caption), []).append(row)
        return list(alike.values())


class DenoisingTask(DiffusionTask):
    """Base of the tasks that train parts of a diffusion model on its own objective.

    Args:
        loss_weighting: see `loss_weights`.
        backbone, optimizer, scheduler, plain_attention, seed: see `DiffusionTask`.
    """

    weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        loss_weighting: Weighting = "uniform",
        plain_attention: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, scheduler, plain_attention, seed)
        alphas = torch.tensor([self.schedule.level(timestep)[0] ** 2 for timestep in range(self.schedule.length)])
        self.register_buffer("weights", loss_weights(alphas, loss_weighting), persistent=False)

    def noised(self, batch: CaptionedBatch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents (B, c, h, w), timesteps (B,) and what the denoiser should predict, shaped like the latents."""
        latents = self.latents(batch)
        timesteps = spread_timesteps(len(latents), len(self.weights), generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        noisy = self.mixed(latents, noise, timesteps)
        kind = self.schedule.prediction_type
        targets = {"epsilon": noise, "sample": latents}
        if kind == "v_prediction":  # v = √ᾱ·noise - √(1-ᾱ)·latents
            targets["v_prediction"] = self.mixed(noise, -latents, timesteps)
        check_choice(kind, "prediction type of the backbone", targets)
        return noisy, timesteps.to(latents.device), targets[str(kind)]

    def error(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        target: Tensor,
        captions: Sequence[str],
        control: Tensor | None = None,
    ) -> Tensor:
        """Mean square error (B,) float32 of the denoiser's prediction.

        Args:
            noisy, timesteps, target: see `noised`.
            captions: B texts; those of equal length in tokens share a pass.
            control: (B, 3, H, W) in [0, 1] for the ControlNet, or None for the U-Net alone.
        """
        backbone: Any = self.backbone  # its timestep may be (B,), one for each sample
        errors = torch.empty(len(captions), device=noisy.device)
        for rows in self.of_equal_length(captions):
            prompts = self.texts([captions[row] for row in rows])
            given = (noisy[rows], timesteps[rows], prompts)
            residuals = None if control is None else backbone.control_residuals(TRAINED, *given, control[rows])
            prediction = backbone.denoise(*given, residuals)
            check_outputs(prediction, "predictions of the denoiser", [captions[row] for row in rows])
            errors[rows] = (prediction.float() - target[rows].float()).square().flatten(1).mean(dim=1)
        return errors

    def training_step(self, batch: CaptionedBatch, batch_idx: int) -> Tensor:
        """Weighted error at random timesteps."""
        noisy, timesteps, target = self.noised(batch, self.generator("training", batch_idx))
        return self.weighted(self.error(noisy, timesteps, target, batch.captions), timesteps)

    def weighted(self, error: Tensor, timesteps: Tensor) -> Tensor:
        """The training loss of errors (B,), logged without weights as ``train/error``."""
        self.log("train/error", error.mean(), batch_size=len(error))
        return (self.weights[timesteps] * error).mean()
