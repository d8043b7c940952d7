"""Loader of vision transformers: folders of ``transformers``, hub ids, random."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as library_logging

from gate_lightning.backbones.stable_diffusion.architectures import parameters_digest
from gate_lightning.backbones.vision.backbone import VisionBackbone
from gate_lightning.backbones.vision.kinds import ARCHITECTURES, KINDS, VisionKind, patch_size
from gate_lightning.backbones.weights.locate import (
    PART_PATTERNS,
    find_weights,
    folder_digest,
    stored_bytes,
    weight_files,
)
from gate_lightning.backbones.weights.networks import build_network, check_numbers, read_files
from gate_lightning.errors import WeightsError, first_line
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.console import taking
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.finite import damaged_weights
from gate_lightning.utils.text import read_json
from gate_lightning.utils.units import human_size

__all__ = ["load_vision_backbone"]

log = logging.getLogger(__name__)

_PREPROCESSOR = "preprocessor_config.json"
_ADVICE = "Name a folder of the transformers library: backbone.weights=<folder>"
#: tensors of released files that no patch token depends on: poolers, classifiers, text encoders, decoders
_NOT_READ = (
    *("pooler.", "classifier.", "decoder.", "mask_token", "text_model.", "text_projection.", "visual_projection."),
    *("logit_scale", "logit_bias"),
)
_SHOWN = 3


def load_vision_backbone(
    weights: str,
    revision: str | None = None,
    dtype: str = "float32",
    architecture: str = "dinov2_base",
    seed: int = 0,
    offline: bool = False,
    native_size: int | None = None,
) -> VisionBackbone:
    """A frozen vision transformer: DINO, DINOv2 with and without registers, DINOv3, MAE, ViT, CLIP's and SigLIP's.

    Args:
        weights: a folder as the transformers library saves it (config.json, model.safetensors and, for mean and
            standard deviation of the images, preprocessor_config.json), a hub id of one, or "random".
        revision: commit or tag of a hub id.
        dtype: "float32", "bfloat16" or "float16" of weights and computation.
        architecture, seed: of ``weights=random``; a key of ``kinds.ARCHITECTURES``.
        offline: never download.
        native_size: side in pixels of the training images, the default crop size of data sets; must be that of the
            weights. None: take theirs.

    Raises:
        WeightsError: weights missing, broken, or of another kind of model.
        ConfigError: another ``native_size`` than that of the weights.
    """
    check_choice(dtype, "backbone.dtype", DTYPES)
    if weights == "random":
        with taking(f"building {architecture} with random weights"):
            backbone = _random(architecture, seed)
    else:
        folder = find_weights(str(weights), revision, (*PART_PATTERNS, _PREPROCESSOR), offline, _ADVICE)
        if not folder.is_dir():
            raise WeightsError(f"{folder} is a file, expected a folder with config.json. {_ADVICE}")
        with taking(f"loading {weights}: {human_size(stored_bytes(folder))} in {folder}"):
            backbone = _from_folder(folder, str(weights), revision or "", DTYPES[dtype])
        log.info("Loaded %s (%s) from %s.", weights, backbone.identity.digest[:12], folder)
    backbone.check_native_size(native_size)
    backbone.finish(dtype, channels_last=False)
    return backbone


def _random(architecture: str, seed: int) -> VisionBackbone:
    check_choice(architecture, "backbone.architecture", ARCHITECTURES)
    model_type, config = ARCHITECTURES[architecture]
    kind = KINDS[model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind.model(kind.model.config_class(**config), **kind.arguments)
    identity = Identity(f"random-{architecture}", str(seed), parameters_digest(network))
    return VisionBackbone(network, model_type, identity)


def _from_folder(folder: Path, name: str, revision: str, dtype: torch.dtype) -> VisionBackbone:
    path = folder / "config.json"
    plain = read_json(path, WeightsError)
    model_type = str(plain.get("model_type")).removesuffix("_vision_model")
    if model_type not in KINDS:
        raise WeightsError(
            f"{path} is of a {plain.get('model_type') or plain.get('_class_name') or 'model without model_type'}; as "
            f"vision transformers {', '.join(KINDS)} are known"
        )
    files = weight_files(folder)
    network = _filled(KINDS[model_type], plain, read_files(files), dtype, folder)
    used = [*files, path]
    mean, std = None, None
    if (folder / _PREPROCESSOR).is_file():
        used.append(folder / _PREPROCESSOR)
        mean, std = _statistics(folder / _PREPROCESSOR)
    return VisionBackbone(network, model_type, Identity(name, revision, folder_digest(used, folder)), mean, std)


def _filled(
    kind: VisionKind, plain: Mapping[str, Any], weights: dict[str, Any], dtype: torch.dtype, folder: Path
) -> nn.Module:
    """A network of the library with exactly these weights, under the names of whatever version saved them."""
    for name, tensor in weights.items():
        check_numbers(tensor, name, str(folder))
    plain = plain.get("vision_config", plain)

    def make() -> Any:
        config = kind.model.config_class.from_dict({key: value for key, value in plain.items() if key != "auto_map"})
        patch_size(config)
        if kind.shuffles:
            config.mask_ratio = 0.0  # all patches are read
        return kind.model(config, **kind.arguments)

    config = build_network(make, plain, len(weights), str(folder / "config.json")).config
    try:
        with _quiet():
            network, found = kind.model.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype=dtype,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
                **kind.arguments,
            )
    except Exception as error:  # what the library raises of broken configs and tensors is not listed anywhere
        raise WeightsError(
            f"{folder} cannot be loaded as {kind.model.__name__} ({type(error).__name__}: {first_line(error)})"
        ) from error
    _check_found(found, kind, folder)
    broken = damaged_weights(network)
    if broken:
        raise WeightsError(f"{folder} is broken: {broken[0]} holds values that are not finite; take another copy")
    result: nn.Module = network.eval()
    return result


def _check_found(found: Mapping[str, Any], kind: VisionKind, folder: Path) -> None:
    more = [name for name in found["unexpected_keys"] if not name.removeprefix("embeddings.").startswith(_NOT_READ)]
    lists = {
        "missing": sorted(found["missing_keys"]),
        "not expected": sorted(more),
        "of another shape": sorted(
            f"{name} is {tuple(given)}, expected {tuple(own)}" for name, given, own in found["mismatched_keys"]
        ),
    }
    parts = [f"{len(names)} {what}, such as {', '.join(names[:_SHOWN])}" for what, names in lists.items() if names]
    if parts:
        raise WeightsError(
            f"{folder} does not fit {kind.model.__name__}, and is not loaded in part: {'; '.join(parts)}. Take a "
            "complete copy, and the config.json that belongs to it"
        )


def _statistics(path: Path) -> tuple[Sequence[float], Sequence[float]]:
    plain = read_json(path, WeightsError)
    found = [plain.get("image_mean"), plain.get("image_std")]
    for key, values in zip(("image_mean", "image_std"), found, strict=True):
        numbers = isinstance(values, list) and all(isinstance(one, int | float) for one in values)
        if not numbers or len(values) != 3 or (key == "image_std" and min(values) <= 0):
            raise WeightsError(f"{path}: {key}={values!r}; expected three numbers, of red, green and blue")
    return found[0], found[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the progress bar and the report of the library, whose findings are checked here."""
    level, bar = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if bar:
            library_logging.enable_progress_bar()
