"""Samples of data sets: spread, keyed, single images of pairs, squares of label-scarce sets; folders without masks."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gate_lightning.data.core.sampled import SampledImages, spread_sample
from gate_lightning.data.core.unlabelled import UnlabelledImages
from gate_lightning.data.correspondence.scene_pairs import ScenePairsDataModule
from gate_lightning.data.label_scarce.ddpm_segmentation import DDPMSegmentationDataModule
from gate_lightning.data.pretraining.captioned_folder import CaptionedImages
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import ImageBatch, SegmentationBatch
from tests.support.folders import OTHER_LOADERS, make_folder
from tests.support.label_scarce import make_scarce


@pytest.mark.parametrize(("total", "count"), [(100, 7), (9, 8), (8, 8), (3, 8), (1000, 2)])
def test_a_sample_has_one_of_each_equal_part(total: int, count: int) -> None:
    chosen = spread_sample(total, count, 0, "test")
    assert len(chosen) == len({*chosen}) == min(total, count)
    assert chosen == sorted(chosen)
    if count < total:
        limits = [number * total // count for number in range(count + 1)]
        assert all(low <= place < high for low, place, high in zip(limits, chosen, limits[1:], strict=False))
    assert chosen == spread_sample(total, count, 0, "test")
    assert total < 100 or chosen != spread_sample(total, count, 1, "test")


@pytest.mark.parametrize("setting", OTHER_LOADERS)
def test_what_is_called_without_effect_has_none(setting: str, tmp_path: Path) -> None:
    assert setting in SampledImages.ignored_settings
    root = make_folder(tmp_path, {"train": [(16, 20)] * 4, "val": [(16, 20)] * 3})
    one, other = (
        SampledImages(FolderDataModule(str(root), **{"crop_size": 16, **given}), images=3).batches("val")
        for given in ({}, {setting: OTHER_LOADERS[setting]})
    )
    assert len(one) == len(other) == 1
    assert np.array_equal(one[0].images, other[0].images)
    assert np.array_equal(one[0].masks, other[0].masks)


def test_images_are_those_that_are_evaluated() -> None:
    scenes = ScenesDataModule(train=6, val=5, test=9, size=16)
    sample = SampledImages(scenes, images=4, batch_size=3, seed=2)
    batches = list(sample.test_dataloader())
    names = [name for batch in batches for name in batch.conditions.sample_ids]
    assert names == sample.sample_ids("test")
    assert [len(batch) for batch in batches] == [3, 1]
    every = {
        name: image
        for batch in scenes.test_dataloader()
        for name, image in zip(batch.conditions.sample_ids, batch.images, strict=True)
    }
    assert all(
        np.array_equal(every[name], image)
        for batch in batches
        for name, image in zip(batch.conditions.sample_ids, batch.images, strict=True)
    )
    assert isinstance(batches[0], SegmentationBatch)
    assert sample.labels is scenes.labels
    assert len(sample.batches("train")) == 2


@pytest.mark.parametrize("split", ["train", "test"])
def test_of_pairs_the_images_are_taken(split: str) -> None:
    batches = SampledImages(ScenePairsDataModule(size=16, train=2, val=2, test=3), images=4).batches(split)
    assert [type(batch) for batch in batches] == [ImageBatch]
    assert len(batches[0]) == 4


def test_label_scarce_sets_become_squares(tmp_path: Path) -> None:
    data = DDPMSegmentationDataModule(str(make_scarce(tmp_path)), "horse_21", train=4, test=3)
    batch = SampledImages(data, images=2, size=24, image_size=48).batches("test")[0]
    assert batch.images.shape == (2, 3, 48, 48)
    assert batch.masks.shape == (2, 24, 24)


def test_a_folder_without_masks(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        cv2.imwrite(
            str(tmp_path / "in" / f"{number}.png"), np.full((20, 30 + 10 * (number == 2), 3), 80 * number, np.uint8)
        )
    (tmp_path / "captions.txt").write_text("".join(f"in/{number}\ta photo of {number}\n" for number in range(3)))
    data = UnlabelledImages(str(tmp_path), resize_short=10)
    sample = SampledImages(data)
    assert sample.splits == ("test",)
    batches = sample.batches("test")
    assert [batch.images.shape for batch in batches] == [(2, 3, 10, 15), (1, 3, 10, 20)]
    assert batches[0].conditions.captions == ("a photo of 0", "a photo of 1")
    assert sample.labels is None
    assert data.check().errors == ()
    (tmp_path / "in" / "1.png").write_bytes(b"")
    assert any("1.png" in error for error in data.check().errors)


def test_what_is_no_sample_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.data\.images=1: expected a whole number from 2"):
        SampledImages(ScenesDataModule(size=16), images=1)
    with pytest.raises(DataError, match="has 1 image in test; a sample needs at least 2"):
        SampledImages(ScenesDataModule(size=16, test=1)).test_dataloader()
    with pytest.raises(ConfigError, match=r"CaptionedImages \(dataset=\) gives no single images"):
        SampledImages(CaptionedImages(str(tmp_path)))  # type: ignore[arg-type]
