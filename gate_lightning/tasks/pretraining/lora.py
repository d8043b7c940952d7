"""Training of low-rank adapters for a frozen U-Net (and, on request, its text encoders)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch import Tensor, nn

from gate_lightning.backbones.tiny.architecture import MatmulAttention
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.adapter_files import write_diffusers, write_kohya
from gate_lightning.tasks.pretraining.encoding import model_folder
from gate_lightning.tasks.pretraining.objective import (
    Weighting,
    diffuse,
    error_per_sample,
    loss_weights,
    spread_timesteps,
)
from gate_lightning.tasks.pretraining.optimisation import OptimisedModule
from gate_lightning.tasks.pretraining.prompts import PromptEncoders

log = logging.getLogger(__name__)

TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "feed_forward": ("ff.net.0.proj", "ff.net.2"),
    "projections": ("proj_in", "proj_out"),
    "convolutions": ("conv1", "conv2"),
}
"""Groups of module names; "attention" alone is plain LoRA, all of them is what kohya's tools call LoCon."""

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class LoraTask(OptimisedModule):
    """Noise prediction with low-rank adapters on images with captions.

    Args:
        model: folder or hub id of a Stable Diffusion model (SD 1.x, SD 2.x, SDXL), or "tiny", the embedded one.
        rank: of the adapters.
        alpha: their scale times the rank; None is half the rank, GATE's choice.
        targets: keys of `TARGETS`, or module names.
        text_lr: learning rate of text-encoder adapters; None leaves the text encoders alone.
        loss_weighting: see `loss_weights`.
        plain_attention: train with plain matrix products, which is faster on a CPU for small models.
        name: file name of the result, without suffix.
        revision: hub revision.
        optimisation: `OptimisedModule`'s arguments.

    Raises:
        ConfigError: rank or targets that do not work.
    """

    weights: Tensor

    def __init__(
        self,
        model: str | Path,
        rank: int = 64,
        alpha: float | None = None,
        targets: Sequence[str] = tuple(TARGETS),
        text_lr: float | None = None,
        loss_weighting: Weighting = "uniform",
        plain_attention: bool = False,
        name: str = "adapter",
        revision: str | None = None,
        **optimisation: Any,
    ) -> None:
        super().__init__(**{"lr": 1e-4, "warmup": 50, "decay_share": 0.0, **optimisation})
        if rank < 1:
            raise ConfigError(
                f"rank is {rank}; expected at least 1, for example 64 (photos) or 8 (the embedded model)."
            )
        self.rank, self.alpha = rank, rank / 2 if alpha is None else alpha
        self.text_lr, self.name = text_lr, name
        folder = model_folder(model, revision)
        load: dict[str, Any] = {"torch_dtype": torch.float32, "local_files_only": True}
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **load).requires_grad_(False)
        self.autoencoder = AutoencoderKL.from_pretrained(folder, subfolder="vae", **load).requires_grad_(False)
        self.prompts = PromptEncoders(folder).requires_grad_(False)
        self.noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        if plain_attention:
            self.unet.set_attn_processor(MatmulAttention())
        self._add_adapters(targets)
        weights = loss_weights(self.noise_scheduler.alphas_cumprod, loss_weighting)
        self.register_buffer("weights", weights, persistent=False)

    def _add_adapters(self, targets: Sequence[str]) -> None:
        names = [name for target in targets for name in TARGETS.get(target, (target,))]
        modules = [name for name, _ in self.unet.named_modules()]
        unknown = [n for n in names if not any(m == n or m.endswith("." + n) for m in modules)]
        if unknown or not names:
            raise ConfigError(
                f"targets name modules the U-Net does not have: {unknown or 'none given'}. Expected some of "
                f"{', '.join(TARGETS)} or ends of module names such as attn2.to_k."
            )
        # Peft initialises with the global generator; the seed makes the start of a run reproducible on its own.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.unet.add_adapter(_config(self.rank, self.alpha, names))
            if self.text_lr is not None:
                encoders: list[Any] = list(self.prompts.encoders)
                for encoder in encoders:
                    encoder.add_adapter(_config(self.rank, self.alpha, TEXT_TARGETS))
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        log.info("Adapters of rank %d, alpha %g: %.2f M trained parameters.", self.rank, self.alpha, trained / 1e6)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """U-Net adapters at ``lr``, text adapters at ``text_lr``."""
        groups = [{"params": [p for p in self.unet.parameters() if p.requires_grad], "lr": self.lr}]
        if self.text_lr is not None:
            groups.append({"params": [p for p in self.prompts.parameters() if p.requires_grad], "lr": self.text_lr})
        return groups

    def _error(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise error per sample (B,) and the timesteps (B,) it was taken at."""
        with torch.no_grad():
            latents = self.autoencoder.encode(batch["pixels"]).latent_dist.mean.float()
            latents = latents * self.autoencoder.config.scaling_factor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.text_lr is not None):
            embeddings, conditions = self.prompts(batch["caption"], tuple(batch["pixels"].shape[-2:]))
        timesteps = spread_timesteps(len(latents), len(self.weights), generator).to(latents.device)
        noisy, target = diffuse(self.noise_scheduler, latents, self.noise_like(latents, generator), timesteps)
        prediction = self.unet(noisy, timesteps, embeddings, added_cond_kwargs=conditions).sample
        return error_per_sample(prediction, target), timesteps

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Weighted noise error of ``pixels`` (B, 3, H, W) given ``caption`` (list of B texts)."""
        error, timesteps = self._error(batch, self.step_generator())
        self.log("train/eps_mse", error.mean(), prog_bar=True, batch_size=len(error))
        return (self.weights[timesteps] * error).mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Noise error on training images at fixed noise, with the adapters and without."""
        for name in ("val/eps_mse", "val/eps_mse_without_adapter"):
            generator = torch.Generator().manual_seed(1_000 * batch_idx + self.global_rank)
            if name.endswith("adapter"):
                self._switch(False)
            try:
                error, _ = self._error(batch, generator)
            finally:
                self._switch(True)
            self.log(name, error.mean(), sync_dist=True, batch_size=len(error))

    def _switch(self, on: bool) -> None:
        modules: list[Any] = [self.unet, *(self.prompts.encoders if self.text_lr is not None else ())]
        for module in modules:
            (module.enable_adapters if on else module.disable_adapters)()

    def export(self, folder: Path) -> None:
        """Write ``<name>.safetensors`` for diffusers and ``<name>.kohya.safetensors`` for kohya-style tools."""
        parts: dict[str, nn.Module] = {"unet": self.unet}
        if self.text_lr is not None:
            names = ("text_encoder", "text_encoder_2")
            parts |= dict(zip(names, self.prompts.encoders, strict=False))
        write_diffusers(folder / f"{self.name}.safetensors", parts)
        write_kohya(folder / f"{self.name}.kohya.safetensors", parts, self.alpha)


def _config(rank: int, alpha: float, targets: Sequence[str]) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights=True)
