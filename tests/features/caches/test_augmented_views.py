"""Stored views: the very features of the very view, or none."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gate_lightning.data.samples import BatchDataset, SampleRequest
from gate_lightning.data.transforms.basic import Compose, PhotometricDistortion, RandomCrop, RandomFlip
from gate_lightning.errors import CacheError
from gate_lightning.features.caches.augmented_views import (
    AugmentedFeatureCache,
    StoredViews,
    describe,
    padded_batch,
    stored_bytes,
    view_name,
)
from gate_lightning.features.caches.folder import read_features
from gate_lightning.structures import Conditions, Features
from tests.support.segmentation_fakes import FakeExtractor, FakeSource

FLIP = {"augmentation": describe(RandomFlip(0.5))}


def training(cycle: int | None = 2, size: tuple[int, int] = (16, 16)) -> BatchDataset:
    return BatchDataset(FakeSource("train", 4, size), RandomFlip(0.5), random=True, training=True, cycle=cycle)


def filled(folder: Path, views: BatchDataset, dtype: str = "float16") -> tuple[AugmentedFeatureCache, FakeExtractor]:
    extractor = FakeExtractor()
    cached = AugmentedFeatureCache(extractor, folder, dtype, FLIP)
    for epoch in range(views.cycle):
        cached.fill(*padded_batch(views[[SampleRequest(index, epoch) for index in range(4)]], 8))
    return cached, extractor


def same(one: Features, other: Features) -> bool:
    assert {key: list(value) for key, value in one.items()} == {key: list(value) for key, value in other.items()}
    return all(torch.equal(value, other[branch][layer]) for branch in one for layer, value in one[branch].items())


def half(features: Features) -> Features:
    return {branch: {layer: value.half() for layer, value in maps.items()} for branch, maps in features.items()}


@pytest.mark.parametrize("size", [(16, 16), (20, 13)])
def test_batches_bring_the_features_of_their_own_images(tmp_path: Path, size: tuple[int, int]) -> None:
    views = training(size=size)
    cached, _ = filled(tmp_path, views)
    stored = StoredViews(views, cached.store, 8)
    assert len(stored) == 4
    for epoch in (0, 1, 5):
        draws = [SampleRequest(index, epoch) for index in (3, 1)]
        batch, plain = stored[draws], views[draws]
        assert torch.equal(batch.images, plain.images)
        assert torch.equal(batch.masks, plain.masks)
        assert batch.conditions == plain.conditions
        assert same(batch.features, half(FakeExtractor()(*padded_batch(plain, 8))))


def test_views_come_back_after_their_cycle() -> None:
    views, endless = training(3), training(None)
    draws = [[SampleRequest(index, epoch) for index in range(4)] for epoch in range(7)]
    seen = [views[one].conditions.views[0] for one in draws]
    assert seen == ["draw0", "draw1", "draw2", "draw0", "draw1", "draw2", "draw0"]
    assert torch.equal(views[draws[4]].images, views[draws[1]].images)
    # the first epochs are those of a run that draws anew every time
    assert all(torch.equal(views[one].images, endless[one].images) for one in draws[:3])
    assert not torch.equal(views[draws[4]].images, endless[draws[4]].images)


def test_nothing_is_computed_twice(tmp_path: Path) -> None:
    views = training()
    cached, extractor = filled(tmp_path, views)
    calls = len(extractor.seen)
    assert calls == 2
    assert cached.fill(*padded_batch(views[[SampleRequest(0), SampleRequest(2)]], 8)) == 0
    again = AugmentedFeatureCache(FakeExtractor(), tmp_path, "float16", FLIP)
    assert again.fill(*padded_batch(views[[SampleRequest(0, 1)]], 8)) == 0
    assert not again.extractor.extractor.seen


@pytest.mark.parametrize("damage", ["missing", "cut off", "other image"])
def test_a_view_that_does_not_fit_is_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    views = training()
    cached, extractor = filled(tmp_path, views)
    path = cached.store.path(view_name("train/001", "draw1"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(content[:-1])
    else:
        views.source.samples[1] = replace(views.source.samples[1], image=255 - views.source.samples[1].image)
    draws = [SampleRequest(0, 1), SampleRequest(1, 1)]
    batch = StoredViews(views, cached.store, 8)[draws]
    assert batch.features is None
    images, conditions = padded_batch(batch, 8)
    with caplog.at_level(logging.WARNING):
        features = cached(images, conditions)
    assert "train/001" in caplog.text
    assert same(half(features), half(FakeExtractor()(images, conditions)))
    assert (path.read_bytes() == content) == (damage != "other image")
    assert same(StoredViews(views, cached.store, 8)[draws].features, half(features))
    assert len(extractor.seen) == 3


def test_another_augmentation_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, training())
    other = {"augmentation": describe(RandomFlip(0.25))}
    with pytest.raises(CacheError, match=r"preprocessing\.augmentation\.p: 0\.5 → 0\.25.*another folder"):
        _raise_on_one_line(lambda: AugmentedFeatureCache(FakeExtractor(), tmp_path, "float16", other))
    with pytest.raises(CacheError, match="float16' → 'float32"):
        AugmentedFeatureCache(FakeExtractor(), tmp_path, "float32", FLIP)


def _raise_on_one_line(call: object) -> None:
    try:
        call()  # type: ignore[operator]
    except CacheError as error:
        raise CacheError(str(error).replace("\n", " ")) from error


def test_settings_without_a_folder_have_one_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [
        AugmentedFeatureCache(FakeExtractor(), None, dtype, {"augmentation": {"p": p}})
        for dtype, p in (("float16", 0.5), ("float16", 0.5), ("float16", 0.6), ("float32", 0.5))
    ]
    folders = [one.folder for one in made]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    assert all(folder.parent == Path("outputs/cached_views") for folder in folders)


def test_only_training_views_are_stored_as_views(tmp_path: Path) -> None:
    extractor = FakeExtractor()
    cached = AugmentedFeatureCache(extractor, tmp_path)
    images = torch.rand(1, 3, 16, 16)
    plain, scaled = Conditions(("p",)), Conditions(("p",), views=("|scale=0.5,flip=0",))
    cached(images, scaled)
    cached(images, scaled)
    assert len(extractor.seen) == 2
    assert not list(tmp_path.rglob("*.safetensors"))
    cached(images, plain)
    cached(images, plain)
    assert len(extractor.seen) == 3
    assert [path.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path]
    cached.keeps_images = False
    cached(images, plain)
    assert len(extractor.seen) == 4


def test_it_describes_itself_as_the_extractor(tmp_path: Path) -> None:
    extractor = FakeExtractor()
    cached = AugmentedFeatureCache(extractor, tmp_path)
    assert cached.description == extractor.description
    assert cached.feature_info == extractor.feature_info
    assert cached.backbone is extractor.backbone


def test_size_is_known_before(tmp_path: Path) -> None:
    cached, _ = filled(tmp_path, training(size=(20, 13)))
    features = read_features(next(tmp_path.rglob("*.safetensors")))
    expected = sum(value.nbytes for maps in features.values() for value in maps.values())
    assert stored_bytes(cached.feature_info, 24, 16, cached.dtype) == expected


def test_names_differ_and_stay_inside() -> None:
    long = "x" * 200
    names = [view_name(one, "draw0") for one in (f"a/{long}1.png", f"a/{long}2.png", "../a.png", "/a.png", "a.png")]
    assert len(set(names)) == len(names)
    assert all(name.startswith("draw0/") and ".." not in name.split("/") for name in names)


def test_transforms_are_described_to_the_last_number() -> None:
    made = Compose([RandomFlip(0.5), RandomCrop(16), PhotometricDistortion()])
    described = describe(made)
    assert json.loads(json.dumps(described)) == described
    others = [
        Compose([RandomFlip(0.5), RandomCrop(16), PhotometricDistortion(hue=17)]),
        Compose([RandomFlip(0.5), RandomCrop(24), PhotometricDistortion()]),
        Compose([RandomFlip(0.5), RandomCrop(16)]),
        Compose([RandomCrop(16), RandomFlip(0.5), PhotometricDistortion()]),
    ]
    assert described == describe(Compose([RandomFlip(0.5), RandomCrop(16), PhotometricDistortion()]))
    assert all(describe(other) != described for other in others)
    assert describe(np.flip) != describe(np.rot90)
