"""Images to latents and captions to tokens, by the parts of a model folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from gate_lightning.backbones.tiny.tokenizer import EXTRA_WORDS, build_tokenizer, load_tokenizer
from gate_lightning.backbones.weights.locate import find_weights
from gate_lightning.data.scenes import VOCABULARY
from gate_lightning.errors import ConfigError

_FILES = (
    "model_index.json",
    "*/*config.json",
    "*/diffusion_pytorch_model.safetensors",
    "*/model.safetensors",
    "tokenizer*/*",
)


def model_folder(model: str | Path, revision: str | None = None) -> Path:
    """Local folder of a whole Stable Diffusion model.

    Args:
        model: folder, hub id (downloaded where needed), or "tiny", the embedded one.
        revision: hub revision.

    Raises:
        WeightsError: there is no such model.
    """
    return find_weights("asset:tiny" if str(model) == "tiny" else str(model), revision, _FILES)


class FolderEncoder:
    """Encodes with the autoencoder and tokenizer of a model folder; loads them when first used, in each process.

    Args:
        folder: model folder with ``vae/`` and, unless the model is still to be trained, ``tokenizer/``; without it
            the embedded model's tokenizer is built.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def identity(self) -> str:
        """Hash of the autoencoder's weights and of the vocabulary."""
        weights = self.folder / "vae" / "diffusion_pytorch_model.safetensors"
        if not weights.exists():
            raise ConfigError(
                f"No autoencoder at {weights}. Train it first (`python train.py experiment=tiny/autoencoder`) or give "
                f"the folder of a model that has one."
            )
        words = repr(sorted(self._tokenizer.get_vocab().items()))
        return hashlib.sha256(weights.read_bytes() + words.encode()).hexdigest()

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        """Scaled posterior means (B, C, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self._autoencoder.encode(pixels).latent_dist.mean * self._autoencoder.config.scaling_factor

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, L), padded and cut to the tokenizer's length."""
        encoded = self._tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids

    @cached_property
    def _autoencoder(self) -> AutoencoderKL:
        # The weights on disk are rounded to half precision; computing with exactly these keeps training and use alike.
        vae = AutoencoderKL.from_pretrained(
            self.folder, subfolder="vae", torch_dtype=torch.float32, local_files_only=True
        )
        return vae.eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> CLIPTokenizer:
        return load_tokenizer(self.folder) if (self.folder / "tokenizer").exists() else build_tokenizer(tiny_words())


def tiny_words() -> tuple[str, ...]:
    """Words that are one token each for the embedded model: the scenes' and a few more for other captions."""
    return (*VOCABULARY, *EXTRA_WORDS)
