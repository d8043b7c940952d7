"""Pooled features: averages, with strides that say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.structures import Conditions
from tests.support.segmentation_fakes import FakeExtractor

CONDITIONS = Conditions(("a", "b"))


def test_maps_are_means_of_their_cells() -> None:
    extractor, images = FakeExtractor(), torch.rand(2, 3, 16, 32)
    fine = extractor(images, CONDITIONS)["steered"]["fine"]
    coarse = PooledExtractor(extractor, 2)(images, CONDITIONS)["steered"]["fine"]
    assert coarse.shape == (2, 6, 2, 4)
    for y in range(2):
        for x in range(4):
            cell = fine[:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((2, 3))
            torch.testing.assert_close(coarse[:, :, y, x], cell)


def test_what_does_not_divide_is_covered_evenly() -> None:
    images = torch.zeros(2, 3, 24, 40)
    coarse = PooledExtractor(FakeExtractor(), 4)(images, CONDITIONS)["plain"]
    assert coarse["fine"].shape[-2:] == (2, 3)  # of 6 × 10
    assert coarse["coarse"].shape[-2:] == (1, 2)  # of 3 × 5


def test_strides_and_description_say_so() -> None:
    extractor = FakeExtractor()
    pooled = PooledExtractor(extractor, 2)
    assert {layer: info.stride for layer, info in pooled.feature_info["plain"].items()} == {"fine": 8, "coarse": 16}
    assert {info.channels for info in pooled.feature_info["plain"].values()} == {6}
    assert pooled.description == {**extractor.description, "pooling": 2}
    assert pooled.backbone is extractor.backbone


@pytest.mark.parametrize("pooling", [0, -1, 1.5, "2", True])
def test_a_factor_out_of_range_is_refused(pooling: object) -> None:
    with pytest.raises(ConfigError, match=r"pooling \(features.pooling\)="):
        PooledExtractor(FakeExtractor(), pooling)


def test_attention_weights_are_refused() -> None:
    extractor = FakeExtractor()
    extractor.feature_info["plain"]["fine"] = replace(extractor.feature_info["plain"]["fine"], stride=0)
    with pytest.raises(ConfigError, match="plain: fine gives attention weights"):
        PooledExtractor(extractor, 2)
