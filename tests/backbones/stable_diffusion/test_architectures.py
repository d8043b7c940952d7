"""The project's own architecture configs against the released ones, on the meta device: shapes without numbers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from gate_lightning.backbones.stable_diffusion.architectures import STABLE_DIFFUSIONS, build_random_backbone
from gate_lightning.backbones.stable_diffusion.sdxl import SDXLBackbone

RELEASED = {"sd15": "sd-v1-4", "sd21": "sd-2-1", "sdxl": "sdxl-base-1.0"}


@cache
def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return build_random_backbone(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # millions of parameters as released: U-Net, autoencoder, text encoders (these with 49408 tokens)
        ("sd15", {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1}),
        ("sd21", {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4}),
        ("sdxl", {"unet": 2567.5, "vae": 83.7, "text_encoder": 123.1, "text_encoder_2": 694.7}),
    ],
)
def test_the_known_architectures_have_the_sizes_of_the_released_ones(name: str, expected: dict[str, float]) -> None:
    backbone = on_meta(name)
    counts = {}
    for part in expected:
        module = getattr(backbone, part)
        count = sum(parameter.numel() for parameter in module.parameters())
        if part.startswith("text"):
            known, width = module.get_input_embeddings().weight.shape
            count += (49408 - known) * width
        counts[part] = round(count / 1e6, 1)
    assert counts == pytest.approx(expected, abs=0.1)


def test_sdxl_has_612_layers_with_the_published_shapes() -> None:
    backbone = on_meta("sdxl")
    assert isinstance(backbone, SDXLBackbone)
    assert len(backbone.layers) == 612
    # (channels, side at 1024 px), from the table of shapes of the field's code
    published = {
        "unet-in": (4, 128),
        "down-level0-repeat1-res-out": (320, 128),
        "down-level1-repeat0-vit-block1-out": (640, 64),
        "down-level2-repeat1-vit-block9-self-k": (1280, 32),
        "mid-vit-block9-ffn-inner": (5120, 32),
        "up-level0-repeat0-vit-block7-out": (1280, 32),
        "up-level0-upsampler-out": (1280, 64),
        "up-level1-repeat0-vit-block0-cross-q": (640, 64),
        "up-level1-upsampler-out": (640, 128),
        "up-level2-repeat2-res-out": (320, 128),
    }
    shapes = {layer: (spec.channels, 1024 // spec.stride) for layer, spec in backbone.layers.items() if spec.stride}
    assert {layer: shapes[layer] for layer in published} == published
    assert backbone.layers["up-level0-repeat0-vit-block0-self-map"].channels == 20  # heads
    assert backbone.layers["up-level1-repeat0-vit-block0-cross-map"].channels == 10
    assert (backbone.native_size, backbone.size_multiple) == (1024, 8)


@pytest.mark.parametrize("name", RELEASED)
def test_the_configs_are_those_of_the_released_models(shared_dir: Path, name: str) -> None:
    folder = shared_dir / "data" / "hf_layouts" / RELEASED[name]
    if not folder.is_dir():
        pytest.skip("no released configurations")
    backbone = on_meta(name)
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    with torch.device("meta"):
        for part, kind in kinds.items():
            config = json.loads((folder / part / "config.json").read_text())
            released, own = kind.from_config(config), getattr(backbone, part)
            assert shapes(released) == shapes(own)
            # heads, activations and the like, which shapes do not tell
            told = {key: plain(value) for key, value in config.items() if not key.startswith("_")}
            made = {key: plain(own.config[key]) for key in told}
            assert told | {"upcast_attention": None} == made | {"upcast_attention": None}
    encoders = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for part, kind in list(encoders.items())[: len(STABLE_DIFFUSIONS[name].texts)]:
        config = CLIPTextConfig(**json.loads((folder / part / "config.json").read_text()))
        own = getattr(backbone, part).config
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
        assert {key: getattr(own, key) for key in keys} == {key: getattr(config, key) for key in keys}
        assert own.max_position_embeddings == config.max_position_embeddings
        if kind is CLIPTextModelWithProjection:
            assert own.projection_dim == config.projection_dim


@pytest.mark.parametrize("name", RELEASED)
def test_the_schedule_and_the_padding_are_those_of_the_released_models(shared_dir: Path, name: str) -> None:
    folder = shared_dir / "data" / "hf_layouts" / RELEASED[name]
    if not folder.is_dir():
        pytest.skip("no released configurations")
    released = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    backbone = on_meta(name)
    assert {key: released.get(key, "epsilon") for key in backbone.schedule.config} == dict(backbone.schedule.config)
    pads = []
    for part in ("tokenizer", "tokenizer_2"):
        if (folder / part).is_dir():
            marks = json.loads((folder / part / "special_tokens_map.json").read_text())["pad_token"]
            pads.append(marks if isinstance(marks, str) else marks["content"])
    assert pads == list(STABLE_DIFFUSIONS[name].pads)


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
