"""Concatenation of branches."""

from __future__ import annotations

import torch

from gate_lightning.amalgamation.concat import ConcatAmalgamation
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
