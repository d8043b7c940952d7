"""What every segmentation data set promises, whatever it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from tests.support.folders import make_folder
from tests.support.toy_data import ToyData

SMALL = {"train": [(20, 24), (40, 20), (24, 24), (30, 30)], "val": [(20, 24), (24, 20), (20, 24)], "test": [(20, 20)]}
MEMBERS: dict[str, Callable[[Path], SegmentationDataModule]] = {
    "scenes": lambda root: ScenesDataModule(train=4, val=3, test=2, size=16, batch_size=2),
    "scenes-merged": lambda root: ScenesDataModule(train=4, val=3, test=2, size=16, batch_size=2, labels="merged"),
    "folder": lambda root: FolderDataModule(str(make_folder(root / "a", SMALL)), crop_size=16, batch_size=2),
    "folder-colours": lambda root: FolderDataModule(
        str(make_folder(root / "b", SMALL, mask_mode="RGB", captions="files")), crop_size=16, batch_size=2
    ),
    "toy": lambda root: ToyData(length=4),
}


@pytest.fixture(params=MEMBERS)
def module(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentationDataModule:
    made = MEMBERS[request.param](tmp_path)
    made.setup("fit")
    return made


def test_batches_keep_the_contract(module: SegmentationDataModule) -> None:
    allowed = {*range(module.labels.num_classes), module.labels.ignore_index}
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        for batch in loader:
            assert batch.images.dtype == torch.float32
            assert batch.images.shape[1] == 3
            assert batch.images.min() >= -1
            assert batch.images.max() <= 1
            assert batch.masks.dtype == torch.int64
            assert set(batch.masks.unique().tolist()) <= allowed
            assert len(batch) == len(batch.masks) == len(batch.conditions)


def test_training_images_have_one_size_equal_to_their_masks(module: SegmentationDataModule) -> None:
    shapes = {(batch.images.shape[2:], batch.masks.shape[1:]) for batch in module.train_dataloader()}
    assert len(shapes) == 1
    assert len(set(shapes.pop())) == 1


def test_every_image_is_evaluated_once(module: SegmentationDataModule) -> None:
    source = module.source("val")
    names = [source.sample_id(index) for index in range(len(source))]
    seen = [name for batch in module.val_dataloader() for name in batch.conditions.sample_ids]
    assert len(set(names)) == len(names)
    assert sorted(seen) == sorted(names)


def test_evaluated_images_have_no_view(module: SegmentationDataModule) -> None:
    assert {view for batch in module.val_dataloader() for view in batch.conditions.views} == {""}


def test_splits_share_no_image(module: SegmentationDataModule) -> None:
    ids = [{module.source(s).sample_id(n) for n in range(len(module.source(s)))} for s in ("train", "val", "test")]
    assert not ids[0] & ids[1]
    assert not ids[2] & (ids[0] | ids[1])


def test_sizes_are_known_without_decoding(module: SegmentationDataModule) -> None:
    source = module.source("val")
    for index in range(len(source)):
        sample = source.load(index)
        assert source.sizes(index) == (sample.image.shape[:2], sample.mask.shape)


def test_a_second_module_makes_the_same_batches(module: SegmentationDataModule, tmp_path: Path) -> None:
    name = next(name for name, make in MEMBERS.items() if module.card.name == make(tmp_path).card.name)
    for one, other in zip(module.train_dataloader(), MEMBERS[name](tmp_path).train_dataloader(), strict=True):
        assert one.conditions == other.conditions
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
