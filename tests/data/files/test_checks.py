"""The report of a check: counts, sizes, warnings, and how much was looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gate_lightning.data.files.checks import QUICK_SAMPLES, count_pixels
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.errors import ConfigError
from tests.support.folders import make_folder, make_mask, write


def test_pixels_are_counted_per_class_and_ignored() -> None:
    masks = [np.array([[0, 1], [1, 255]], dtype=np.uint8), np.array([[2, 2, 255]], dtype=np.uint8)]
    assert count_pixels(masks, 3).tolist() == [1, 2, 2, 2]


def test_report_of_a_whole_folder(tmp_path: Path) -> None:
    module = FolderDataModule(str(make_folder(tmp_path)), crop_size=16)
    report = module.check("full")
    train, val = report.splits
    assert (train.count, train.inspected, val.count) == (4, 4, 2)
    assert train.sizes == {(24, 32): 1, (32, 24): 1, (20, 20): 1, (40, 64): 1}
    assert (
        train.pixels.tolist()
        == count_pixels(
            [make_mask(*size, n) for n, size in enumerate([(24, 32), (32, 24), (20, 20), (40, 64)])], 3
        ).tolist()
    )
    assert report.errors == report.warnings == ()
    text = str(report)
    assert "train: 4 images, 4 decoded" in text
    assert "0 errors" in text


def test_empty_classes_and_strange_files_are_warnings(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "classes.txt").write_text("sky\nroad\ncar\nunicorn\n")
    (root / "images/train/notes.txt").write_text("x")
    (root / "images/train/.hidden").write_text("x")
    report = FolderDataModule(str(root), crop_size=16).check("full")
    assert report.errors == ()
    assert [warning.split(": ", 1)[1].split(". What")[0] for warning in report.warnings] == [
        "1 left out: 1 .txt (notes.txt)",
        "no pixel of 'unicorn' (3) in the masks",
        "no pixel of 'unicorn' (3) in the masks",
    ]


def test_quick_looks_at_some_full_at_all(tmp_path: Path) -> None:
    count = QUICK_SAMPLES + 10
    root = make_folder(tmp_path, {"train": [(16, 16)] * count, "val": [(16, 16)]})
    last = sorted((root / "masks/train").glob("*.png"))[-2]
    write(last, make_mask(16, 16) + 40)
    module = FolderDataModule(str(root), crop_size=16)
    quick, full = module.check("quick"), module.check("full")
    assert quick.splits[0].inspected == count // 2
    assert full.splits[0].inspected == count
    assert f"{last}: unknown label values: 40 in" in full.errors[0]
    with pytest.raises(ConfigError, match="expected one of quick, full"):
        module.check("deep")


def test_one_mistake_in_all_masks_is_one_error(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "classes.txt").write_text("sky\nroad\n")
    report = FolderDataModule(str(root), crop_size=16).check("full")
    assert len(report.splits[0].errors) == 1
    assert "images" not in report.errors[0]
    assert "(4 of 4 masks looked at hold such values: 2)" in report.errors[0]
    assert "ignore_index=2" in report.errors[0]
