"""Published experiments in small: their configurations, components, backbones and LoRA files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from gate_lightning.backbones.stable_diffusion.architectures import build_random_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.components import Components
from tests.support.composition import composed
from tests.support.small_networks import adapted_layers, build, random_pairs, save_diffusers
from tests.support.xl_networks import xl_like

FOLDER = config_folder() / "experiment"


@lru_cache
def configuration(name: str) -> DictConfig:
    return composed(f"experiment={name}", "callbacks=quiet", "logger=none")


def parts_of(name: str, given: list[str], folder: Path) -> Components:
    """As with the overrides on the command line; composing takes longer than setting values."""
    config = configuration(name).copy()
    for override in given:
        key, _, value = override.partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value))
    return Components(runs.resolve(config), str(folder), training=True)


def write_loras(folder: Path, backbone: UNetBackbone, every: int = 1) -> Path:
    folder.mkdir()
    layers = dict(list(adapted_layers(backbone).items())[::every])
    for seed, role in enumerate(("moderate", "overtrained")):
        save_diffusers(folder / f"{role}.safetensors", random_pairs(layers, seed=seed))
    return folder


@lru_cache
def structure(architecture: str) -> UNetBackbone:
    with torch.device("meta"):
        return build_random_backbone(architecture)


@lru_cache
def small(architecture: str) -> UNetBackbone:
    backbone = build("tiny") if architecture == "sd15" else xl_like(depth=8)
    assert isinstance(backbone, UNetBackbone)
    return backbone
