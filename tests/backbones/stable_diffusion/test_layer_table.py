from __future__ import annotations

import json

import torch
from diffusers import UNet2DConditionModel

from gate_lightning.backbones.stable_diffusion.layer_table import unet_layers
from tests.support.paths import GOLDEN
from tests.support.small_networks import build


def sd15_on_meta() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def test_stable_diffusion_15_has_197_layers_with_the_published_shapes() -> None:
    layers = unet_layers(sd15_on_meta(), 8)
    assert len(layers) == 197
    # (channels, side at 512 px), from the table of shapes of the field's code
    published = {
        "unet-in": (4, 64),
        "unet-after-conv-in": (320, 64),
        "unet-out": (4, 64),
        "down-level0-repeat0-res-increment": (320, 64),
        "down-level0-downsampler-out": (320, 32),
        "down-level1-repeat0-vit-block0-ffn-inner": (2560, 32),
        "down-level2-downsampler-out": (1280, 8),
        "down-level3-repeat1-res-out": (1280, 8),
        "mid-vit-block0-cross-q": (1280, 8),
        "mid-repeat1-res-out": (1280, 8),
        "up-level0-upsampler-out": (1280, 16),
        "up-level1-upsampler-out": (1280, 32),
        "up-level2-upsampler-out": (640, 64),
        "up-level2-repeat1-vit-block0-cross-q": (640, 32),
        "up-level3-repeat0-vit-block0-self-k": (320, 64),
        "up-level3-repeat2-vit-out": (320, 64),
    }
    assert {layer: (layers[layer].channels, 512 // layers[layer].stride) for layer in published} == published


def test_ids_and_their_order_are_those_of_the_fields_code() -> None:
    facts = json.loads((GOLDEN / "facts.json").read_text())
    assert list(unet_layers(sd15_on_meta(), 8)) == facts["all_layer_ids"]


def test_ids_follow_depth_and_repeats_of_the_network() -> None:
    one_repeat, deep = build("one_repeat").layers, build("sd2_deep").layers
    assert "up-level1-repeat1-res-out" in one_repeat
    assert "up-level1-repeat2-res-out" not in one_repeat  # one residual block a level, one more on the way up
    assert "up-level2-upsampler-out" not in one_repeat  # three levels: the last has no upsampler
    assert "up-level3-repeat2-vit-block1-cross-q" in deep
    assert "up-level3-repeat2-vit-block2-cross-q" not in deep
