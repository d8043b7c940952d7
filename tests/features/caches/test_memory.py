"""The memory cache gives what the extractor gives, and asks it only once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions, Features
from tests.support.small_networks import build, random_images

LAYER = "up-level1-upsampler-out"


class Counted(FeatureExtractor):
    calls = 0

    def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
        self.calls += 1
        return super().forward(images, conditions)


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
    with pytest.raises(ConfigError, match=r"cache\.memory_gib=0"):
        MemoryCache(extractor, 0)
