"""Backbones of the Stable Diffusion family from folders, hub ids, the package, or nothing (random weights)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from gate_lightning.backbones.architectures import build_random_backbone
from gate_lightning.backbones.compatibility import check_parts
from gate_lightning.backbones.unet import UNetBackbone
from gate_lightning.backbones.weights import (
    ASSET,
    find_weights,
    folder_digest,
    open_part,
    read_json,
    weight_files,
)
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import Identity

__all__ = ["load_unet_backbone"]

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PARTS = ("unet", "vae", "text_encoder")


def load_unet_backbone(
    weights: str = "tiny",
    revision: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    channels_last: bool = False,
    controlnets: Mapping[str, str | None] | None = None,
    architecture: str = "tiny",
    seed: int = 0,
    offline: bool = False,
    native_size: int | None = None,
) -> UNetBackbone:
    """A frozen Stable Diffusion 1.x or 2.x model (or fine-tune, or the embedded tiny one).

    Args:
        weights: a diffusers folder, a hub id, "tiny" (shipped in the package) or "random" (see ``architecture``).
        revision: commit or tag of a hub id.
        variant: "fp16" where only such files are there or wanted.
        dtype: "float32", "bfloat16" or "float16" of weights and computation. Half precision on a CPU is very slow.
        channels_last: memory format of the convolutions; faster on CPUs and recent GPUs, same numbers up to rounding.
        controlnets: name → folder or hub id, or None for none. Loaded when a branch first asks for the name.
        architecture, seed: what ``weights=random`` builds.
        offline: never ask the network.
        native_size: side in pixels of the pictures the model was trained on. Data sets take their crop size from this
            setting, so it must be the weights' own; None does not check.

    Raises:
        WeightsError: weights missing, broken, or of another kind of model.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    if weights == "random":
        backbone = build_random_backbone(architecture, seed).to(DTYPES[dtype])
    else:
        backbone = _load(str(weights), revision, variant, DTYPES[dtype], offline)
    if weights != "random" and native_size is not None and native_size != backbone.native_size:
        raise ConfigError(
            f"backbone.native_size={native_size}, but {weights} was trained on pictures of {backbone.native_size} px; "
            f"set backbone.native_size={backbone.native_size}"
        )
    backbone.controlnet_sources.update({name: source for name, source in (controlnets or {}).items() if source})
    backbone.offline = offline
    if channels_last:
        backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    return backbone


def _load(weights: str, revision: str | None, variant: str | None, dtype: torch.dtype, offline: bool) -> UNetBackbone:
    source, advice = f"{ASSET}tiny" if weights == "tiny" else weights, "Name it: backbone.weights=<folder or id>"
    folder = find_weights(source, revision, _patterns(variant), offline, advice)
    _check_folder(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    # on the configs first: a model of another kind is refused before gigabytes are read
    unet_config, vae_config, text_config = (read_json(folder / part / "config.json") for part in _PARTS)
    check_parts(unet_config, vae_config, text_config, len(tokenizer))
    unet = open_part(UNet2DConditionModel, folder / "unet", dtype, variant)
    vae = open_part(AutoencoderKL, folder / "vae", dtype, variant)
    text_encoder = open_part(CLIPTextModel, folder / "text_encoder", dtype, variant)
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    identity = Identity(weights, revision or "", folder_digest(_identifying_files(folder, variant), folder))
    log.info("Loaded %s (%s) from %s.", weights, identity.digest[:12], folder)
    return UNetBackbone(unet, vae, text_encoder, tokenizer, schedule, identity)


def _patterns(variant: str | None) -> list[str]:
    # one set of weights, not every format and precision the repository holds
    end = "safetensors" if variant is None else f"{variant}.safetensors"
    names = ["diffusion_pytorch_model", "model"]
    weights = [f"{part}/{name}{shard}.{end}" for part in _PARTS for name in names for shard in ("", "-?????-of-?????")]
    index = [f"{part}/*.safetensors.index*.json" for part in _PARTS]
    return [
        "model_index.json",
        "tokenizer/*",
        "scheduler/*",
        *(f"{part}/config.json" for part in _PARTS),
        *weights,
        *index,
    ]


def _check_folder(folder: Path) -> None:
    missing = [name for name in (*_PARTS, "tokenizer", "scheduler") if not (folder / name).is_dir()]
    if missing:
        seen = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "a file"
        raise WeightsError(
            f"{folder} is no Stable Diffusion folder in diffusers format: no {', '.join(missing)} (found: {seen}). "
            f"A single .safetensors or .ckpt checkpoint is converted with StableDiffusionPipeline.from_single_file(...)"
            f".save_pretrained(<folder>)"
        )
    vocabulary = ("vocab.json", "tokenizer.json")
    if not any((folder / "tokenizer" / name).is_file() for name in vocabulary):
        raise WeightsError(
            f"{folder / 'tokenizer'} holds none of {', '.join(vocabulary)}; copy the model's tokenizer there"
        )


def _identifying_files(folder: Path, variant: str | None) -> list[Path]:
    files = [path for part in _PARTS for path in (*weight_files(folder / part, variant), folder / part / "config.json")]
    tokenizer = [
        path for path in (folder / "tokenizer").iterdir() if path.name in ("vocab.json", "merges.txt", "tokenizer.json")
    ]
    return [*files, *tokenizer, folder / "scheduler" / "scheduler_config.json"]
