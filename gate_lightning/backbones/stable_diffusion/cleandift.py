"""CleanDIFT (Stracke et al., CVPR 2025): Stable Diffusion U-Nets fine-tuned to read clean latents, not noisy ones.

Published as the U-Net alone, to go with a Stable Diffusion model's other parts, or as the whole training state, which
has the one learned timestep too. A U-Net of ``task=cleandift`` is a diffusers folder, with that timestep in its header.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from gate_lightning.backbones.noise_schedule import CleanSchedule
from gate_lightning.backbones.stable_diffusion.clip_text import LongPrompts
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.weights.checkpoints import read_checkpoint
from gate_lightning.backbones.weights.locate import check_weight_file, file_digest, find_weights, weight_files
from gate_lightning.backbones.weights.networks import fill_network
from gate_lightning.errors import WeightsError
from gate_lightning.structures import Identity
from gate_lightning.utils.checks import number
from gate_lightning.utils.text import read_json

__all__ = ["INITIAL_TIMESTEP", "OWN_TIMESTEP", "clean_reader", "load_cleandift_backbone"]

log = logging.getLogger(__name__)

#: initial value of the learned timestep in training; used with files of the U-Net alone.
INITIAL_TIMESTEP = 261.0
#: key of the learned timestep in the header of a U-Net's file
OWN_TIMESTEP = "own_timestep"
_PREFIX = "unet_feature_extractor_cleandift."


def clean_reader(
    base: UNetBackbone, own_timestep: float, identity: Identity, unet: UNet2DConditionModel | None = None
) -> UNetBackbone:
    """A model of the Stable Diffusion family whose U-Net reads clean latents at a timestep of its own.

    No noise is added, and the timestep of a branch has no effect. It is steered by prompts and LoRA; not by
    ControlNets, which are trained on noisy latents, nor by trajectories along the noise schedule.

    Args:
        base: model whose parts are used, shared.
        own_timestep: constant time input of the U-Net; may be fractional.
        identity: name, revision and digest of the weights.
        unet: the U-Net; None for that of ``base``.

    Raises:
        ConfigError: a timestep outside the schedule.
    """
    length = base.schedule.length
    number(own_timestep, "own_timestep", 0, length - 1)
    schedule = CleanSchedule(float(own_timestep), length)
    return base.with_unet(base.unet if unet is None else unet, schedule, identity)


def load_cleandift_backbone(
    weights: str,
    base: str,
    file: str = "",
    own_timestep: float | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
    base_variant: str | None = None,
    dtype: str = "float32",
    channels_last: bool = False,
    architecture: str = "sd15",
    seed: int = 0,
    offline: bool = False,
    native_size: int | None = None,
    long_prompts: LongPrompts = "windows",
) -> UNetBackbone:
    """A frozen CleanDIFT U-Net with the autoencoder and text encoder of the model it was made from.

    Args:
        weights: the U-Net (a plain diffusers state dict) or the whole training state: a file, a folder or hub id that
            holds ``file``, the folder of a U-Net as diffusers writes it (``task=cleandift`` does), or "random".
        base: Stable Diffusion model, as ``weights`` of ``load_unet_backbone``.
        file: name inside the folder or hub repository.
        own_timestep: time input of the U-Net. None for the learned one, of a training state or in the file's header,
            and for 261, its initial value, with another U-Net alone.
        revision, base_revision: commit or tag of hub ids.
        base_variant: file name variant of the base model.
        dtype, channels_last, offline, native_size, long_prompts: see ``load_unet_backbone``.
        architecture, seed: of ``weights=random``.

    Raises:
        WeightsError: weights missing, broken, or of another U-Net than the base model's.
    """
    random = weights == "random"
    made = load_unet_backbone(
        weights="random" if random else base,
        revision=None if random else base_revision,
        variant=base_variant,
        dtype=dtype,
        architecture=architecture,
        seed=seed,
        offline=offline,
        native_size=native_size,
        long_prompts=long_prompts,
    )
    if random:
        identity = Identity(f"{made.identity.name}-cleandift", made.identity.revision, made.identity.digest)
        learned = None
    else:
        path = _checkpoint(str(weights), file, revision, offline)
        learned = _replace_unet(made.unet, path)
        digest = hashlib.sha256(f"{made.identity.digest} {file_digest(path)}".encode()).hexdigest()
        inside = path.name == file and Path(weights).name != file
        identity = Identity(f"{weights}/{file}" if inside else str(weights), revision or "", digest)
        log.info("Loaded %s (%s) onto %s.", identity.name, digest[:12], base)
    timestep = INITIAL_TIMESTEP if learned is None else learned
    backbone = clean_reader(made, timestep if own_timestep is None else own_timestep, identity)
    return backbone.finish(dtype, channels_last)


def _checkpoint(weights: str, file: str, revision: str | None, offline: bool) -> Path:
    advice = "Name the CleanDIFT U-Net's file: backbone.weights=<file>"
    path = find_weights(weights, revision, (file,) if file else (), offline, advice)
    if path.is_dir():
        if (path / "config.json").is_file() and not (path / file).is_file():
            return _of_diffusers(path)
        if not file or not (path / file).is_file():
            found = sorted(entry.name for entry in path.iterdir())
            raise WeightsError(f"{path} holds no {file or 'file named by backbone.file'} (found: {found})")
        return path / file
    return path


def _of_diffusers(folder: Path) -> Path:
    """The file of a U-Net's folder."""
    made_by, files = read_json(folder / "config.json", WeightsError).get("_class_name"), weight_files(folder)
    if made_by != UNet2DConditionModel.__name__ or len(files) != 1:
        raise WeightsError(f"{folder} holds a {made_by} in {len(files)} files, expected a UNet2DConditionModel in one")
    return files[0]


def _replace_unet(unet: nn.Module, path: Path) -> float | None:
    """Give ``unet`` the weights of a checkpoint, in place; the learned timestep, or None if there is none."""
    state: Mapping[str, Tensor] = read_checkpoint(path)
    learned = _in_header(path)
    if any(name.startswith(_PREFIX) for name in state):
        learned = _single_number(path, state.get("timestep"))
        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    advice = "Check that backbone.base is the model it was made from"
    fill_network(unet, state, next(unet.parameters()).dtype, str(path), advice)
    return learned


def _in_header(path: Path) -> float | None:
    text = check_weight_file(path).get(OWN_TIMESTEP) if path.suffix == ".safetensors" else None
    try:
        return None if text is None else float(text)
    except ValueError:
        raise WeightsError(f"{path}: {OWN_TIMESTEP}={text!r:.40} in its header, expected a number") from None


def _single_number(path: Path, timestep: Tensor | None) -> float:
    if timestep is None or timestep.numel() != 1 or not torch.isfinite(timestep.float()).all():
        raise WeightsError(f"{path} has {_PREFIX}* but no timestep, a single number; is it whole?")
    return float(timestep)
