"""``tool=check_data``: a report where all is well, an error that is the report where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning import LightningDataModule

from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.data.segmentation.folder import FolderDataModule
from gate_lightning.engine.jobs.tools import run_tool
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.check_data import check_data
from tests.support.composition import composed
from tests.support.folders import make_folder


def test_the_report_is_written(tmp_path: Path) -> None:
    data = FolderDataModule(str(make_folder(tmp_path / "data")), crop_size=16)
    report = check_data(data, output=str(tmp_path / "out"))
    assert not report.errors
    assert (tmp_path / "out/check_data.txt").read_text() == f"{report}\n"


def test_all_errors_of_a_broken_folder_are_told(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    (root / "images/train/001.png").write_text("x")
    (root / "masks/val/001.png").unlink()
    with pytest.raises(DataError, match=r"(?s)2 errors.*train/001.png is no image.*val/001.png: image without mask"):
        check_data(FolderDataModule(str(root), crop_size=16), output=str(tmp_path / "out"))
    assert "2 errors" in (tmp_path / "out/check_data.txt").read_text()


def test_generated_data_are_counted() -> None:
    report = check_data(ScenesDataModule(train=3, val=2, test=2))
    assert [split.count for split in report.splits] == [3, 2, 2]
    assert report.splits[0].pixels.sum() == 3 * 64 * 64


def test_without_a_data_set_that_can_be_checked() -> None:
    with pytest.raises(ConfigError, match="needs a data set: dataset=<name>"):
        check_data(None)
    with pytest.raises(ConfigError, match="cannot check LightningDataModule"):
        check_data(LightningDataModule())  # type: ignore[arg-type]


def test_a_data_set_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    """What its constructor says reaches the user as it is."""
    config = composed("tool=check_data", "dataset=folder", f"dataset.root={tmp_path / 'nowhere'}", name="eval")
    with pytest.raises(DataError, match=r"dataset\.root does not exist: looked for"):
        run_tool(config, tmp_path / "out")
