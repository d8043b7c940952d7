"""``tool=check_data``: a report where all is well, an error that is the report where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.check_data import check_data
from tests.support.folders import make_folder

FOLDER = "gate_lightning.data.segmentation.folder.FolderDataModule"


def test_report_of_a_configuration_is_written(tmp_path: Path) -> None:
    config = {"_target_": FOLDER, "root": str(make_folder(tmp_path / "data")), "crop_size": 16}
    report = check_data(config, output=str(tmp_path / "out"))
    assert not report.errors
    assert (tmp_path / "out/check_data.txt").read_text() == f"{report}\n"


def test_all_errors_of_a_broken_folder_are_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    (root / "images/train/001.png").write_text("x")
    (root / "masks/val/001.png").unlink()
    config = {"_target_": FOLDER, "root": str(root), "crop_size": 16}
    with pytest.raises(DataError, match=r"(?s)2 errors.*train/001.png is no image.*val/001.png: image without mask"):
        check_data(config, output=str(tmp_path / "out"))
    assert "2 errors" in (tmp_path / "out/check_data.txt").read_text()


def test_generated_data_are_counted() -> None:
    report = check_data(ScenesDataModule(train=3, val=2, test=2))
    assert [split.count for split in report.splits] == [3, 2, 2]
    assert report.splits[0].pixels.sum() == 3 * 64 * 64


def test_other_data_sets_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot check 'os\.system'"):
        check_data({"_target_": "os.system"})
