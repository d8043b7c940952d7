"""Loader of the Stable Diffusion family: folders, hub ids, single files, the embedded model, random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from gate_lightning.backbones.stable_diffusion.architectures import assemble, build_random_backbone
from gate_lightning.backbones.stable_diffusion.clip_text import LongPrompts
from gate_lightning.backbones.stable_diffusion.compatibility import check_parts
from gate_lightning.backbones.stable_diffusion.sdxl import SizeConditions
from gate_lightning.backbones.stable_diffusion.single_file import load_single_file
from gate_lightning.backbones.stable_diffusion.tokenizers import read_tokenizer, tokenizer_files
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.weights.locate import ASSET, find_weights, folder_digest, stored_bytes, weight_files
from gate_lightning.backbones.weights.networks import open_part
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import check_choice, check_known
from gate_lightning.utils.console import taking
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.text import read_json
from gate_lightning.utils.units import human_size

__all__ = ["load_unet_backbone"]

log = logging.getLogger(__name__)

_KINDS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
_TOKENIZERS = ("tokenizer", "tokenizer_2")


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
    long_prompts: LongPrompts = "windows",
    tokenizer: str | None = None,
    prediction_type: str | None = None,
    size_conditions: Mapping[str, Any] | None = None,
) -> UNetBackbone:
    """A frozen Stable Diffusion model: 1.x, 2.x, XL, Playground v2, fine-tunes of these, or the embedded tiny one.

    Args:
        weights: a diffusers folder, a hub id, a single-file checkpoint in the original layout (``.safetensors``, or
            ``.ckpt``, of which no code is run), "tiny" (shipped in the package) or "random" (see ``architecture``).
        revision: commit or tag of a hub id.
        variant: "fp16" where only such files are there or wanted.
        dtype: "float32", "bfloat16" or "float16" of weights and computation. Half precision on a CPU is very slow.
        channels_last: memory format of the convolutions; faster on CPUs and recent GPUs, same numbers up to rounding.
        controlnets: name → folder or hub id, or None for none; loaded when a branch first needs it.
        architecture, seed: of ``weights=random``.
        offline: never download.
        native_size: side in pixels of the training images, the default crop size of data sets; must be that of the
            weights. None skips the check.
        long_prompts: treatment of prompts longer than the text encoder's input: "windows", "released" or "cut", see
            ``clip_text``.
        tokenizer: folder or hub id with the tokenizer for a single-file checkpoint; None: that of the released model,
            from the hub or its cache.
        prediction_type: "epsilon", "v_prediction" or "sample" of a single-file checkpoint, where it is not stored.
            None: that of the released models; required for Stable Diffusion 2.x, which has two.
        size_conditions: of an SDXL model: arguments of ``sdxl.SizeConditions``.

    Raises:
        ConfigError: settings that do not go together, or not with these weights.
        WeightsError: weights missing, broken, or of another kind of model.
    """
    check_choice(dtype, "backbone.dtype", DTYPES)
    check_choice(long_prompts, "backbone.long_prompts", get_args(LongPrompts))
    sizes, sources = _size_conditions(size_conditions), _controlnet_sources(controlnets)
    if weights == "random":
        with taking(f"building {architecture} with random weights"):
            backbone = build_random_backbone(architecture, seed, size_conditions=sizes)
    else:
        source = f"{ASSET}tiny" if weights == "tiny" else str(weights)
        advice = "Name it: backbone.weights=<folder, file or id>"
        path = find_weights(source, revision, _patterns(variant), offline, advice)
        with taking(f"loading {weights}: {human_size(stored_bytes(path))} in {path}"):
            if path.is_file():
                backbone = load_single_file(
                    path, str(weights), DTYPES[dtype], tokenizer, prediction_type, sizes, offline
                )
            else:
                _refuse_for_folders(weights, tokenizer, prediction_type)
                backbone = _load_folder(path, str(weights), revision or "", variant, DTYPES[dtype], sizes)
        log.info("Loaded %s (%s) from %s.", weights, backbone.identity.digest[:12], path)
        backbone.check_native_size(native_size)
    backbone.controlnet_sources.update(sources)
    backbone.offline = offline
    backbone.long_prompts = long_prompts
    return backbone.finish(dtype, channels_last)


def _refuse_for_folders(weights: str, tokenizer: str | None, prediction_type: str | None) -> None:
    if tokenizer or prediction_type:
        raise ConfigError(
            f"{weights} is a folder with its own tokenizer and scheduler; backbone.tokenizer and "
            f"backbone.prediction_type are for single-file checkpoints"
        )


def _size_conditions(settings: Mapping[str, Any] | None) -> SizeConditions | None:
    if settings is None:
        return None
    if not isinstance(settings, Mapping):
        raise ConfigError(f"backbone.size_conditions={settings!r}: expected keys and values, such as {{crop: [0, 0]}}")
    check_known(settings, [field.name for field in fields(SizeConditions)], "backbone.size_conditions")
    return SizeConditions(**settings)


def _controlnet_sources(controlnets: Mapping[str, str | None] | None) -> dict[str, str]:
    """Names and sources of those ControlNets that have one."""
    given = {} if controlnets is None else controlnets
    plain = isinstance(given, Mapping) and all(isinstance(source, str | Path | None) for source in given.values())
    if not plain:
        raise ConfigError(f"backbone.controlnets={given!r}: expected names and folders, such as {{canny: <folder>}}")
    return {name: str(source) for name, source in given.items() if source}


def _load_folder(
    folder: Path, name: str, revision: str, variant: str | None, dtype: torch.dtype, sizes: SizeConditions | None
) -> UNetBackbone:
    parts, tokenizers = _check_folder(folder)
    # on the configs first: a model of another kind is refused before gigabytes are read
    configs = {part: read_json(folder / part / "config.json", WeightsError) for part in parts}
    read = [read_tokenizer(folder / part) for part in tokenizers]
    texts = [config for part, config in configs.items() if part.startswith("text_encoder")]
    check_parts(configs["unet"], configs["vae"], list(zip(texts, map(len, read), strict=True)))
    # SDXL's autoencoder overflows in half precision; those of SD 1.x and 2.x do not, although the default is true
    upcast = "text_encoder_2" in parts and configs["vae"].get("force_upcast", True)
    types = {part: torch.float32 if part == "vae" and upcast else dtype for part in parts}
    weights = {part: weight_files(folder / part, variant) for part in parts}
    networks = {part: open_part(_KINDS[part], folder / part, types[part], weights[part]) for part in parts}
    schedule = read_json(folder / "scheduler" / "scheduler_config.json", WeightsError)
    files = [path for part in parts for path in (*weights[part], folder / part / "config.json")]
    files += [path for part in tokenizers for path in tokenizer_files(folder / part)]
    files.append(folder / "scheduler" / "scheduler_config.json")
    return assemble(networks, read, schedule, Identity(name, revision, folder_digest(files, folder)), sizes)


def _patterns(variant: str | None) -> list[str]:
    # one set of weights, not every format and precision the repository holds
    end = "safetensors" if variant is None else f"{variant}.safetensors"
    names = ["diffusion_pytorch_model", "model"]
    weights = [f"{part}/{name}{shard}.{end}" for part in _KINDS for name in names for shard in ("", "-?????-of-?????")]
    if variant is not None:  # shards as transformers names them
        weights += [f"{part}/{name}.{variant}-?????-of-?????.safetensors" for part in _KINDS for name in names]
    index = [f"{part}/*.safetensors.index*.json" for part in _KINDS]
    return [
        "model_index.json",
        *(f"{tokenizer}/*" for tokenizer in _TOKENIZERS),
        "scheduler/*",
        *(f"{part}/config.json" for part in _KINDS),
        *weights,
        *index,
    ]


def _check_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Folders of the networks and of the tokenizers, all of which are there."""
    config = folder / "unet" / "config.json"
    two = config.is_file() and read_json(config, WeightsError).get("addition_embed_type") == "text_time"  # SDXL
    parts = [part for part in _KINDS if two or part != "text_encoder_2"]
    tokenizers = list(_TOKENIZERS[: 1 + two])
    missing = [name for name in (*parts, *tokenizers, "scheduler") if not (folder / name).is_dir()]
    if two and missing == ["text_encoder", "tokenizer"]:
        raise WeightsError(
            f"{folder} is an SDXL refiner (one text encoder, text_encoder_2): it is made for the last steps only "
            f"and is not supported; name the base model"
        )
    if missing:
        seen = sorted(path.name for path in folder.iterdir())
        index = folder / "model_index.json"
        made_for = (
            f"; its model_index.json says {read_json(index, WeightsError).get('_class_name')}"
            if index.is_file()
            else ""
        )
        raise WeightsError(
            f"{folder} is no Stable Diffusion folder in diffusers format: no {', '.join(missing)} (found: {seen}"
            f"{made_for}). A single-file checkpoint is named itself: backbone.weights=<file>"
        )
    return parts, tokenizers
