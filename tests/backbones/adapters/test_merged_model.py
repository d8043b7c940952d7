"""A model folder with a LoRA merged into its weights is a backbone like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.weights.locate import find_weights
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.techniques.lora import LoRA
from tests.support.small_networks import (
    adapted_layers,
    conditions,
    merge,
    random_images,
    random_pairs,
    relative,
    save_diffusers,
)

LAYER = "up-level1-upsampler-out"


def test_a_merged_folder_gives_what_the_lora_gives_under_another_identity(tmp_path: Path) -> None:
    plain = load_unet_backbone("tiny")
    merged = load_unet_backbone("tiny")
    layers = {name: layer for name, layer in adapted_layers(merged).items() if name.startswith("unet.")}
    pairs = random_pairs(layers)
    merge(layers, pairs, 0.5)
    folder = tmp_path / "merged"
    shutil.copytree(find_weights("asset:tiny", None, ("*",), True, ""), folder)
    merged.unet.save_pretrained(folder / "unet")
    loaded = load_unet_backbone(str(folder))
    assert loaded.identity.digest != plain.identity.digest
    adapter = LoRA("a", str(save_diffusers(tmp_path / "a.safetensors", pairs)), 0.5)
    images, given = random_images(1), conditions(1)
    expected = FeatureExtractor(plain, [Branch("x", 50, (LAYER,), (adapter,))])(images, given)["x"][LAYER]
    actual = FeatureExtractor(loaded, [Branch("x", 50, (LAYER,))])(images, given)["x"][LAYER]
    without = FeatureExtractor(plain, [Branch("x", 50, (LAYER,))])(images, given)["x"][LAYER]
    assert torch.isfinite(actual).all()
    assert relative(actual, expected) < 1e-5
    assert relative(actual, without) > 1e-3
