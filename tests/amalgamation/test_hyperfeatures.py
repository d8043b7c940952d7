"""The aggregation network of Diffusion Hyperfeatures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, group_norm, interpolate

from gate_lightning.amalgamation.hyperfeatures import HyperfeaturesAggregation
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
        (lambda state: state.pop("bottleneck_layers.1.0.conv2.weight"), "conv2.weight is missing"),
        (lambda state: state.update({"bottleneck_layers.2.0.conv1.weight": torch.ones(1)}), "belongs to no layer here"),
        (
            lambda state: state.update({"bottleneck_layers.0.0.conv1.weight": torch.ones(32, 9, 1, 1)}),
            "(32, 9, 1, 1)",
        ),
        (lambda state: state.clear(), "is missing"),
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


def test_branches_need_the_same_layers() -> None:
    other = {**INFO, "t60": {"fine": FeatureInfo(4, 8)}}
    with pytest.raises(ConfigError, match="same layers"):
        network(info=other)
    with pytest.raises(ConfigError, match="multiple of 128"):
        network(out_channels=100)
