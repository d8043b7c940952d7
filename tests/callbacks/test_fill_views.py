"""Filling: once per view, whole after any interruption, refused where it cannot end well."""

from __future__ import annotations

import json
import logging
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from gate_lightning.callbacks import fill_views
from gate_lightning.callbacks.fill_views import FillViews
from gate_lightning.errors import CacheError, Interrupted
from gate_lightning.features.caches.augmented_views import AugmentedFeatureCache, StoredViews, describe, padded_batch
from gate_lightning.features.caches.view_plan import ViewPlan
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.structures import Conditions, Features
from gate_lightning.tasks.inference import Inference
from gate_lightning.tasks.segmentation import SegmentationTask
from tests.support.segmentation_fakes import FakeData, FakeExtractor, make_task, make_trainer

#: twelve images in batches of two: six steps an epoch
EPOCH = 6
Usage = namedtuple("Usage", "total used free")


class Stops(FakeExtractor):
    """Breaks off at its n-th call."""

    def __init__(self, call: int, error: type[BaseException]) -> None:
        super().__init__()
        self.call, self.error = call, error

    def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
        if len(self.seen) + 1 == self.call:
            raise self.error("on purpose")
        return super().forward(images, conditions)


def cached_run(
    folder: Path, count: int, extractor: FakeExtractor | None = None, dtype: str = "float32", **settings: Any
) -> tuple[SegmentationTask, FakeExtractor]:
    """Train with stored views in ``folder``; the task, and what was asked of the extractor."""
    extractor, data = extractor or FakeExtractor(), FakeData()
    views = AugmentedFeatureCache(extractor, folder / "cache", dtype, {"augmentation": describe(data.train_transform)})
    data.view_cycle = count
    data.stored_views = partial(StoredViews, store=views.store, multiple=8)
    task = make_task(views)
    make_trainer(folder, FillViews(views, data, count, folder), **{"limit_val_batches": 0, **settings}).fit(task, data)
    return task, extractor


def trained(extractor: FakeExtractor) -> list[Conditions]:
    return [conditions for conditions in extractor.seen if conditions.training]


def weights(task: SegmentationTask) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.trained_parameters()])


def files(folder: Path) -> dict[str, bytes]:
    found = (folder / "cache/views").rglob("*.safetensors")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_with_a_view_for_every_epoch_it_is_the_same_training(tmp_path: Path) -> None:
    task, extractor = cached_run(tmp_path / "cached", 3, max_steps=2 * EPOCH + 3)
    plain = make_task()
    make_trainer(tmp_path / "plain", max_steps=2 * EPOCH + 3, limit_val_batches=0).fit(plain, FakeData())
    torch.testing.assert_close(weights(task), weights(plain), rtol=1e-4, atol=1e-5)
    assert len(trained(extractor)) == 3 * EPOCH
    report = json.loads((tmp_path / "cached/cached_views.json").read_text())
    assert report["views"] == 3
    assert report["images"] == 12
    assert report["computed_here"] == 36


def test_every_view_is_read_by_the_backbone_once(tmp_path: Path) -> None:
    _, extractor = cached_run(tmp_path, 2, max_steps=3 * EPOCH, limit_val_batches=1.0)
    seen = [pair for one in trained(extractor) for pair in zip(one.sample_ids, one.views, strict=True)]
    assert sorted(seen) == sorted((f"train/{n:03d}", f"draw{k}") for n in range(12) for k in range(2))
    _, again = cached_run(tmp_path, 2, max_steps=EPOCH, limit_val_batches=1.0)
    assert not again.seen  # nor are the images of validation computed again
    _, more = cached_run(tmp_path, 3, max_steps=3 * EPOCH)
    assert {view for one in trained(more) for view in one.views} == {"draw2"}


def test_few_views_are_another_training_than_many(tmp_path: Path) -> None:
    few, _ = cached_run(tmp_path, 1, max_steps=2 * EPOCH)
    many, _ = cached_run(tmp_path, 2, max_steps=2 * EPOCH)
    assert not torch.allclose(weights(few), weights(many), atol=1e-4)


def test_epochs_that_the_run_does_not_reach_are_not_computed(tmp_path: Path) -> None:
    _, extractor = cached_run(tmp_path, 9, max_steps=EPOCH + 1)
    assert len(trained(extractor)) == 2 * EPOCH


@pytest.mark.parametrize(("error", "seen"), [(RuntimeError, RuntimeError), (KeyboardInterrupt, Interrupted)])
def test_a_broken_off_filling_goes_on_to_the_same_files(
    tmp_path: Path, error: type[BaseException], seen: type[BaseException]
) -> None:
    cached_run(tmp_path / "whole", 2, max_steps=2 * EPOCH)
    with pytest.raises(seen):
        cached_run(tmp_path / "cut", 2, Stops(4, error), max_steps=2 * EPOCH)
    assert len(files(tmp_path / "cut")) == 6
    next((tmp_path / "cut").rglob("*.safetensors")).unlink()  # killed between the two images of a batch
    _, extractor = cached_run(tmp_path / "cut", 2, max_steps=2 * EPOCH)
    assert len(trained(extractor)) == 2 * EPOCH - 3 + 1
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_what_is_stored_when_stopped_is_told(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=r"the 6 of 24 that are in .*views are whole"):
        cached_run(tmp_path, 2, Stops(4, KeyboardInterrupt), max_steps=2 * EPOCH)


def test_processes_share_what_is_missing(tmp_path: Path) -> None:
    data = FakeData()
    data.view_cycle = 2
    names = [data.source("train").sample_id(index) for index in range(12)]
    extractors = [FakeExtractor(), FakeExtractor()]
    caches = [AugmentedFeatureCache(one, tmp_path) for one in extractors]
    plans = [ViewPlan(data.training_views(), names, 2, 2, cache) for cache in caches]
    assert [plan.todo for plan in plans] == [24, 24]
    for batches in zip(*(plan.loader(0) for plan in plans), strict=False):
        for cache, batch in zip(caches, batches, strict=True):
            cache.fill(*padded_batch(batch, 8))
    rest = [batch for plan in plans for batch in plan.loader(0)]
    for batch in rest:
        caches[0].fill(*padded_batch(batch, 8))
    assert plans[0].stored() == 24
    # only a batch that both took at the same moment is done twice
    assert 12 <= sum(len(one.seen) for one in extractors) <= 16
    assert min(len(one.seen) for one in extractors) > 3


def test_a_disk_without_room_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_views.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 4000))
    extractor = FakeExtractor()
    with pytest.raises(CacheError, match=r"24 views of 480 bytes need 11\.5 kB, and 4 kB are free .*pooling=2"):
        cached_run(tmp_path, 2, extractor, dtype="float16", max_steps=2 * EPOCH)
    assert not extractor.seen


def test_size_and_time_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cached_run(tmp_path, 2, dtype="float16", max_steps=2 * EPOCH)
    size = next(line for line in caplog.messages if "of each of 12 images" in line)
    assert "16 × 16 pixels, 480 bytes each in float16: 11.5 kB, 0 bytes of it there; 1.44 kB more" in size
    assert "features.pooling=2" in size
    assert "float16 (half)" not in size
    assert any("cached views: 18 left of 24" in line and "about" in line for line in caplog.messages)


def test_windows_count_in_what_validation_takes() -> None:
    data = FakeData(val_size=(24, 40))
    task = make_task(inference=Inference("slide", crop_size=16, stride=8))
    views: Any = FakeExtractor()
    views.dtype = torch.float16
    # 2 × 4 windows of 16 × 16 pixels, three images
    assert fill_views._evaluation_bytes(task, data, views) == 3 * 8 * 480


def test_a_folder_of_other_images_is_refused(tmp_path: Path) -> None:
    cached_run(tmp_path, 1, max_steps=EPOCH)
    original = FakeData.make_source

    def inverted(self: FakeData, split: str) -> Any:
        source = original(self, split)
        source.samples = [sample.map_images(lambda image: 255 - image) for sample in source.samples]
        return source

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeData, "make_source", inverted)
        with pytest.raises(CacheError, match=r"views of other images .* .*5 of 5 looked at differ.*cache.folder"):
            cached_run(tmp_path, 1, max_steps=EPOCH)


def test_the_advice_goes_on_from_the_pooling_there_is(tmp_path: Path) -> None:
    pooled = AugmentedFeatureCache(PooledExtractor(FakeExtractor(), 2), tmp_path)  # type: ignore[arg-type]
    assert "features.pooling=4 (a quarter)" in fill_views._advice(pooled)
