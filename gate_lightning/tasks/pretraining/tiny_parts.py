"""Parts to train the embedded model from: networks with random weights, and a finished autoencoder as encoder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.tiny.architecture import (
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_unet,
)
from gate_lightning.backbones.tiny.tokenizer import EXTRA_WORDS, build_tokenizer
from gate_lightning.backbones.weights.locate import ASSET, find_weights, folder_digest
from gate_lightning.backbones.weights.networks import open_part
from gate_lightning.data.scenes.captions import VOCABULARY
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Identity

__all__ = ["FolderEncoder", "tiny_words", "untrained_backbone"]


def tiny_words() -> tuple[str, ...]:
    """Words that are one token each for the embedded model: the scenes' and a few more for other captions."""
    return (*VOCABULARY, *EXTRA_WORDS)


def untrained_backbone(seed: int = 0, native_size: int = 64) -> UNetBackbone:
    """The embedded model with random weights, whose tokenizer knows the words of the scenes.

    Args:
        seed: of the weights.
        native_size: side in pixels of the images it will be trained on; only 64 is right.
    """
    if native_size != 64:
        raise ConfigError(f"backbone.native_size={native_size}: the embedded model is made for 64 pixels")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(tiny_words())
        parts = (build_unet(), build_autoencoder(), build_text_encoder(tokenizer))
    schedule = DiffusionSchedule(dict(build_scheduler().config))
    return UNetBackbone(*parts, tokenizer, schedule, Identity("untrained-tiny", str(seed), ""))


class FolderEncoder:
    """Encodes images with the autoencoder of a model folder, loaded when first used in each process.

    Args:
        folder: model folder with ``vae/``, or ``asset:tiny``; the rest of the model may still be missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = find_weights(str(folder)) if str(folder).startswith(ASSET) else Path(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def identity(self) -> str:
        """Hash of the autoencoder's weights and config.

        Raises:
            ConfigError: there are none.
        """
        weights = self.folder / "vae" / "diffusion_pytorch_model.safetensors"
        if not weights.exists():
            raise ConfigError(
                f"No autoencoder at {weights}. Train it first (`python train.py experiment=tiny/autoencoder`) or give "
                f"the folder of a model that has one."
            )
        return folder_digest([weights, weights.with_name("config.json")], self.folder)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Scaled posterior means (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self._autoencoder.encode(images).latent_dist.mean * self._autoencoder.config.scaling_factor

    @cached_property
    def _autoencoder(self) -> AutoencoderKL:
        # The weights on disk are rounded to half precision; computing with exactly these keeps training and use alike.
        autoencoder: AutoencoderKL = open_part(AutoencoderKL, self.folder / "vae", torch.float32)
        return autoencoder.requires_grad_(False)
