from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gate_lightning.backbones.base import Backbone
from gate_lightning.engine.jobs.tools import run_tool
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.tools.layers.costs import layer_costs
from gate_lightning.tools.layers.table import layers
from tests.support.composition import composed
from tests.support.small_networks import build

TINY: dict[str, Any] = {
    "_target_": "gate_lightning.backbones.stable_diffusion.loading.load_unet_backbone",
    "weights": "tiny",
    "architecture": "tiny",
}
HEIGHT, WIDTH = 36, 56


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("one_repeat")


def operations_of_a_stopped_pass(backbone: Backbone, layer: str) -> tuple[int, tuple[int, ...]]:
    """Oracle: a pass that really ends there."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the counter does not know the CPU's fused kernel
        latents, embeds = backbone.encode(torch.zeros(1, 3, HEIGHT, WIDTH)), backbone.encode_text([""])
        with FlopCounterMode(display=False) as counter, FeatureRecorder(backbone, [layer]) as recorder:
            backbone.denoise(latents, 1, embeds)
    return counter.get_total_flops(), tuple(recorder.features[layer].shape[1:])


@pytest.mark.parametrize(
    "layer",
    [
        "unet-in",
        "down-level0-repeat0-vit-block0-self-k",
        "down-level0-downsampler-out",
        "mid-repeat0-res-increment",
        "up-level1-repeat0-vit-block0-ffn-inner",
        "up-level1-repeat1-vit-block0-cross-map",
        "attn-up-cross",
        "attn-down-self",
        "unet-out",
        "vae-out",
    ],
)
@pytest.mark.slow
def test_costs_and_shapes_are_those_of_a_pass_that_ends_there(backbone: Backbone, layer: str) -> None:
    shape, operations = layer_costs(backbone, HEIGHT, WIDTH).layers[layer]
    assert (operations, shape) == operations_of_a_stopped_pass(backbone, layer)


def test_costs_grow_along_the_network_and_end_at_the_whole_pass(backbone: Backbone) -> None:
    costs = layer_costs(backbone, HEIGHT, WIDTH)
    own = [costs.layers[layer][1] for layer, spec in backbone.layers.items() if spec.kind != "attention"]
    assert own == sorted(own)
    assert own[-1] == costs.denoiser
    assert costs.encoder > 0


def test_no_hook_stays_behind(backbone: Backbone) -> None:
    layer_costs(backbone, HEIGHT, WIDTH)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


@pytest.mark.thorough
def test_the_table_of_a_configuration_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    original = Backbone.freeze

    def freeze(self: Backbone) -> None:  # the last thing a backbone does when it is built
        built.append({parameter.device.type for parameter in self.parameters()})
        original(self)

    monkeypatch.setattr(Backbone, "freeze", freeze)
    text = layers({**TINY, "weights": "somebody/some-model"}, output=tmp_path)
    assert built == [{"meta"}]
    with (tmp_path / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    real = build("tiny")
    assert [row["layer"] for row in rows] == [*real.layers, *real.derived]
    assert all(row["layer"] in text for row in rows)
    mid = next(row for row in rows if row["layer"] == "mid-repeat1-res-out")
    assert (mid["module"], mid["channels"], mid["stride"]) == ("mid_block.resnets.1", "96", "32")
    assert mid["shape"] == "96x2x2"  # at its native 64 px
    assert mid["aliases"] == "mid mid_block"
    costs = layer_costs(real, 64, 64)
    assert float(mid["gflop"]) == pytest.approx(costs.layers["mid-repeat1-res-out"][1] / 1e9, rel=1e-5)
    assert float(mid["share"]) == pytest.approx(costs.layers["mid-repeat1-res-out"][1] / costs.denoiser, rel=1e-5)


def test_rows_are_chosen_by_pattern_alias_or_preset(backbone: Backbone, tmp_path: Path) -> None:
    expected = {
        "up-level1-repeat0-vit-block0-self-?": [f"up-level1-repeat0-vit-block0-self-{part}" for part in "qkv"],
        "us3": ["up-level1-repeat0-vit-out"],
        "up_blocks[1]": ["up-level1-upsampler-out"],
        "legacy": list(resolve_layers(backbone, "legacy")),
    }
    for pattern, chosen in expected.items():
        layers(backbone, size=32, filter=pattern, output=tmp_path)
        with (tmp_path / "layers.csv").open() as file:
            assert [row["layer"] for row in csv.DictReader(file)] == chosen


def test_other_sizes(backbone: Backbone) -> None:
    text = layers(backbone, size=[HEIGHT, WIDTH], filter="unet-in")
    assert "36 × 56 px" in text
    assert "4×9×14" in text
    with pytest.raises(DataError, match="multiples of 4"):
        layers(backbone, size=37)
    with pytest.raises(ConfigError, match="height and width"):
        layers(backbone, size=[36, 56, 3])


def test_raw_pixels_cost_nothing() -> None:
    text = layers({"_target_": "gate_lightning.backbones.raw_pixels.PixelBackbone", "native_size": 64})
    assert "pixels-stride16" in text
    assert "0.0  " in text


def test_a_pattern_without_a_match_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ConfigError, match=r"filter=nothing: no layer .*preset \(legacy"):
        layers(backbone, size=32, filter="nothing")


def test_something_else_than_a_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot build 'os\.system'"):
        layers({"_target_": "os.system"})


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed(
        "tool=layers", "backbone=tiny", "tool.filter=gate_segmentation", f"output={tmp_path}", name="eval"
    )
    with caplog.at_level(logging.INFO):
        run_tool(config, tmp_path / "elsewhere")
    assert "up-level2-upsampler-out" in caplog.text
    assert len((tmp_path / "layers.csv").read_text().splitlines()) == 4
