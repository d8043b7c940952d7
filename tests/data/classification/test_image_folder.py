"""Images in a folder for each class."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.data.classification.image_folder import ImageFolderDataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.classified import write_image_folder

WHOLE = {"train": {"cat": 3, "dog": 4}, "val": {"cat": 2, "dog": 1}, "test": {"dog": 2}}


def module(root: Path, **settings: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(root), **{"size": 16, "batch_size": 2, **settings})  # type: ignore[arg-type]


def names(data: ImageFolderDataModule, split: str) -> list[str]:
    source = data.source(split)
    return [source.sample_id(index) for index in range(len(source))]


def test_folders_of_train_are_the_classes(tmp_path: Path) -> None:
    data = module(write_image_folder(tmp_path, WHOLE))
    assert data.labels.classes == ("cat", "dog")
    assert names(data, "val") == ["val/cat/0.png", "val/cat/1.png", "val/dog/0.png"]
    assert [data.source("val").label(index) for index in range(3)] == [0, 0, 1]
    assert [data.source("test").label(index) for index in range(2)] == [1, 1]
    assert data.splits == ("train", "val", "test")


def test_the_middle_square_is_shown(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"a": 1}})
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 16:48] = 200
    Image.fromarray(pixels).save(tmp_path / "val/a/0.png")
    (batch,) = module(tmp_path).val_dataloader()
    assert batch.images.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(batch.images.numpy(), 200 / 127.5 - 1, atol=1e-6)


def test_sizes_that_differ_are_evaluated_together(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"a": 1}})
    write_image_folder(tmp_path / "more", {"val": {"a": 1}}, (40, 17))
    shutil.copy(tmp_path / "more/val/a/0.png", tmp_path / "val/a/1.png")
    (batch,) = module(tmp_path).val_dataloader()
    assert batch.images.shape == (2, 3, 16, 16)


def test_an_exif_orientation_is_applied(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"train": {"a": 1, "b": 1}, "val": {"a": 1}})
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise: left becomes top
    Image.fromarray(pixels).save(tmp_path / "val/a/0.png", exif=exif)
    data = module(tmp_path)
    image = data.source("val").load(0).image
    assert image[:4].min() == 255
    assert image[4:].max() == 0
    assert data.source("val").orientations == {"val/a/0.png": 6}


def test_links_are_followed(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "far", {"x": {"photos": 2}})
    write_image_folder(tmp_path / "root", {"train": {"a": 1}, "val": {"a": 1}})
    (tmp_path / "root/train/linked").symlink_to(tmp_path / "far/x/photos", target_is_directory=True)
    data = module(tmp_path / "root")
    assert data.labels.classes == ("a", "linked")
    assert names(data, "train") == ["train/a/0.png", "train/linked/0.png", "train/linked/1.png"]
    (tmp_path / "root/train/a/dead.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"dead.png is a link to .*gone.png, which does not exist"):
        module(tmp_path / "root").setup("fit")


def test_without_a_folder_val_training_images_are_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_image_folder(tmp_path, {"train": {"cat": 8, "dog": 12}})
    data = module(root, held_out=0.25)
    with caplog.at_level(logging.INFO):
        train, val = names(data, "train"), names(data, "val")
    assert (len(train), len(val), data.splits) == (15, 5, ("train", "val"))
    assert not {*train} & {*val}
    assert "5 of the training images are held out for it" in caplog.text
    assert names(module(root, held_out=0.25), "val") == val
    assert names(module(root, held_out=0.25, split_seed=1), "val") != val
    with pytest.raises(ConfigError, match=r"dataset.held_out=0.01 of 20 training images are 0; validation needs one"):
        module(root, held_out=0.01).setup("fit")


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, WHOLE)
    (root / "train/empty").mkdir()
    with pytest.raises(DataError, match=r"train/empty: no image of this class; add some, or remove the folder"):
        module(root).setup("fit")
    (root / "train/empty/notes.pdf").write_text("x")
    with pytest.raises(DataError, match=r"train/empty: no image of this class; .*1 left out: 1 \.pdf \(notes.pdf\)"):
        module(root).setup("fit")


@pytest.mark.parametrize(("classes", "found"), [({"cat": 2}, r"1 folder\(s\) of classes \['cat'\]"), ({}, r"0 folder")])
def test_one_class_is_refused(tmp_path: Path, classes: dict[str, int], found: str) -> None:
    (tmp_path / "train").mkdir()
    write_image_folder(tmp_path / "x", {"train": classes})
    for name in classes:
        shutil.copytree(tmp_path / "x/train" / name, tmp_path / "train" / name)
    with pytest.raises(DataError, match=rf"{found}.*expected a folder for each of two classes or more"):
        module(tmp_path)


def test_a_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {**WHOLE, "test": {"bird": 1}})
    with pytest.raises(DataError, match=r"test/bird: .*train has no class of that name .*its classes are cat, dog"):
        module(root).setup("fit")


def test_a_missing_folder_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.root does not exist: looked for \{train,val\[,test\]\}/<class>"):
        module(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"dataset.root has no train/: .* found \['images'\]"):
        module(tmp_path)
    write_image_folder(tmp_path, {"train": {"a": 1, "b": 1}})
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"test holds no images in folders of classes"):
        module(tmp_path).setup("fit")


def test_an_image_of_two_splits_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_image_folder(tmp_path, WHOLE)
    with caplog.at_level(logging.WARNING):
        module(root).setup("fit")
    assert "in another one" not in caplog.text
    shutil.copy(root / "train/dog/2.png", root / "test/dog/other_name.png")
    with caplog.at_level(logging.WARNING):
        module(root).setup("fit")
    told = "1 image(s) of one split are in another one, too, so what is measured was trained on: the first is"
    assert f"{told} test/dog/other_name.png, the same as train/dog/2.png" in caplog.text
    (warning,) = (text for text in module(root).check("quick").warnings if "in another one" in text)
    assert warning.startswith(told)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, WHOLE)
    (root / "val/dog/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"val/dog/0.png is no image that can be read"):
        module(root).setup("fit")
    (error,) = module(root).check().errors
    assert "val/dog/0.png" in error


def test_what_lies_beside_the_images_and_missing_classes_are_told(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, WHOLE)
    (root / "train/readme.md").write_text("x")
    report = module(root).check()
    assert not report.errors
    assert any("1 left out: 1 .md (readme.md)" in text for text in report.warnings)
    assert "test: no image of 'cat'" in report.warnings
