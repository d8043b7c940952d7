"""Vision transformers against the library's own hidden states; loading, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from gate_lightning.backbones.vision.backbone import VisionBackbone
from gate_lightning.backbones.vision.loading import load_vision_backbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.structures import Identity
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import conditions, random_images, steps
from tests.support.vision_networks import KINDS, MEAN, MLP, SMALL, STD, network, saved


@torch.no_grad()
def maps(backbone: VisionBackbone, images: Tensor, layers: list[str]) -> dict[str, Tensor]:
    with FeatureRecorder(backbone, layers) as recorder:
        backbone.denoise(backbone.encode(images), 50, backbone.encode_text(["a"] * len(images)))
    return recorder.features


@pytest.mark.parametrize("size", [(32, 32), (20, 44)])
@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_the_patches_of_the_librarys_hidden_states(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    """At the size of the weights and at another one, whose positions the library interpolates."""
    oracle = saved(kind, tmp_path)
    _, _, before, further = KINDS[kind]
    images = random_images(2, *size)
    pixels = ((images + 1) / 2 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    rows, columns = size[0] // 4, size[1] // 4
    if kind == "vit_mae":
        further = {**further, "noise": torch.arange(rows * columns)[None].expand(2, -1)}
    with torch.no_grad():
        found = oracle(pixels, output_hidden_states=True, **further)
    backbone = load_vision_backbone(str(tmp_path))
    blocks = [f"block-{index}-out" for index in range(3)]
    last = ["norm-out"] if "norm-out" in backbone.layers else []
    got = maps(backbone, images, [*blocks, *last])
    wanted = list(found.hidden_states[1:]) + [found.last_hidden_state] * len(last)
    if last and len(found.hidden_states) == 4 and torch.equal(found.hidden_states[-1], found.last_hidden_state):
        wanted[2] = None  # the library gives the last block's output normalised
    for name, tokens in zip([*blocks, *last], wanted, strict=True):
        if tokens is not None:
            expected = tokens[:, before:].reshape(2, rows, columns, -1).permute(0, 3, 1, 2)
            torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_every_kind(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path)
    backbone = load_vision_backbone(str(tmp_path), native_size=32)
    got = maps(backbone, random_images(1, 12, 20), list(backbone.layers)[::-1])
    assert steps(got) == steps(backbone.layers)  # in the order of computation
    assert {tuple(value.shape) for value in got.values()} == {(1, 24, 3, 5)}
    # keys are what the block's own projection makes of its input
    block = backbone.denoiser.get_submodule(backbone.layers["block-1-out"].module)
    projection = backbone.denoiser.get_submodule(backbone.layers["block-1-self-k"].module)
    first = next(module for name, module in block.named_modules() if isinstance(module, torch.nn.LayerNorm))
    inputs = first(got["block-0-out"].flatten(2).transpose(1, 2))
    torch.testing.assert_close(got["block-1-self-k"].flatten(2).transpose(1, 2), projection(inputs))


def test_images_are_normalised_by_the_kinds_statistics_without_a_file(tmp_path: Path) -> None:
    saved("dinov2", tmp_path, statistics=False)
    white = torch.ones(1, 3, 8, 8)
    plain = load_vision_backbone(str(tmp_path))
    assert plain.description["mean"] == [0.485, 0.456, 0.406]
    saved("dinov2", tmp_path)
    other = load_vision_backbone(str(tmp_path))
    assert other.description["std"] == list(STD)
    assert other.identity.digest != plain.identity.digest
    assert not torch.equal(
        maps(plain, white, ["patch-out"])["patch-out"], maps(other, white, ["patch-out"])["patch-out"]
    )


def test_half_precision_keeps_rotary_frequencies(tmp_path: Path) -> None:
    saved("dinov3_vit", tmp_path)
    images = random_images(1, 32, 48)
    half = load_vision_backbone(str(tmp_path), dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.network.rope_embeddings.inv_freq.dtype == torch.float32  # type: ignore[union-attr]
    whole = maps(load_vision_backbone(str(tmp_path)), images, ["norm-out"])["norm-out"]
    torch.testing.assert_close(maps(half, images, ["norm-out"])["norm-out"].float(), whole, rtol=0.1, atol=0.1)


def test_the_vision_tower_of_a_whole_clip(tmp_path: Path) -> None:
    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config={**SMALL, **MLP}, projection_dim=8)
    torch.manual_seed(0)
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    tower = load_vision_backbone(str(tmp_path / "whole"))
    images = random_images(1, 32, 32)
    pixels = images * tower._factor + tower._offset
    with torch.no_grad():
        expected = whole.vision_model(pixels, output_hidden_states=True).hidden_states[2][:, 1:]
    torch.testing.assert_close(maps(tower, images, ["block-1-out"])["block-1-out"].flatten(2).transpose(1, 2), expected)


def test_presets() -> None:
    backbone = load_vision_backbone("random", architecture="dinov2_tiny")
    assert resolve_layers(backbone, "last") == ("block-2-out",)
    with pytest.raises(ConfigError, match="no layers for the preset 'last4'"):  # it has three blocks
        resolve_layers(backbone, "last4")
    with pytest.raises(ConfigError, match=r"gate_segmentation.*presets: full, last"):
        resolve_layers(backbone, "gate_segmentation")


def test_timestep_prompt_and_noise_change_nothing() -> None:
    images, backbone = random_images(1, 32, 32), load_vision_backbone("random", architecture="dinov2_tiny")
    one, other = (
        FeatureExtractor(backbone, [Branch("none", timestep, ("last",), prompt=prompt, noise_seed=timestep)])
        for timestep, prompt in ((0, ""), (900, "a house"))
    )
    a, b = (next(iter(extractor(images, conditions(1))["none"].values())) for extractor in (one, other))
    assert torch.equal(a, b)


def test_images_of_any_size_are_padded_to_whole_patches() -> None:
    extractor = FeatureExtractor(
        load_vision_backbone("random", architecture="dinov3_tiny"), [Branch("x", 0, ("last",))]
    )
    assert extractor(random_images(1, 33, 50), conditions(1))["x"]["block-2-out"].shape == (1, 32, 5, 7)


@pytest.mark.parametrize("technique", [Prompt("a"), ControlNet(), LoRA("a", "a.safetensors")])
def test_techniques_are_refused(technique: Any) -> None:
    backbone = load_vision_backbone("random", architecture="dinov2_tiny")
    with pytest.raises(ConfigError, match="techniques=none"):
        FeatureExtractor(backbone, [Branch("x", 50, ("last",), (technique,))])
    with pytest.raises(ConfigError, match="all its draws would be equal"):
        FeatureExtractor(backbone, [Branch("x", 50, ("last",), ensemble=8)])
    with pytest.raises(ConfigError, match="makes no images"):
        backbone.decode(torch.zeros(1, 3, 8, 8))


def test_the_published_size() -> None:
    with torch.device("meta"):
        made = {name: load_vision_backbone("random", architecture=name) for name in ("dinov2_base", "dinov3_base")}
    assert [(one.patch, one.native_size) for one in made.values()] == [(14, 518), (16, 224)]
    assert [sum(p.numel() for p in one.parameters()) for one in made.values()] == [86_580_480, 85_660_416]


def test_missing_weights_name_the_key() -> None:
    with pytest.raises(WeightsError, match=r"backbone\.weights=<folder>"):
        load_vision_backbone("nobody/nothing", offline=True)
    with pytest.raises(WeightsError, match=r"backbone\.weights=<folder>"):
        load_vision_backbone("models/nothing/here")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    saved("dinov2", tmp_path)
    file, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    weights, plain = load_file(file), json.loads(config.read_text())

    def refused(match: str, state: dict[str, Tensor] | None = None, **settings: Any) -> None:
        save_file(weights if state is None else state, file, metadata={"format": "pt"})
        config.write_text(json.dumps({**plain, **settings}))
        with pytest.raises(WeightsError, match=match):
            load_vision_backbone(str(tmp_path))

    name = "encoder.layer.1.norm1.weight"
    refused("1 missing, such as encoder.layer.1.norm1.weight", {k: v for k, v in weights.items() if k != name})
    refused("1 not expected, such as embeddings.extra", {**weights, "embeddings.extra": torch.zeros(3)})
    refused(r"1 of another shape.*\(5,\), expected \(24,\)", {**weights, name: torch.ones(5)})
    refused("values that are not finite", {**weights, name: torch.full((24,), torch.nan)})
    refused("a number format that is not read", {**weights, name: torch.ones(24, dtype=torch.int8)})
    refused("far more tensors", num_hidden_layers=10**6)
    refused("square ones", patch_size=[4, 8])
    refused("expected 3, red green blue", num_channels=1)
    refused("as vision transformers dinov2, .* are known", model_type="swin")
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0, 1, 1]}')
    refused("image_mean=.* expected three numbers")
    with pytest.raises(WeightsError, match="is a file, expected a folder"):
        load_vision_backbone(str(file))
    (tmp_path / "preprocessor_config.json").unlink()
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r"backbone\.native_size=32"):
        load_vision_backbone(str(tmp_path), native_size=518)


def test_a_backbone_of_other_statistics() -> None:
    made = VisionBackbone(network("dinov2"), "dinov2", Identity("x", "", ""), MEAN, STD)
    assert (made.mean, made.std) == (MEAN, STD)
