"""Pooling, re-splitting and pixels of any data set; and what the check says about classes that are rare."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule
from PIL import Image

from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule
from gate_lightning.data.label_scarce.ddpm_segmentation import DDPMSegmentationDataModule
from gate_lightning.data.samples import Sample
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.engine.folder.run_folder import resolve
from gate_lightning.engine.jobs.tools import run_tool
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError, DataError, ResumeError
from gate_lightning.structures import PixelBatch
from gate_lightning.tools.check_data import check_data
from tests.support.composition import composed
from tests.support.folders import OTHER_LOADERS, make_folder, make_image, write
from tests.support.label_scarce import make_scarce, write_pair
from tests.support.toy_data import Stop, ToyData, trainer_of

SMALL: dict[str, Any] = {"size": 16, "members": 2, "pixels_per_batch": 8}


def scenes(**settings: Any) -> LabelScarceDataModule:
    return LabelScarceDataModule(ScenesDataModule(train=5, val=2, test=4, size=16), **{**SMALL, **settings})


def horses(root: Path, **settings: Any) -> LabelScarceDataModule:
    data = DDPMSegmentationDataModule(str(root), "horse_21", train=4, test=3)
    return LabelScarceDataModule(data, **{**SMALL, **settings})


def ids(data: LabelScarceDataModule, split: str) -> list[str]:
    source = data.source(split)
    return [source.sample_id(index) for index in range(len(source))]


def test_labelled_images_of_one_class_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, {"train": [(16, 16)] * 4, "val": [(16, 16)] * 2})
    for path in sorted((root / "masks/train").rglob("*.png"))[:3]:
        write(path, np.zeros((16, 16), np.uint8))
    data = LabelScarceDataModule(FolderDataModule(str(root), crop_size=16), split_seed=None, labelled=3, **SMALL)
    with pytest.raises(DataError, match=r"train: its 3 masks hold no class but 'sky' \(0\).*task\.data\.labelled"):
        data.setup("fit")
    LabelScarceDataModule(FolderDataModule(str(root), crop_size=16), split_seed=None, **SMALL).setup("fit")


@pytest.mark.parametrize("setting", OTHER_LOADERS)
def test_what_is_called_without_effect_has_none(setting: str, tmp_path: Path) -> None:
    assert setting in LabelScarceDataModule.ignored_settings
    root = make_folder(tmp_path, {"train": [(16, 16)] * 4, "val": [(16, 16)] * 2})
    found = []
    for given in ({}, {setting: OTHER_LOADERS[setting]}):
        own = FolderDataModule(str(root), **{"crop_size": 16, **given})
        data = LabelScarceDataModule(own, split_seed=None, **SMALL)
        data.setup("fit")
        found.append([*data.images("train"), *data.images("test")])
    one, other = found
    assert len(one) == len(other) == 6
    for batch, again in zip(one, other, strict=True):
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.masks, again.masks)


def test_training_and_test_images_are_pooled_and_split_anew() -> None:
    plain = scenes(split_seed=None)
    assert ids(plain, "train") == ids_of(plain.dataset, "train")
    assert ids(plain, "test") == ids_of(plain.dataset, "test")
    everything = set(ids(plain, "train") + ids(plain, "test"))
    seen = set()
    for seed in range(3):
        data = scenes(split_seed=seed)
        assert len(ids(data, "train")) == 5
        assert set(ids(data, "train")) | set(ids(data, "test")) == everything
        assert not set(ids(data, "train")) & set(ids(data, "test"))
        assert ids(data, "val") == ids(data, "test")
        seen.add(tuple(sorted(ids(data, "train"))))
    assert len(seen) == 3


def ids_of(dataset: Any, split: str) -> list[str]:
    source = dataset.source(split)
    return [source.sample_id(index) for index in range(len(source))]


def test_pixels_are_those_of_the_masks() -> None:
    data = scenes(split_seed=1, eval_batch_size=2)
    batches = list(data.images("train"))
    masks = torch.cat([batch.masks for batch in batches])
    names = [name for batch in batches for name in batch.conditions.sample_ids]
    assert names == ids(data, "train")
    assert masks.shape == (5, 16, 16)
    np.testing.assert_array_equal(masks.numpy(), np.stack(data.masks("train")))
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, PixelBatch)
    assert batch.labels.shape == (2, 8)
    assert torch.equal(masks.flatten(1)[batch.images, batch.positions], batch.labels)


def test_small_annotations_are_ignored_in_training_only(tmp_path: Path) -> None:
    root = make_scarce(tmp_path, train=4, test=3, side=256)
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[:4, :5], mask[10:11, :19] = 1, 2  # 20 and 19 pixels
    for split in ("train", "test"):
        write_pair(root / "horse_21/real" / split, "img_000", mask)
    data = horses(root, split_seed=None, size=256)
    train, test = data.masks("train")[0], data.masks("test")[0]
    np.testing.assert_array_equal(test, mask)
    np.testing.assert_array_equal(train, np.where(mask == 2, 255, mask))
    assert not (data.pixels.labels == 2).any() or (data.masks("train")[1] == 2).any()
    loaded = next(iter(data.images("train"))).masks
    np.testing.assert_array_equal(loaded[0].numpy(), train)


def test_images_may_be_larger_than_masks(tmp_path: Path) -> None:
    data = horses(make_scarce(tmp_path), size=32, image_size=48)
    batch = next(iter(data.images("test")))
    assert batch.images.shape == (1, 3, 48, 48)
    assert batch.masks is not None
    assert batch.masks.shape == (1, 32, 32)
    assert data.prepare(Sample("a", make_image(32, 32))).images.shape == (1, 3, 48, 48)


def test_a_number_of_labelled_images() -> None:
    whole, few = scenes(split_seed=2), scenes(split_seed=2, labelled=3)
    assert ids(few, "train") == ids(whole, "train")[:3]
    assert ids(few, "test") == ids(whole, "test")
    with pytest.raises(ConfigError, match="labelled=6, but the training part has 5 images"):
        scenes(labelled=6).setup("fit")


def test_a_split_is_written_and_followed(tmp_path: Path) -> None:
    data = scenes(split_seed=4, labelled=3)
    data.write_split(tmp_path / "split.json")
    again = scenes(split_file=str(tmp_path / "split.json"))
    assert ids(again, "train") == ids(data, "train")
    assert ids(again, "test") == ids(data, "test")
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["split_seed"] == 4
    assert len(content["unused"]) == 2
    assert content["dataset"] == "scenes-target-parts"


def test_folders_pool_training_and_validation_where_there_is_no_test(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    data = LabelScarceDataModule(FolderDataModule(str(root), crop_size=16), **SMALL)
    assert len(data.pool) == 6
    assert len(ids(data, "train")) == 4
    images = [batch.images for batch in data.images("test")]  # of other shapes in the files
    assert [image.shape for image in images] == [(1, 3, 16, 16)] * 2
    with_test = make_folder(tmp_path / "more", {"train": [(8, 8)] * 3, "val": [(8, 8)] * 2, "test": [(8, 8)] * 4})
    assert len(LabelScarceDataModule(FolderDataModule(str(with_test), crop_size=8), **SMALL).pool) == 7


def test_images_that_are_not_square(tmp_path: Path) -> None:
    root = make_scarce(tmp_path / "sets")
    folder = root / "horse_21/real/test"
    write(folder / "img_001.png", make_image(32, 40))
    np.save(folder / "img_001.npy", np.zeros((32, 40), dtype=np.uint8))
    with pytest.raises(DataError, match=r"real/test/img_001\.png has 40×32 pixels .* task.data.square=stretch"):
        horses(root).setup("fit")
    assert len(horses(root).check().errors) == 1
    stretched = horses(root, square="stretch", split_seed=None)
    assert [batch.images.shape for batch in stretched.images("test")] == [(1, 3, 16, 16)] * 3
    images = tmp_path / "images"
    write(images / "a.png", make_image(20, 10))
    with pytest.raises(DataError, match=r"a\.png has 10×20 pixels"):
        horses(make_scarce(tmp_path / "whole")).prediction(images)
    with pytest.raises(DataError, match="the image has 10×20 pixels"):
        horses(tmp_path / "whole").prepare(Sample("a", make_image(20, 10)))
    batch = next(iter(stretched.prediction(images).predict_dataloader()))
    assert batch.images.shape == (1, 3, 16, 16)
    folder_of_mine = FolderDataModule(str(make_folder(tmp_path / "mine")), crop_size=16)
    with pytest.raises(DataError, match="5 of 6 images are not"):
        LabelScarceDataModule(folder_of_mine, square="refuse", **SMALL).setup("fit")


def test_a_broken_test_image_is_found_before_training(tmp_path: Path) -> None:
    """The quick check of a data set looks at every second of 34 images."""
    root = make_scarce(tmp_path, test=34, side=16)
    np.save(root / "horse_21/real/test/img_001.npy", np.full((16, 16), 77))
    data = LabelScarceDataModule(DDPMSegmentationDataModule(str(root), "horse_21", train=4, test=34), **SMALL)
    with pytest.raises(DataError, match=r"img_001\.npy: .*77"):
        data.setup("fit")


@pytest.mark.parametrize("at_once", [1, 3])
def test_processes_share_the_test_images_and_measure_none_twice(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is ignored, and what is predicted at ignored pixels counts in the data sets' own mIoU."""
    seen = []
    for rank in range(3):
        monkeypatch.setattr(LabelScarceDataModule, "_processes", (rank, 3))
        loader = scenes(eval_batch_size=at_once).test_dataloader()
        assert len(loader) > 0, "Lightning refuses a process without a batch"
        seen += [name for batch in loader for name in batch.conditions.sample_ids]
    assert sorted(seen) == sorted(ids(scenes(), "test"))


def test_companions_see_the_files(tmp_path: Path) -> None:
    root = make_scarce(tmp_path / "sets")
    data = horses(root, image_size=24)
    data.attach_inputs(RequiredInputs(control_folders={"edges": str(root / "horse_21")}))
    batch = next(iter(data.images("train")))
    assert batch.conditions.control_images["edges"].shape == (1, 3, 24, 24)


def test_a_class_without_labels_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(tmp_path / "data")
    (root / "classes.txt").write_text("sky\nroad\ncar\nunicorn\n")
    data = LabelScarceDataModule(FolderDataModule(str(root), crop_size=16), **SMALL)
    with caplog.at_level(logging.WARNING, "gate_lightning.data.label_scarce.datamodule"):
        data.setup("fit")
        data.setup("fit")
    name = "gate_lightning.data.label_scarce.datamodule"
    told = [record.getMessage() for record in caplog.records if record.name == name]
    assert len(told) == 1
    assert "'unicorn' (3) in the 4 labelled images" in told[0]


def test_the_check_knows_the_splits(tmp_path: Path) -> None:
    root = make_scarce(tmp_path, train=4, test=3, side=16)
    for number, split in enumerate(["train"] * 4 + ["test"] * 3):
        values = np.zeros((16, 16), dtype=np.uint8)
        values[8:] = 1
        if number == 6:
            values[:4] = 2  # one image only
        write_pair(root / "horse_21/real" / split, f"img_{number if split == 'train' else number - 4:03d}", values)
    data = horses(root)
    report = check_data(data)
    learnt = sum(6 in data.split_of(seed).train for seed in range(5))
    assert 0 < learnt < 5
    assert any(f"'back' (2) is in the labelled images of {learnt} of the 5" in line for line in report.warnings)
    assert any("'person'" in line for line in report.warnings) is False
    assert any("'tail' (16) is in the labelled images of none of the 5" in line for line in report.warnings)
    assert [split.split for split in report.splits] == ["train", "test", "labelled", "measured"]
    assert [split.count for split in report.splits] == [4, 3, 4, 3]
    (alone,) = horses(root, split_seed=None).check().notes
    assert alone.splitlines()[0].split()[-2:] == ["all", "split"]
    assert horses(root, split_seed=7).check().notes[0].splitlines()[0].endswith("split 11")
    row = next(line for line in report.notes[0].splitlines() if " back " in line)
    assert row.split()[2:] == ["1", *(str(int(6 in data.split_of(seed).train)) for seed in range(5))]


def test_the_tool_checks_through_the_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_scarce(tmp_path / "sets", side=16)
    config = composed(
        *("tool=check_data", "dataset=horse21", f"dataset.root={root}", "dataset.train=4", "dataset.test=3"),
        name="eval",
    )
    with caplog.at_level(logging.INFO, "gate_lightning.engine.jobs.tools"):
        run_tool(config, tmp_path / "out")
    assert "images that show" in caplog.text
    assert "split 4" in caplog.text
    write_pair(root / "horse_21/real/train", "img_000", np.full((16, 16), 30, dtype=np.uint8))
    with pytest.raises(DataError, match=r"img_000\.npy: unknown label values: 30"):
        run_tool(config, tmp_path / "out")


def test_a_task_wraps_whatever_data_set_is_named(tmp_path: Path) -> None:
    root = make_scarce(tmp_path / "sets")
    config = resolve(composed("dataset=horse21", f"dataset.root={root}", "dataset.train=4", "dataset.test=3"))
    data = Components(config, str(tmp_path)).datamodule
    assert isinstance(data, LabelScarceDataModule)
    assert isinstance(data.dataset, DDPMSegmentationDataModule)
    assert (data.size, data.image_size) == (256, 64)
    assert data.card.name == "horse_21"
    wrapped = _datamodule("dataset=scenes", "task=label_scarce")
    assert isinstance(wrapped, LabelScarceDataModule)
    assert isinstance(wrapped.dataset, ScenesDataModule)
    assert isinstance(_datamodule("dataset=scenes"), ScenesDataModule)
    ordinary = _datamodule("dataset=horse21", f"dataset.root={root}", "task=segmentation")
    assert isinstance(ordinary, DDPMSegmentationDataModule)


def _datamodule(*overrides: str) -> Any:
    return Components(resolve(composed(*overrides)), "").datamodule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"square": "crop"}, "square='crop': expected one of refuse, stretch"),
        ({"size": 0}, "size=0"),
        ({"small_annotations": 1.5}, "small_annotations=1.5"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scenes(**settings)


def test_one_image_cannot_be_in_two_splits() -> None:
    class Same(ToyData):
        def make_source(self, split: str) -> Any:
            return super().make_source("train")

    with pytest.raises(DataError, match="'train/0' is an image of train and of test"):
        LabelScarceDataModule(Same(3), **SMALL).setup("fit")


class Pixels(LightningModule):
    """One number per class, trained on its pixels; remembers the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(16))
        self.seen: list[list[int]] = []

    def training_step(self, batch: PixelBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch.images * 10_000 + batch.positions).flatten().tolist())
        return (self.scores[batch.labels] - 1).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


def test_a_killed_run_goes_on_with_the_batch_it_would_have_seen(tmp_path: Path) -> None:
    straight = Pixels()
    # 5 images of 256 pixels in batches of 100: 12 steps an epoch
    settings = {"pixels_per_batch": 100}
    trainer_of(tmp_path / "a", max_steps=30).fit(straight, scenes(**settings))
    assert (tmp_path / "a/split.json").is_file()
    for stopped_at in (5, 12, 17):
        folder = tmp_path / str(stopped_at)
        killed = Pixels()
        stop = Stop("on_train_batch_end", stopped_at)
        with pytest.raises(RuntimeError, match="stopped on purpose"):
            trainer_of(folder, [stop], max_steps=30).fit(killed, scenes(**settings))
        resumed = Pixels()
        trainer_of(folder, max_steps=30).fit(
            resumed, scenes(**settings), ckpt_path=folder / "on_exception.ckpt", weights_only=True
        )
        assert killed.seen + resumed.seen == straight.seen
        assert torch.equal(resumed.scores, straight.scores)


def test_a_run_does_not_go_on_with_other_pixels(tmp_path: Path) -> None:
    stop = Stop("on_train_batch_end", 3)
    with pytest.raises(RuntimeError, match="stopped on purpose"):
        trainer_of(tmp_path / "a", [stop], max_steps=30).fit(Pixels(), scenes())
    saved, split = tmp_path / "a/on_exception.ckpt", (tmp_path / "a/split.json").read_text()
    for changed, message in (
        ({"split_seed": 1}, r"names: .* labels: "),
        ({"labelled": 4}, r"images: 5 → 4"),
        ({"pixels_per_batch": 50}, r"pixels_per_batch: 8 → 50"),
        ({"small_annotations": 2000}, r"pixels: .* labels: "),
    ):
        with pytest.raises(ResumeError, match=message):
            trainer_of(tmp_path / "a", max_steps=30).fit(
                Pixels(), scenes(**changed), ckpt_path=saved, weights_only=True
            )
    assert (tmp_path / "a/split.json").read_text() == split


def test_real_horses(shared_dir: Path) -> None:
    root = shared_dir / "data/weizmann_horse"
    if not root.is_dir():
        pytest.skip("no Weizmann horses")
    data = LabelScarceDataModule(FolderDataModule(str(root), crop_size=64), split_seed=0, labelled=5, size=64)
    assert len(data.pool) == 96
    assert len(data.source("train")) == 5
    for name, mask in zip(ids(data, "train"), data.masks("train"), strict=True):
        file = (root / name.replace("images", "masks", 1)).with_suffix(".png")
        assert float((mask == 1).mean()) == pytest.approx(float((np.array(Image.open(file)) == 1).mean()), abs=0.02)
