"""Training of a latent text-to-image U-Net together with its text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from gate_lightning.backbones.tiny.architecture import (
    MatmulAttention,
    build_scheduler,
    build_text_encoder,
    build_unet,
    write_folder,
)
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.encoding import model_folder, tiny_words
from gate_lightning.tasks.pretraining.objective import (
    Weighting,
    diffuse,
    error_per_sample,
    loss_weights,
    spread_timesteps,
)
from gate_lightning.tasks.pretraining.optimisation import OptimisedModule


class UNetTask(OptimisedModule):
    """Noise prediction on cached latents.

    Args:
        words: vocabulary of the tokenizer; None is the embedded model's.
        loss_weighting: see `loss_weights`.
        start_from: model folder whose U-Net and text encoder are trained further (``tiny``: the embedded one); None
            starts from random weights.
        optimisation: `OptimisedModule`'s arguments.

    Raises:
        ConfigError: the text encoder of ``start_from`` was made for another vocabulary.
    """

    weights: Tensor

    def __init__(
        self,
        words: Sequence[str] | None = None,
        loss_weighting: Weighting = "balanced",
        start_from: str | Path | None = None,
        **optimisation: Any,
    ) -> None:
        super().__init__(**{"lr": 1e-3, **optimisation})
        self.tokenizer = build_tokenizer(tiny_words() if words is None else words)
        if start_from is None:
            self.text_encoder, self.unet = build_text_encoder(self.tokenizer), build_unet()
        else:
            self.text_encoder, self.unet = _trained_parts(model_folder(start_from), len(self.tokenizer))
        self.unet.set_attn_processor(MatmulAttention())
        self.noise_scheduler = build_scheduler()
        alphas = self.noise_scheduler.alphas_cumprod
        self.register_buffer("weights", loss_weights(alphas, loss_weighting), persistent=False)

    def predict(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Predicted noise (B, 4, h, w) for noisy latents, timesteps (B,) and token ids (B, L)."""
        return self.unet(noisy, timesteps, self.text_encoder(tokens)[0]).sample

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Weighted noise error of ``batch["latents"]`` (B, 4, h, w) given ``batch["tokens"]`` (B, L)."""
        latents, generator = batch["latents"], self.step_generator()
        timesteps = spread_timesteps(len(latents), len(self.weights), generator).to(latents.device)
        noisy, target = diffuse(self.noise_scheduler, latents, self.noise_like(latents, generator), timesteps)
        error = error_per_sample(self.predict(noisy, timesteps, batch["tokens"]), target)
        self.log("train/eps_mse", error.mean(), prog_bar=True)
        return (self.weights[timesteps] * error).mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Noise error with fixed noise: all, by quarters of t, and how much a wrong caption adds."""
        latents, tokens = batch["latents"], batch["tokens"]
        generator = torch.Generator().manual_seed(1_000 * batch_idx + self.global_rank)
        timesteps = spread_timesteps(len(latents), len(self.weights), generator).to(latents.device)
        noisy, target = diffuse(self.noise_scheduler, latents, self.noise_like(latents, generator), timesteps)
        error = error_per_sample(self.predict(noisy, timesteps, tokens), target)
        wrong = error_per_sample(self.predict(noisy, timesteps, tokens.roll(1, dims=0)), target)
        values = {"val/eps_mse": error.mean(), "val/wrong_caption_adds": (wrong - error).mean()}
        quarter = timesteps * 4 // len(self.weights)
        for q in range(4):
            values[f"val/eps_mse_t{q}"] = error[quarter == q].mean()
        self.log_dict(values, sync_dist=True, batch_size=len(latents))

    def export(self, folder: Path) -> None:
        """Write ``unet/ text_encoder/ tokenizer/ scheduler/`` and the pipeline index."""
        write_folder(
            folder,
            unet=self.unet,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=self.noise_scheduler,
        )


def _trained_parts(folder: Path, words: int) -> tuple[CLIPTextModel, UNet2DConditionModel]:
    """Text encoder and U-Net of a model folder in float32, both trainable."""
    load: dict[str, Any] = {"local_files_only": True}
    text_encoder = CLIPTextModel.from_pretrained(
        folder, subfolder="text_encoder", dtype=torch.float32, attn_implementation="eager", **load
    )
    if text_encoder.config.vocab_size != words:
        raise ConfigError(
            f"{folder}/text_encoder knows {text_encoder.config.vocab_size} tokens, the tokenizer of this task {words}. "
            f"Train on with the words the model was trained with, or start afresh (start_from=null)."
        )
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32, **load)
    return text_encoder.train(), unet.train()
