"""Pairs say what does not fit when they are made, and batches of them move between devices whole."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.structures import Conditions, ImageBatch, Pair, PairBatch


def test_points_and_names_of_a_pair_fit_each_other() -> None:
    points = torch.zeros(2, 2)
    assert len(Pair("a", "b", points, points, (8, 8), (8, 8), keypoint_ids=("ear", "tail"))) == 2
    with pytest.raises(ValueError, match=r"a → b: points are \[\(1, 2\), \(2, 2\)\]; give \(N, 2\) of both images"):
        Pair("a", "b", points, points[:1], (8, 8), (8, 8))
    with pytest.raises(ValueError, match="a → b: 1 keypoint_ids for 2 points"):
        Pair("a", "b", points, points, (8, 8), (8, 8), keypoint_ids=("ear",))


def test_a_batch_of_pairs_moves_with_both_images_and_all_points() -> None:
    points = torch.zeros(1, 2, 2)
    source, target = (ImageBatch(torch.zeros(1, 3, 8, 8), Conditions((name,))) for name in "ab")
    batch = PairBatch(source, target, (Pair("a", "b", points[0], points[0], (8, 8), (8, 8)),), points, points)
    moved = batch.to("meta")
    tensors = (moved.source.images, moved.target.images, moved.source_points, moved.target_points)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(moved) == 1 and moved.pairs == batch.pairs
