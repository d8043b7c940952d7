"""CIFAR-10 in its binary version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.classification import cifar10
from gate_lightning.data.classification.cifar10 import CIFAR10DataModule
from gate_lightning.errors import ConfigError, DataError
from tests.support.classified import CIFAR_NAMES, write_cifar

IMAGES = 20
GET = r"get cifar-10-binary\.tar\.gz from https://www\.cs\.toronto\.edu"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "IMAGES", IMAGES)


def module(root: Path, **settings: object) -> CIFAR10DataModule:
    return CIFAR10DataModule(str(root), **{"val": 10, "size": 32, "batch_size": 5, **settings})  # type: ignore[arg-type]


def test_images_and_classes_are_those_of_the_files(tmp_path: Path) -> None:
    records = write_cifar(tmp_path, IMAGES)
    data = module(tmp_path)
    assert data.labels.classes == CIFAR_NAMES
    source = data.source("test")
    assert len(source) == IMAGES
    sample, record = source.load(13), records["test_batch.bin"][13]
    assert sample.label == source.label(13) == record[0] == 3
    # byte by byte: red, green, blue, each row by row
    for channel, row, column in ((0, 0, 0), (1, 5, 7), (2, 31, 31), (0, 31, 0)):
        assert sample.image[row, column, channel] == record[1 + channel * 1024 + row * 32 + column]
    assert sample.sample_id == "cifar10/test_batch/0013"


def test_validation_is_held_out_of_training_and_decided_by_its_seed(tmp_path: Path) -> None:
    write_cifar(tmp_path, IMAGES)
    splits = []
    for seed in (0, 0, 1):
        data = module(tmp_path, split_seed=seed)
        splits.append([{data.source(s).sample_id(i) for i in range(len(data.source(s)))} for s in ("train", "val")])
    (train, val), again, other = splits
    assert (len(train), len(val)) == (5 * IMAGES - 10, 10)
    assert not train & val
    assert again == [train, val]
    assert other[1] != val
    few = module(tmp_path, train=7, test=3)
    kept = {few.source("train").sample_id(i) for i in range(len(few.source("train")))}
    assert len(kept) == 7
    assert kept < train
    assert len(few.source("test")) == 3


def test_images_are_enlarged_to_the_size_of_the_backbone(tmp_path: Path) -> None:
    write_cifar(tmp_path, IMAGES)
    batch = next(iter(module(tmp_path, size=64).val_dataloader()))
    assert batch.images.shape == (5, 3, 64, 64)


def test_the_folder_that_the_archive_unpacks_to_is_found_inside(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin", IMAGES)
    assert module(tmp_path).root == tmp_path / "cifar-10-batches-bin"


def test_a_file_that_is_cut_off_or_of_another_size_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path, IMAGES)
    path = tmp_path / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DataError, match=rf"data_batch_2.bin has 61360 bytes: it is cut off in image 19; .*{GET}"):
        module(tmp_path).setup("fit")
    path.write_bytes(whole + whole[:3073])
    with pytest.raises(DataError, match=rf"has 64533 bytes; expected 61460 \(20 images of 3073 bytes\); {GET}"):
        module(tmp_path).setup("fit")


def test_a_class_beyond_nine_is_refused(tmp_path: Path) -> None:
    records = write_cifar(tmp_path, IMAGES)["test_batch.bin"].copy()
    records[[4, 6], 0] = 11
    (tmp_path / "test_batch.bin").write_bytes(records.tobytes())
    data = module(tmp_path)
    data.setup("fit")  # only the test file is broken
    with pytest.raises(DataError, match=rf"test_batch.bin: image 4 has class 11 \(2 such images\); .*{GET}"):
        data.setup("test")


def test_missing_files_say_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"dataset.root does not exist: .*nowhere .*{GET}"):
        module(tmp_path / "nowhere")
    write_cifar(tmp_path, IMAGES)
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=rf"data_batch_5.bin does not exist; {GET}"):
        module(tmp_path).setup("fit")
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=rf"batches.meta.txt holds 2 lines; expected 10 class names.*{GET}"):
        module(tmp_path)
    (tmp_path / "batches.meta.txt").unlink()
    with pytest.raises(DataError, match=rf"batches.meta.txt, the class names, does not exist; {GET}"):
        module(tmp_path)
    (tmp_path / "data_batch_1.bin").rename(tmp_path / "data_batch_1")
    with pytest.raises(DataError, match=rf"in its Python or Matlab version \(data_batch_1\); {GET}"):
        module(tmp_path)


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, IMAGES)
    with pytest.raises(ConfigError, match=r"dataset.val=100: expected a whole number from 1 to 99"):
        module(tmp_path, val=100)
    with pytest.raises(
        ConfigError, match=r"dataset.train=91: expected a whole number from 1 to 90, or null .None. for all"
    ):
        module(tmp_path, train=91)


def test_the_check_counts_images_of_every_class(tmp_path: Path) -> None:
    write_cifar(tmp_path, IMAGES)
    report = module(tmp_path).check()
    assert [int(split.pixels.sum()) for split in report.splits] == [90, 10, 20]
    np.testing.assert_array_equal(report.splits[2].pixels, [2] * 10 + [0])
    assert "(ignored)" not in str(report)
    assert "pixel" not in str(report)
