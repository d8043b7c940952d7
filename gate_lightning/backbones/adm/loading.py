"""Loader of unconditional pixel-space models: guided-diffusion checkpoints, folders, hub ids, random."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import UNet2DModel

from gate_lightning.backbones.adm.backbone import ADM_SCHEDULE, ADMBackbone, check_unconditional
from gate_lightning.backbones.adm.convert import ADMArchitecture, adm_unet
from gate_lightning.backbones.noise_schedule import DiffusionSchedule
from gate_lightning.backbones.stable_diffusion.architectures import parameters_digest
from gate_lightning.backbones.weights.checkpoints import read_checkpoint
from gate_lightning.backbones.weights.locate import (
    file_digest,
    find_weights,
    folder_digest,
    stored_bytes,
    weight_files,
)
from gate_lightning.backbones.weights.networks import open_part
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.console import taking
from gate_lightning.utils.dtypes import DTYPES
from gate_lightning.utils.text import read_json
from gate_lightning.utils.units import human_size

__all__ = ["ADM_ARCHITECTURES", "load_adm_backbone"]

log = logging.getLogger(__name__)

#: architectures of ``weights=random``: the published one (552.8 M parameters), and one for tests
ADM_ARCHITECTURES = {
    "adm256": ADMArchitecture((256, 256, 512, 512, 1024, 1024), (False, False, False, True, True, True)),
    "adm_tiny": ADMArchitecture((32, 32, 64, 64), (False, False, True, True), head_channels=16, image_size=64),
}
_PATTERNS = [
    f"{part}{name}"
    for part in ("", "unet/", "scheduler/")
    for name in ("config.json", "scheduler_config.json", "diffusion_pytorch_model*.safetensors")
]
_ADVICE = "Download the checkpoint (addresses: conf/backbone/adm_*.yaml) and name it: backbone.weights=<file>"


def load_adm_backbone(
    weights: str,
    revision: str | None = None,
    dtype: str = "float32",
    channels_last: bool = False,
    head_channels: int = 64,
    architecture: str = "adm256",
    seed: int = 0,
    offline: bool = False,
    native_size: int = 256,
) -> ADMBackbone:
    """A frozen unconditional model over pixels: guided-diffusion's, or an unconditional one in diffusers format.

    Args:
        weights: a guided-diffusion checkpoint (``.pt`` or ``.safetensors``; no pickled code is run), a diffusers folder
            or hub id (``google/ddpm-*``: Ho et al.'s, other weights than guided-diffusion's), or "random".
        revision: commit or tag of a hub id.
        dtype: "float32", "bfloat16" or "float16" of weights and computation. Half precision on a CPU is very slow.
        channels_last: memory format of the convolutions; faster on CPUs and recent GPUs, same numbers up to rounding.
        head_channels: channels of an attention head (guided-diffusion's ``num_head_channels``), which are not in a
            checkpoint. Ignored for diffusers folders, which have them in their config.
        architecture, seed: of ``weights=random``; a key of ADM_ARCHITECTURES.
        offline: never download.
        native_size: side in pixels of the training images, the default crop size of data sets. Not in a checkpoint; for
            a folder it must be that of its config.

    Raises:
        WeightsError: weights missing, broken, or of another kind of model.
    """
    check_choice(dtype, "backbone.dtype", DTYPES)
    if weights == "random":
        with taking(f"building {architecture} with random weights"):
            backbone = _random(architecture, seed)
    else:
        path = find_weights(str(weights), revision, _PATTERNS, offline, _ADVICE)
        with taking(f"loading {weights}: {human_size(stored_bytes(path))} in {path}"):
            if path.is_dir():
                backbone = _from_folder(path, str(weights), revision or "", native_size, DTYPES[dtype])
            else:
                backbone = _from_checkpoint(path, str(weights), head_channels, native_size, DTYPES[dtype])
        log.info("Loaded %s (%s) from %s.", weights, backbone.identity.digest[:12], path)
    return backbone.finish(dtype, channels_last)


def _random(architecture: str, seed: int) -> ADMBackbone:
    check_choice(architecture, "backbone.architecture", ADM_ARCHITECTURES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DModel(**ADM_ARCHITECTURES[architecture].config)
    return ADMBackbone(
        unet, DiffusionSchedule(ADM_SCHEDULE), Identity(f"random-{architecture}", str(seed), parameters_digest(unet))
    )


def _from_checkpoint(path: Path, name: str, head_channels: int, image_size: int, dtype: torch.dtype) -> ADMBackbone:
    state = read_checkpoint(path)
    try:
        unet = adm_unet(state, head_channels, image_size, dtype)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return ADMBackbone(unet, DiffusionSchedule(ADM_SCHEDULE), Identity(name, "", file_digest(path)))


def _from_folder(folder: Path, name: str, revision: str, native_size: int, dtype: torch.dtype) -> ADMBackbone:
    autoencoder = [part for part in ("vqvae", "vae") if (folder / part).is_dir()]
    if autoencoder:
        raise WeightsError(f"{folder} has a {autoencoder[0]}: a latent diffusion model; expected one over pixels")
    part = next((part for part in (folder, folder / "unet") if (part / "config.json").is_file()), None)
    if part is None:
        found = sorted(path.name for path in folder.iterdir())
        raise WeightsError(
            f"{folder} holds neither config.json nor unet/config.json (found: {found}); "
            f"expected an unconditional diffusers model, or name the checkpoint inside: backbone.weights=<file>"
        )
    config = read_json(part / "config.json", WeightsError)
    check_unconditional(config)  # before gigabytes are read
    if native_size != config["sample_size"]:
        raise ConfigError(
            f"backbone.native_size={native_size}, but {name} was trained on images of {config['sample_size']} px; "
            f"set backbone.native_size={config['sample_size']}"
        )
    unet = open_part(UNet2DModel, part, dtype)
    files = [*weight_files(part), part / "config.json"]
    schedule, places = ADM_SCHEDULE, (folder / "scheduler", folder)
    file = next(
        (place / "scheduler_config.json" for place in places if (place / "scheduler_config.json").is_file()), None
    )
    if file is None:
        log.info("%s has no scheduler_config.json: linear betas from 1e-4 to 2e-2 over 1000 steps.", folder)
    else:
        schedule = read_json(file, WeightsError)
        files.append(file)
    return ADMBackbone(unet, DiffusionSchedule(schedule), Identity(name, revision, folder_digest(files, folder)))
