"""Concatenation of branches."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.errors import ConfigError
from gate_lightning.structures import FeatureInfo


def test_branches_with_different_layers_are_concatenated_in_their_order():
    info = {"a": {"x": FeatureInfo(2, 8)}, "b": {"y": FeatureInfo(3, 8), "z": FeatureInfo(4, 16)}}
    features = {"b": {"y": torch.randn(1, 3, 4, 4), "z": torch.randn(1, 4, 2, 2)}, "a": {"x": torch.randn(1, 2, 4, 4)}}
    amalgamation = ConcatAmalgamation(info)
    pyramid = amalgamation(features)
    assert amalgamation.out_channels == (5, 4)
    assert torch.equal(pyramid.levels[0], torch.cat([features["a"]["x"], features["b"]["y"]], dim=1))
    assert torch.equal(pyramid.levels[1], features["b"]["z"])
    assert list(amalgamation.parameters()) == []


def test_normalised_branches_have_equal_weight_at_every_position_and_weights_scale_them() -> None:
    info = {"a": {"x": FeatureInfo(2, 8)}, "b": {"x": FeatureInfo(3, 8)}, "c": {"y": FeatureInfo(4, 8)}}
    a, b, c = 7 * torch.randn(1, 2, 3, 3), torch.randn(1, 3, 3, 3), torch.randn(1, 4, 3, 3)
    features = {"a": {"x": a}, "b": {"x": b}, "c": {"y": c}}
    made = ConcatAmalgamation(info, concatenated=("c",), normalize=True, weights={"b": 0.5})
    parts = made(features).levels[0].split([2, 3, 4], dim=1)
    for part, branch, weight in zip(parts, (a, b, c), (1.0, 0.5, 1.0), strict=True):
        torch.testing.assert_close(part, weight * branch / branch.square().sum(dim=1, keepdim=True).sqrt())
    plain = ConcatAmalgamation(info, concatenated=("c",))(features).levels[0]
    assert torch.equal(plain, torch.cat([a, b, c], dim=1))
    with pytest.raises(ConfigError, match=r"amalgamation.weights: unknown key 'd'"):
        ConcatAmalgamation(info, weights={"d": 1.0})
    with pytest.raises(ConfigError, match=r"amalgamation.weights.a=-1: expected a number of 0 or more"):
        ConcatAmalgamation(info, weights={"a": -1})
