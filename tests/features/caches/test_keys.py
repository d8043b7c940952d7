"""Every field of the conditions is part of the key of every cache, also a field that does not exist yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.keys import image_key
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.structures import Conditions
from tests.support.segmentation_fakes import FakeExtractor


@dataclass(frozen=True)
class Extended(Conditions):
    """Conditions as a later version may have them."""

    keypoints: Tensor | None = None
    neighbours: tuple[str, ...] | None = None
    depths: dict[str, Tensor] | None = None
    camera: str = ""


IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
PLAIN = Extended(("a", "b"), keypoints=torch.zeros(2, 4), neighbours=("x", "y"), depths={"near": torch.zeros(2, 1)})
#: one change of every field, of the second image where a field has an entry per image
CHANGES: dict[str, Any] = {
    "sample_ids": ("a", "c"),
    "views": ("", "draw1"),
    "windows": ((0, 0), (0, 8)),
    "captions": ("one", "two"),
    "categories": ("cat", "dog"),
    "control_images": {"depth": torch.zeros(2, 3, 16, 16)},
    "noise": torch.ones(2, 3, 16, 16),
    "training": True,
    "posterior_noise": {"plain": torch.ones(2, 3, 16, 16)},
    "keypoints": torch.tensor([[0.0] * 4, [1.0] * 4]),
    "neighbours": ("x", "z"),
    "depths": {"near": torch.tensor([[0.0], [1.0]])},
    "camera": "left",
}
#: kept by no cache
NEVER_KEPT = {"views", "noise", "posterior_noise"}


def test_all_fields_are_changed_here() -> None:
    assert set(CHANGES) == {field.name for field in fields(Extended)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_counts_for_its_own_image(name: str) -> None:
    changed = replace(PLAIN, **{name: CHANGES[name]})
    before, after = ([image_key(IMAGES[row], one, row) for row in range(2)] for one in (PLAIN, changed))
    assert before[1] != after[1]
    if name in ("sample_ids", "views", "windows", "keypoints", "neighbours", "depths"):
        assert before[0] == after[0]


@pytest.mark.parametrize("make", [lambda made, _: MemoryCache(made, 1.0), DiskCache], ids=["memory", "disk"])
@pytest.mark.parametrize("name", sorted(CHANGES.keys() - NEVER_KEPT))
def test_what_changes_a_field_is_not_taken_from_a_cache(
    tmp_path: Path, make: Callable[[FakeExtractor, Path], WrappedExtractor], name: str
) -> None:
    extractor = FakeExtractor()
    cache = make(extractor, tmp_path)
    cache(IMAGES, PLAIN)
    cache(IMAGES, PLAIN)
    assert len(extractor.seen) == 1
    cache(IMAGES, replace(PLAIN, **{name: CHANGES[name]}))
    assert len(extractor.seen) == 2


def test_pixels_and_their_type_count() -> None:
    key = image_key(IMAGES[0], PLAIN, 0)
    assert image_key(-IMAGES[0], PLAIN, 0) != key
    assert image_key(IMAGES[0].half(), PLAIN, 0) != key
    assert image_key(IMAGES[0].clone(), PLAIN[:1], 0) == key


def test_rows_are_taken_of_every_field() -> None:
    given = replace(PLAIN, captions=("one", "two"), noise={"plain": torch.arange(2.0)}, training=True)
    second = given[1]
    assert type(second) is Extended
    assert (second.sample_ids, second.views, second.captions, second.training) == (("b",), ("",), ("two",), True)
    assert second.noise["plain"].tolist() == [1.0]
    assert second.neighbours == ("y",)
    assert given[[1, 0]].sample_ids == ("b", "a")
    assert given[-1:].keypoints.shape == (1, 4)
    assert [one.sample_ids for one in given] == [("a",), ("b",)]
    with pytest.raises(IndexError):
        _ = given[2]


def test_controls_are_mapped_alone() -> None:
    given = replace(PLAIN, control_images={"depth": torch.zeros(2, 3, 4, 4), "canny": torch.ones(2, 3, 4, 4)})
    mapped = given.map_controls(lambda image: image + 1)
    assert {name: float(image.mean()) for name, image in mapped.control_images.items()} == {"depth": 1.0, "canny": 2.0}
    assert mapped.keypoints is given.keypoints
