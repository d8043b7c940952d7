"""Every field of the conditions is part of the key of every cache, also a field that does not exist yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gate_lightning.features.caches import keys
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.keys import ImageKeys, image_key
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
    "source": 7,
    "edges": {"canny": torch.zeros(2, 16, 16, dtype=torch.uint8)},
}
#: kept by no cache
NEVER_KEPT = {"views", "noise", "posterior_noise"}


def test_all_fields_are_changed_here() -> None:
    assert set(CHANGES) == {field.name for field in fields(Extended)}


#: names who has read the images, and what is a function of them
NO_PROPERTY = {"source", "edges"}


@pytest.mark.parametrize("name", sorted(CHANGES.keys() - NO_PROPERTY))
def test_every_field_counts_for_its_own_image(name: str) -> None:
    changed = replace(PLAIN, **{name: CHANGES[name]})
    before, after = ([image_key(IMAGES[row], one, row) for row in range(2)] for one in (PLAIN, changed))
    assert before[1] != after[1]
    if name in ("sample_ids", "views", "windows", "keypoints", "neighbours", "depths"):
        assert before[0] == after[0]


@pytest.mark.parametrize("make", [lambda made, _: MemoryCache(made, 1.0), DiskCache], ids=["memory", "disk"])
@pytest.mark.parametrize("name", sorted(CHANGES.keys() - NEVER_KEPT - NO_PROPERTY))
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


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the images whose pixels are hashed."""
    found: list[int] = []

    def counted(image: Tensor, conditions: Conditions, index: int) -> str:
        found.append(index)
        return image_key(image, conditions, index)

    monkeypatch.setattr(keys, "image_key", counted)
    return found


def test_a_known_image_of_a_data_set_costs_no_hashing(hashed: list[int]) -> None:
    named, memo = replace(PLAIN, source=3), ImageKeys()
    expected = [image_key(IMAGES[row], PLAIN, row) for row in range(2)]
    for _ in range(3):
        assert memo(IMAGES, named) == expected
    assert memo(IMAGES.flip(0), named[[1, 0]]) == expected[::-1]
    assert hashed == [0, 1]
    # of another data set, pixels may be others under these names
    other = memo(-IMAGES, replace(named, source=4))
    assert hashed == [0, 1, 0, 1]
    assert not {*other} & {*expected}


def test_images_that_no_data_set_names_are_hashed_every_time(hashed: list[int]) -> None:
    memo = ImageKeys()
    assert memo(IMAGES, PLAIN) == memo(IMAGES, PLAIN) != memo(-IMAGES, PLAIN)
    assert hashed == [0, 1] * 3


@pytest.mark.parametrize(
    "name",
    ["sample_ids", "views", "windows", "captions", "categories", "control_images", "training", "neighbours", "camera"],
)
def test_what_names_an_image_is_all_that_is_no_tensor(name: str) -> None:
    memo, named = ImageKeys(), replace(PLAIN, source=3)
    before, after = (memo(IMAGES, one)[1] for one in (named, replace(named, **{name: CHANGES[name]})))
    assert before != after


def test_size_and_type_tell_images_of_one_name_apart(hashed: list[int]) -> None:
    memo, named = ImageKeys(), replace(PLAIN, source=3)
    found = {memo(images, named)[0] for images in (IMAGES, IMAGES[..., :8], IMAGES.half())}
    assert len(found) == 3
    assert len(hashed) == 6
