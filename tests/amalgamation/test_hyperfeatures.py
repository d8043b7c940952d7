"""The aggregation network of Diffusion Hyperfeatures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, interpolate

from gate_lightning.amalgamation.hyperfeatures import HyperfeaturesAggregation
from gate_lightning.backbones.weights.checkpoints import read_tensors
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.structures import FeatureInfo

WIDTHS = {"coarse": (6, 16), "fine": (4, 8)}
INFO = {step: {layer: FeatureInfo(*width) for layer, width in WIDTHS.items()} for step in ("t0", "t20", "t40")}


def features(batch: int = 2) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sides = {"coarse": (3, 2), "fine": (6, 4)}
    return {
        step: {layer: torch.randn(batch, WIDTHS[layer][0], *side, generator=generator) for layer, side in sides.items()}
        for step in INFO
    }


def network(seed: int = 0, info: Any = INFO, **options: Any) -> HyperfeaturesAggregation:
    torch.manual_seed(seed)
    made = HyperfeaturesAggregation(info, **{"out_channels": 128, **options})
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def by_definition(state: dict[str, Tensor], maps: dict[str, dict[str, Tensor]]) -> Tensor:
    """The published network, in plain functions, from the tensors of a state dict."""

    def conv(x: Tensor, layer: int, name: str) -> Tensor:
        weight, scale, shift = (
            state[f"bottleneck_layers.{layer}.0.{name}.{part}"] for part in ("weight", "norm.weight", "norm.bias")
        )
        return group_norm(conv2d(x, weight, padding=weight.shape[-1] // 2), 32, scale, shift)

    weights, total, number = torch.softmax(state["mixing_weights"], dim=0), None, 0
    for of_step in maps.values():  # timesteps are the outer loop
        for layer, map_ in enumerate(of_step.values()):
            x = interpolate(map_, (6, 4), mode="bilinear", align_corners=False)
            inner = conv(torch.relu(conv(x, layer, "conv1")), layer, "conv2")
            out = torch.relu(conv(torch.relu(inner), layer, "conv3") + conv(x, layer, "shortcut"))
            total = weights[number] * out + (0 if total is None else total)
            number += 1
    assert total is not None
    return total


def test_it_is_the_published_network() -> None:
    made, maps = network(), features()
    pyramid = made(maps)
    assert made.out_channels == (128,) and made.strides == (8,)
    torch.testing.assert_close(pyramid.levels[0], by_definition(made.state_dict(), maps), rtol=0, atol=1e-5)


def test_weights_of_the_timesteps_are_told() -> None:
    made = network()
    shares = made.mixing_weights.detach().softmax(dim=0).reshape(3, 2).sum(dim=1)
    torch.testing.assert_close(made(features()).weights[0].detach(), shares[None, None])


def test_all_maps_count_alike_at_first() -> None:
    weights = HyperfeaturesAggregation(INFO, out_channels=128)(features()).weights[0]
    torch.testing.assert_close(weights, torch.full((1, 1, 3), 1 / 3))


def test_released_weights_are_taken_over() -> None:
    released = network(seed=5).state_dict()
    assert {"mixing_weights", "bottleneck_layers.0.0.shortcut.weight", "bottleneck_layers.1.0.conv3.norm.bias"} <= set(
        released
    )
    made, maps = network(), features()
    made.load_released(released, "file.pt")
    assert torch.equal(made(maps).levels[0], network(seed=5)(maps).levels[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(mixing_weights=torch.ones(22)), "mixes 22 maps, here are 3 timesteps"),
        (lambda state: state.pop("bottleneck_layers.1.0.conv2.weight"), "conv2.weight: absent in the file"),
        (
            lambda state: state.update({"bottleneck_layers.2.0.conv1.weight": torch.ones(1)}),
            "conv1.weight: only in the file",
        ),
        (
            lambda state: state.update({"bottleneck_layers.0.0.conv1.weight": torch.ones(32, 9, 1, 1)}),
            "(32, 9, 1, 1)",
        ),
        (lambda state: state.clear(), "absent in the file"),
    ],
)
def test_weights_for_something_else_are_refused(change: Any, words: str) -> None:
    state = dict(network().state_dict())
    change(state)
    made = network(seed=3)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        made.load_released(state, "file.pt")
    assert words in str(error.value) and "file.pt" in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_a_released_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "gate_lightning")
    file, maps, released = tmp_path / "aggregation_network.pt", features(), network(seed=5)
    content = {"step": 4000, "config": {"model_id": "sd"}, "optimizer_state_dict": {}}
    torch.save({**content, "aggregation_network": released.state_dict()}, file)
    made = network_from(file)
    assert torch.equal(made(maps).levels[0], released(maps).levels[0])
    assert "step 4000 of a training with {'model_id': 'sd'}" in caplog.text
    torch.save({**content, "aggregation_network": network(out_channels=256).state_dict()}, file)
    with pytest.raises(WeightsError, match="no aggregation network for 3 timesteps"):
        network_from(file)
    for nothing in (content, {**content, "aggregation_network": {"a": 1}}, released.state_dict(), [1]):
        torch.save(nothing, file)
        with pytest.raises(WeightsError, match="no released file of Hyperfeatures"):
            network_from(file)
    with pytest.raises(WeightsError, match="nowhere"):
        network_from(tmp_path / "nowhere.pt")
    with pytest.raises(ConfigError, match="nothing to read it with"):
        HyperfeaturesAggregation(INFO, released=str(file))


def network_from(file: Path) -> HyperfeaturesAggregation:
    return HyperfeaturesAggregation(INFO, out_channels=128, released=str(file), read_weights=read_tensors)


SOURCES = {
    "sd": {"s4": FeatureInfo(6, 16), "s5": FeatureInfo(4, 8)},
    "dino": {"tokens": FeatureInfo(5, 16)},
}


def of_sources(channels: float = 1.0) -> dict[str, dict[str, Tensor]]:
    return {
        source: {
            layer: torch.full((2, one.channels, 64 // one.stride, 32 // one.stride), channels)
            for layer, one in of.items()
        }
        for source, of in SOURCES.items()
    }


def test_sources_have_bottlenecks_and_weights_of_their_own() -> None:
    made = network(info=SOURCES, shared=False, stride=16)
    maps = {
        source: {layer: torch.randn_like(map_) for layer, map_ in of.items()} for source, of in of_sources().items()
    }
    parts = [
        bottleneck(interpolate(map_, (4, 2), mode="bilinear", align_corners=False))
        for bottleneck, map_ in zip(
            made.bottleneck_layers, [maps["sd"]["s4"], maps["sd"]["s5"], maps["dino"]["tokens"]], strict=True
        )
    ]
    weights = made.mixing_weights.softmax(dim=0)
    pyramid = made(maps)
    assert made.strides == (16,) and pyramid.levels[0].shape == (2, 128, 4, 2)
    torch.testing.assert_close(pyramid.levels[0], sum(w * part for w, part in zip(weights, parts, strict=True)))
    torch.testing.assert_close(pyramid.weights[0][0, 0], torch.stack([weights[:2].sum(), weights[2]]))


def test_dropout_leaves_out_whole_channels_in_training_only() -> None:
    made, seen = network(info=SOURCES, shared=False, dropout=0.5), []
    made.bottleneck_layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    made(of_sources())
    made.eval()(of_sources())
    trained, evaluated = (map_.flatten(2) for map_ in seen)
    assert {0.0, 2.0} == set(trained.unique().tolist())  # what is kept is scaled
    assert bool((trained.amin(dim=2) == trained.amax(dim=2)).all()) and bool((evaluated == 1.0).all())


def test_branches_need_the_same_layers() -> None:
    other = {**INFO, "t60": {"fine": FeatureInfo(4, 8)}}
    with pytest.raises(ConfigError, match="same layers"):
        network(info=other)
    with pytest.raises(ConfigError, match="of one width"):
        network(info={"t0": INFO["t0"], "t20": {"coarse": FeatureInfo(8, 16), "fine": FeatureInfo(4, 8)}})
    with pytest.raises(ConfigError, match="multiple of 128"):
        network(out_channels=100)
    with pytest.raises(ConfigError, match=r"amalgamation\.dropout"):
        network(dropout=1.0)
