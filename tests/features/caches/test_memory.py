"""The memory cache gives what the extractor gives, and asks it only once."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions, FeatureInfo, Features
from tests.support.pretended_gpu import GPU, pretended_gpu
from tests.support.small_networks import build, random_images

LAYER = "up-level1-upsampler-out"


class Counted(FeatureExtractor):
    calls = 0

    def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
        self.calls += 1
        return super().forward(images, conditions)


class Placed(nn.Module):
    """A map (B, 4, 64, 96) of float32 made of the images, where they are, in one layout."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout, self.calls = layout, 0
        self.feature_info = {"plain": {"map": FeatureInfo(4, 1)}}

    def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
        self.calls += 1
        return {"plain": {"map": torch.cat([images, images[:, :1]], dim=1).contiguous(memory_format=self.layout)}}


@pytest.fixture(scope="module")
def backbone():
    return build("tiny")


@pytest.fixture
def extractor(backbone) -> Counted:
    return Counted(backbone, [Branch("plain", 50, (LAYER,), prompt="a photo")])


CONDITIONS = Conditions(sample_ids=("a", "b"))


def test_second_time_is_free_and_equal(extractor: Counted) -> None:
    cache, images = MemoryCache(extractor, 1.0), random_images(2)
    first, second = cache(images, CONDITIONS), cache(images, CONDITIONS)
    assert extractor.calls == 1
    assert torch.equal(first["plain"][LAYER], second["plain"][LAYER])
    assert torch.equal(first["plain"][LAYER], FeatureExtractor.forward(extractor, images, CONDITIONS)["plain"][LAYER])


def test_images_are_known_in_any_order(extractor: Counted) -> None:
    cache, images = MemoryCache(extractor, 1.0), random_images(2)
    first = cache(images, CONDITIONS)["plain"][LAYER]
    swapped = cache(images.flip(0), Conditions(sample_ids=("b", "a")))["plain"][LAYER]
    assert extractor.calls == 1
    assert torch.equal(swapped, first.flip(0))


@pytest.mark.parametrize(
    "change",
    [
        {"sample_ids": ("a", "c")},
        {"windows": ((0, 0), (0, 8))},
        {"captions": ("x", "y")},
        {"views": ("epoch1", "")},
        {"noise": torch.zeros(2, 4, 16, 24)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_features_is_not_taken_from_memory(extractor: Counted, change: dict[str, object]) -> None:
    cache, images = MemoryCache(extractor, 1.0), random_images(2)
    cache(images, CONDITIONS)
    cache(images, replace(CONDITIONS, **change))
    assert extractor.calls == 2


def test_another_image_under_the_same_name(extractor: Counted) -> None:
    cache = MemoryCache(extractor, 1.0)
    cache(random_images(2), CONDITIONS)
    cache(-random_images(2), CONDITIONS)
    assert extractor.calls == 2


def test_memory_is_limited(extractor: Counted) -> None:
    images = random_images(2)
    one = extractor(images, CONDITIONS)["plain"][LAYER][0].nbytes
    cache = MemoryCache(extractor, 1.5 * one / (1 << 30))
    cache(images, CONDITIONS)
    assert len(cache) == 1
    assert cache.bytes_used == one


def test_nothing_frozen_is_saved(extractor: Counted) -> None:
    assert not MemoryCache(extractor, 1.0).state_dict()


def test_no_memory_is_refused(extractor: Counted) -> None:
    with pytest.raises(ConfigError, match=r"memory_gib \(cache.memory_gib\)=0"):
        MemoryCache(extractor, 0)


def test_another_place_is_refused(extractor: Counted) -> None:
    with pytest.raises(ConfigError, match=r"place \(cache.place\)='disk'"):
        MemoryCache(extractor, 1.0, "disk")  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("place", ["card", "host"])
def test_features_are_where_they_are_to_be(place: str, channels_last: bool, caplog: pytest.LogCaptureFixture) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with pretended_gpu() as record:
        extractor = Placed(layout)
        cache = MemoryCache(extractor, 0.001, place)  # type: ignore[arg-type]
        images = random_images(2).to(GPU, non_blocking=True)
        with caplog.at_level(logging.INFO):
            first = cache(images, CONDITIONS)["plain"]["map"]
        kept = [value.device for entry in cache._known.values() for maps in entry.values() for value in maps.values()]
        assert kept == [torch.device("cpu") if place == "host" else GPU] * 2
        assert f"on {'the host' if place == 'host' else 'cuda:0'} (cache.memory_gib)" in caplog.text
        assert "96 KiB an image, room for 10" in caplog.text
        named = replace(CONDITIONS, source=1)
        cache(images, named)  # hashed under its name
        record.clear()
        second = cache(images, named)["plain"]["map"]
        # a known batch waits for nothing: on the card nothing is copied, from the host what is pinned
        assert record.waits.total() == 0, record
        assert record.copies.total() == (place == "host")
        assert second.device == GPU
        assert torch.equal(first.cpu(), second.cpu())
        assert second.stride() == first.stride()
    assert extractor.calls == 1


def test_a_card_that_is_full_ends_the_cache(extractor: Counted, caplog: pytest.LogCaptureFixture) -> None:
    def full(features: Features, index: int) -> Features:
        class Full(torch.Tensor):
            def clone(self) -> Any:  # type: ignore[override]
                raise torch.OutOfMemoryError("CUDA out of memory.")

        return {"plain": {LAYER: features["plain"][LAYER][index].as_subclass(Full)}}

    cache, images = MemoryCache(extractor, 1.0), random_images(2)
    with caplog.at_level(logging.INFO), patch("gate_lightning.features.caches.memory.row", full):
        features = cache(images, CONDITIONS)
    assert "cache.place=host" in caplog.text
    assert len(cache) == 0
    assert torch.equal(cache(images, CONDITIONS)["plain"][LAYER], features["plain"][LAYER])
    assert extractor.calls == 2
