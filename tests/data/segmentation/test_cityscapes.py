"""Cityscapes: facts, layout, label ids mapped on reading, mistakes in words, submission values."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmseg.utils import get_classes, get_palette
from PIL import Image

from gate_lightning.callbacks.reports.submission import SubmissionWriter
from gate_lightning.data.segmentation.ade20k import ADE20KDataModule
from gate_lightning.data.segmentation.cityscapes import CityscapesDataModule
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.errors import ConfigError, DataError
from tests.support.benchmarks import CITY_SIZE, blocks, make_cityscapes
from tests.support.composition import composed
from tests.support.folders import make_folder, make_image, write

SMALL: dict[str, Any] = {"scale": (64, 32), "crop_size": (16, 32), "batch_size": 2}
#: label id → class name of all evaluated classes, from the paper's table and cityscapesScripts' README
IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_cityscapes(tmp_path / "cityscapes")


def test_names_and_colours_are_the_fields(root: Path) -> None:
    module = CityscapesDataModule(str(root))
    assert list(module.labels.classes) == get_classes("cityscapes")
    assert [list(colour) for colour in module.labels.palette] == get_palette("cityscapes")
    assert module.card.prompt_fine.startswith("An urban street scene with multiple lanes")
    assert dict(zip(module.labels.submission, module.labels.classes, strict=True)) == IDS


def test_label_ids_are_mapped_on_reading(root: Path) -> None:
    module = CityscapesDataModule(str(root), **SMALL)
    source = module.source("train")
    assert len(source) == 4
    assert source.sample_id(0) == "leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png"
    values = np.array(Image.open(root / "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"))
    names = np.array([*module.labels.classes], dtype=object)
    mask = source.load(0).mask
    assert mask is not None
    assert source.sizes(0) == (CITY_SIZE, CITY_SIZE)
    for value in np.unique(values):
        labels = set(mask[values == value].tolist())
        assert labels == ({255} if value not in IDS else {names.tolist().index(IDS[int(value)])})


def test_train_ids_are_accepted_where_there_are_no_label_ids(tmp_path: Path) -> None:
    root = make_cityscapes(tmp_path / "a", ("labelTrainIds",))
    values = np.array(Image.open(root / "gtFine/val/frankfurt/frankfurt_000001_000019_gtFine_labelTrainIds.png"))
    np.testing.assert_array_equal(CityscapesDataModule(str(root), **SMALL).source("val").load(1).mask, values)
    both = str(make_cityscapes(tmp_path / "b", ("labelIds", "labelTrainIds")))
    assert CityscapesDataModule(both).encoding == "labelIds"
    chosen = CityscapesDataModule(both, encoding="labelTrainIds", **SMALL)
    np.testing.assert_array_equal(chosen.source("val").load(1).mask, values)


def test_training_images_need_not_be_square(root: Path) -> None:
    module = CityscapesDataModule(str(root), **SMALL)
    module.setup("fit")
    for batch in module.train_dataloader():
        assert batch.images.shape == (2, 3, 16, 32)
        assert batch.masks.shape == (2, 16, 32)
    assert [batch.images.shape for batch in module.val_dataloader()] == [(2, 3, 32, 64)]


def test_gates_fixed_scale_draws_crops_only(root: Path) -> None:
    module = CityscapesDataModule(
        str(root), scale=(64, 32), crop_size=32, ratio_range=None, flip=0, photometric=False, batch_size=1
    )
    module.setup("fit")
    whole = {module.source("train").sample_id(n): module.source("train").load(n).image for n in range(4)}
    for batch in module.train_dataloader():
        (top, left), (name,) = batch.conditions.windows[0], batch.conditions.sample_ids
        shown = ((batch.images[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown, whole[name][top : top + 32, left : left + 32])


def test_wrong_roots_and_missing_masks_are_said_in_words(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no leftImg8bit/: looked for leftImg8bit/\{train,val\[,test\]\}/<city>"):
        CityscapesDataModule(str(tmp_path))
    (root / "gtFine").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"gtFine/val does not exist; expected the masks of the val split"):
        CityscapesDataModule(str(root)).setup("validate")
    with pytest.raises(ConfigError, match="labelIds or labelTrainIds"):
        CityscapesDataModule(str(root), encoding="color")


MASK = "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png"
BREAKS = {
    "missing mask": (MASK, None, "image without mask; expected gtFine/train/…_gtFine_labelIds of the same path"),
    "missing image": (
        MASK.replace("gtFine/", "leftImg8bit/").replace("gtFine_labelIds", "leftImg8bit"), None, "mask without image",
    ),
    "train ids": (MASK, blocks(*CITY_SIZE, 0, 1, 0) * 255, "these look like train ids"),
    "strange": (MASK, blocks(*CITY_SIZE, 0, 40, 0), "19 classes and ignored are 0 … 33"),
    "colours": (MASK, make_image(*CITY_SIZE), "_gtFine_color.png are for people"),
    "other size": (MASK, blocks(32, 32, 0, 33, 0), "image is 64×32"),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
def test_what_is_broken_is_said_in_words(root: Path, what: str) -> None:
    name, content, expected = BREAKS[what]
    (root / name).unlink()
    if content is not None:
        write(root / name, content)
    (error,) = CityscapesDataModule(str(root), **SMALL).check("full").errors
    assert expected in error


def test_label_ids_under_the_name_of_train_ids_are_noticed(root: Path) -> None:
    for path in (root / "gtFine").rglob("*_labelIds.png"):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    (error, *_) = CityscapesDataModule(str(root), **SMALL).check("full").errors
    assert "These look like label ids" in error


def test_submissions_hold_label_ids_named_like_the_images(root: Path, tmp_path: Path) -> None:
    module = CityscapesDataModule(str(root), **SMALL)
    images = module.images_of("test")
    writer = SubmissionWriter(tmp_path / "out", module.labels.submission, images.paths)
    labels = torch.arange(19).repeat(32, 4)[:, :64][None]
    trainer: Any = SimpleNamespace(is_global_zero=True)
    (batch,) = module.prediction(images).predict_dataloader()
    writer.on_predict_batch_end(trainer, None, labels, batch)  # type: ignore[arg-type]
    written = tmp_path / "out/berlin_000000_000019_leftImg8bit.png"
    assert list((tmp_path / "out").iterdir()) == [written]
    # the data set's own reader maps the label ids back
    np.testing.assert_array_equal(module.reader.read(written), labels[0].numpy())
    assert batch.conditions.sample_ids == ("leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png",)


def test_predicted_images_have_the_sample_ids_and_pixels_of_their_split(root: Path) -> None:
    module = CityscapesDataModule(str(root), **SMALL)
    (measured,) = module.val_dataloader()
    (predicted,) = module.prediction(module.images_of("val"), eval_batch_size=2).predict_dataloader()
    assert predicted.conditions.sample_ids == measured.conditions.sample_ids
    assert torch.equal(predicted.images, measured.images)


def test_data_without_a_server_have_no_submission(tmp_path: Path) -> None:
    from gate_lightning.data.segmentation.folder import FolderDataModule

    module = FolderDataModule(str(make_folder(tmp_path / "data")), crop_size=16)
    with pytest.raises(ConfigError, match="no image files"):
        module.images_of("val")
    with pytest.raises(ConfigError, match="no submission format"):
        SubmissionWriter(tmp_path / "out", module.labels.submission, [])
    with pytest.raises(DataError, match=r"two images would both be written to a\.png"):
        SubmissionWriter(tmp_path / "out", (1, 2), [Path("x/a.png"), Path("y/a.png")])


@pytest.mark.parametrize("name", ["ade20k", "cityscapes"])
def test_configurations_use_windows_of_the_crops_size(name: str) -> None:
    config = runs.resolve(composed(f"dataset={name}"))
    assert config.task.inference.mode == "slide"
    assert config.task.inference.crop_size == config.dataset.crop_size


@pytest.mark.parametrize(("name", "kind"), [("ade20k", ADE20KDataModule), ("cityscapes", CityscapesDataModule)])
def test_configurations_show_every_argument(name: str, kind: type) -> None:
    config = composed(f"dataset={name}").dataset
    assert config._target_ == f"{kind.__module__}.{kind.__qualname__}"
    chain = [inspect.signature(made).parameters for made in kind.__mro__ if "__init__" in vars(made)][:4]
    parameters = {name: parameter for link in reversed(chain) for name, parameter in link.items()}
    assert set(config) - {"_target_"} == set(parameters) - {"others", "loading", "card", "labels"}
    for key in ("scale", "crop_size", "ratio_range", "cat_max_ratio", "flip", "photometric", "augment", "check_level"):
        shown = config[key] if isinstance(config[key], int | float | str) else tuple(config[key])
        assert shown == parameters[key].default, key
