"""What every data set of masks, of classes and of pairs promises, whatever it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gate_lightning.data.classification import cifar10
from gate_lightning.data.classification.base import ClassificationDataModule
from gate_lightning.data.classification.cifar10 import CIFAR10DataModule
from gate_lightning.data.classification.image_folder import ImageFolderDataModule
from gate_lightning.data.classification.scene_kinds import SceneKindsDataModule
from gate_lightning.data.correspondence.ap10k import AP10KDataModule
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.cub import CUBDataModule
from gate_lightning.data.correspondence.own_pairs import OwnPairsDataModule
from gate_lightning.data.correspondence.pf_pascal import PFPascalDataModule
from gate_lightning.data.correspondence.pf_willow import PFWillowDataModule
from gate_lightning.data.correspondence.scene_pairs import ScenePairsDataModule
from gate_lightning.data.correspondence.spair import SPairDataModule, SPairUDataModule
from gate_lightning.data.label_scarce.ddpm_segmentation import DDPMSegmentationDataModule
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.ade20k import ADE20KDataModule
from gate_lightning.data.segmentation.base import SegmentationDataModule
from gate_lightning.data.segmentation.cityscapes import CityscapesDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.errors import DataError
from gate_lightning.structures import ClassificationBatch, ImageBatch, PairBatch
from tests.support.benchmarks import make_ade20k, make_cityscapes
from tests.support.classified import write_cifar, write_image_folder
from tests.support.folders import make_folder
from tests.support.label_scarce import make_scarce
from tests.support.named_images import named_equally
from tests.support.pair_layouts import (
    write_ap10k,
    write_cub,
    write_list,
    write_pascal,
    write_spair,
    write_willow,
)
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
    "ade20k": lambda root: ADE20KDataModule(
        str(make_ade20k(root / "ade20k")), scale=(64, 32), crop_size=32, batch_size=2
    ),
    "cityscapes": lambda root: CityscapesDataModule(
        str(make_cityscapes(root / "cityscapes")), scale=(64, 32), crop_size=(16, 32), batch_size=2
    ),
    "ddpm_segmentation": lambda root: DDPMSegmentationDataModule(
        str(make_scarce(root / "sets")), "horse_21", train=4, test=3, batch_size=2
    ),
}
#: those whose test images stand for validation
WITHOUT_VALIDATION = ("ddpm_segmentation",)


@pytest.fixture(params=MEMBERS)
def module(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentationDataModule:
    made = MEMBERS[request.param](tmp_path)
    made.setup("fit")
    return made


def test_batches_keep_the_contract(module: SegmentationDataModule) -> None:
    allowed = {*range(module.labels.num_classes), module.labels.ignore_index}
    for split in module.splits:
        for batch in getattr(module, f"{split}_dataloader")():
            assert batch.images.dtype == torch.float32
            assert batch.images.shape[1] == 3
            assert batch.images.min() >= -1
            assert batch.images.max() <= 1
            assert batch.masks.dtype == torch.int64
            assert set(batch.masks.unique().tolist()) <= allowed
            assert len(batch) == len(batch.masks) == len(batch.conditions)


def test_training_images_have_one_size_equal_to_their_masks(module: SegmentationDataModule) -> None:
    batches = list(module.train_dataloader())
    assert len({shape for batch in batches for shape in (batch.images.shape[2:], batch.masks.shape[1:])}) == 1


def test_every_image_is_evaluated_once(module: SegmentationDataModule) -> None:
    source = module.source("val")
    names = [source.sample_id(index) for index in range(len(source))]
    seen = [name for batch in module.val_dataloader() for name in batch.conditions.sample_ids]
    assert len(set(names)) == len(names)
    assert sorted(seen) == sorted(names)


def test_evaluated_images_have_no_view(module: SegmentationDataModule) -> None:
    assert {view for batch in module.val_dataloader() for view in batch.conditions.views} == {""}


def test_splits_share_no_image(module: SegmentationDataModule, request: pytest.FixtureRequest) -> None:
    same = request.node.callspec.params["module"] in WITHOUT_VALIDATION
    sources = [module.source(split) for split in module.splits if not (same and split == "val")]
    ids = [source.sample_id(index) for source in sources for index in range(len(source))]
    assert len(sources) > 1
    assert len(set(ids)) == len(ids)


def test_sizes_are_known_without_decoding(module: SegmentationDataModule) -> None:
    source = module.source("val")
    for index in range(len(source)):
        sample = source.load(index)
        assert source.sizes(index) == (sample.image.shape[:2], sample.mask.shape)


def test_images_of_one_name_are_equal(module: SegmentationDataModule) -> None:
    training, evaluation = module.train_dataloader(), module.val_dataloader()
    requests = [[SampleRequest(index, 0) for index in range(len(module.source("train")))]]
    assert named_equally(lambda epoch: [training.dataset[requests[0]]])
    assert named_equally(lambda epoch: evaluation)


def test_a_second_module_makes_the_same_batches(
    module: SegmentationDataModule, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.params["module"]
    for one, other in zip(module.train_dataloader(), MEMBERS[name](tmp_path).train_dataloader(), strict=True):
        assert one.conditions == other.conditions
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)


def _cifar(root: Path) -> CIFAR10DataModule:
    write_cifar(root / "cifar", 20)
    return CIFAR10DataModule(str(root / "cifar"), val=10, size=24, batch_size=2)


def _image_folder(root: Path) -> ImageFolderDataModule:
    splits = {"train": {"a": 3, "b": 2}, "val": {"a": 2, "b": 1}, "test": {"a": 1, "b": 1}}
    written = root / "image_folder"
    return ImageFolderDataModule(
        str(written if written.is_dir() else write_image_folder(written, splits)), size=24, batch_size=2
    )


CLASSIFIED: dict[str, Callable[[Path], ClassificationDataModule]] = {
    "scene_kinds": lambda root: SceneKindsDataModule(train=6, val=6, test=6, size=24, batch_size=2),
    "cifar10": _cifar,
    "image_folder": _image_folder,
}


@pytest.mark.parametrize("name", CLASSIFIED)
def test_classified_images_keep_the_contract(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "IMAGES", 20)
    data, again = CLASSIFIED[name](tmp_path), CLASSIFIED[name](tmp_path)
    ids = {split: [data.source(split).sample_id(n) for n in range(len(data.source(split)))] for split in data.splits}
    every = [one for names in ids.values() for one in names]
    assert len(every) == len(set(every))
    for split in data.splits:
        source = data.source(split)
        for index in range(len(source)):
            sample = source.load(index)
            assert (sample.image.shape[:2],) == source.sizes(index)
            assert sample.label == source.label(index) in range(data.labels.num_classes)
            assert sample.ignored().label == data.labels.ignore_index
        batches = list(data.images(split))
        assert [one for batch in batches for one in batch.conditions.sample_ids] == ids[split]
        assert [one for batch in batches for one in batch.labels.tolist()] == [
            source.label(n) for n in range(len(source))
        ]
    for batch, other in zip(data.train_dataloader(), again.train_dataloader(), strict=True):
        assert isinstance(batch, ClassificationBatch)
        assert batch.conditions == other.conditions
        assert torch.equal(batch.images, other.images)
        assert batch.labels.dtype == torch.int64
        assert batch.images.shape[1:] == (3, 24, 24)
        assert batch.images.abs().max() <= 1
        assert {*batch.conditions.views} == {""}
    assert not data.check("quick").errors
    assert data.card.branches


PAIRS: dict[str, Callable[[Path, int], PairDataModule]] = {
    "spair71k": lambda root, size: SPairDataModule(str(write_spair(root)), size=size),
    "spair_u": lambda root, size: SPairUDataModule(str(write_spair(root, {"test": ("cat", "dog")})), size=size),
    "pf_pascal": lambda root, size: PFPascalDataModule(str(write_pascal(root)), size=size),
    "pf_willow": lambda root, size: PFWillowDataModule(str(write_willow(root)), size=size),
    "cub": lambda root, size: CUBDataModule(str(write_cub(root)), size=size),
    "cub-same-class": lambda root, size: CUBDataModule(str(write_cub(root)), "same_class", pairs=3, size=size),
    "ap10k": lambda root, size: AP10KDataModule(str(write_ap10k(root)), size=size),
    "pairs": lambda root, size: OwnPairsDataModule(str(write_list(root)), test="pairs.json", size=size),
    "scene_pairs": lambda root, size: ScenePairsDataModule(size=size, train=2, val=2, test=3),
}


@pytest.fixture(params=PAIRS)
def pairs(request: pytest.FixtureRequest, tmp_path: Path) -> PairDataModule:
    if request.param in ("pf_pascal", "cub", "cub-same-class"):
        pytest.importorskip("scipy")
    return PAIRS[request.param](tmp_path, 24)


def test_pairs_name_images_of_their_split_and_points_inside_them(pairs: PairDataModule) -> None:
    for split in pairs.splits:
        names = {name for pair in pairs.pairs_of(split) for name in (pair.source, pair.target)}
        images = pairs.source(split).images if split == "train" else pairs.source(split)
        assert {images.sample_id(index) for index in range(len(images))} == names
        sizes = {images.sample_id(index): images.sizes(index)[0] for index in range(len(images))}
        for index in range(len(images)):
            assert images.load(index).image.shape[:2] == images.sizes(index)[0]
        for pair in pairs.pairs_of(split):
            assert (pair.source_size, pair.target_size) == (sizes[pair.source], sizes[pair.target])
            for points, (height, width) in (
                (pair.source_points, pair.source_size),
                (pair.target_points, pair.target_size),
            ):
                assert ((points >= -0.5) & (points <= torch.tensor([width - 0.5, height - 0.5]))).all()
            assert len(pair)
            assert len(pair.keypoint_ids) in (0, len(pair))


def test_every_image_of_a_pair_is_evaluated_once(pairs: PairDataModule) -> None:
    for split, loader in (("val", pairs.val_dataloader), ("test", pairs.test_dataloader)):
        if split in pairs.splits:
            batches = list(loader())
            seen = [name for batch in batches for name in batch.conditions.sample_ids]
            named = {name for pair in pairs.pairs_of(split) for name in (pair.source, pair.target)}
            assert len(seen) == len(set(seen))
            assert set(seen) == named
            assert {type(batch) for batch in batches} == {ImageBatch}
            assert {batch.images.shape[1:] for batch in batches} == {(3, 24, 24)}
            assert {view for batch in batches for view in batch.conditions.views} == {""}
            if "{category}" in pairs.card.prompt_simple:
                assert all(batch.conditions.categories for batch in batches)


def test_training_batches_are_pairs_and_come_again(pairs: PairDataModule, tmp_path: Path) -> None:
    if "train" not in pairs.splits:
        with pytest.raises(DataError, match="has no train pairs here"):
            pairs.setup("fit")
        return
    scenes = isinstance(pairs, ScenePairsDataModule)
    again = PAIRS["scene_pairs"](tmp_path, 24) if scenes else type(pairs)(str(tmp_path), size=24)
    pairs.batch_size = again.batch_size = 1
    for batch, other in zip(pairs.train_dataloader(), again.train_dataloader(), strict=True):
        assert isinstance(batch, PairBatch)
        assert torch.equal(batch.source.images, other.source.images)
        assert batch.target.conditions == other.target.conditions
        inside = torch.nan_to_num(batch.source_points)
        assert ((inside >= -0.5) & (inside <= 23.5)).all()
        assert not torch.isnan(batch.source_points).all(dim=2).all(dim=1).any()


def test_images_of_pairs_of_one_name_are_equal(pairs: PairDataModule) -> None:
    split = next(iter(pairs.splits))
    views = pairs.training_views() if split == "train" else pairs.evaluation_views(split)
    requests = [[SampleRequest(index, epoch) for epoch in (0, 1)] for index in range(min(len(views), 3))]
    assert named_equally(lambda epoch: (views[one] for one in requests))


def test_whole_data_pass_the_check(pairs: PairDataModule) -> None:
    for level in ("quick", "full"):
        assert not pairs.check(level).errors
    assert pairs.card.branches
    assert pairs.has_test == ("test" in pairs.splits)
