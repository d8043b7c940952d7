"""What the splits of a protocol give together."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.resplit_tables import summarize
from gate_lightning.errors import DataError
from gate_lightning.utils.text import read_csv


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    for number, value in enumerate((0.25, 0.75)):
        folder = tmp_path / f"split{number}"
        runs.save_config(OmegaConf.create({"task": {"data": {"split_seed": number}}, "seed": 0}), folder)
        runs.write_json(folder / "metrics.json", {"test/mIoU": value, "test/bIoU": None if number else value})
        (folder / "classes_test.csv").write_text(f"class,IoU\nsky,{value}\nsea,{'nan' if number else value}\n")
    return tmp_path


def test_mean_and_deviation_of_what_has_a_value(protocol: Path) -> None:
    found = summarize(protocol)
    assert found == pytest.approx({"test/mIoU": 0.5, "test/mIoU_std": 0.125**0.5, "test/bIoU": 0.25})
    sky, sea = read_csv(protocol / "classes_test.csv")
    assert (float(sky["IoU"]), float(sea["IoU"]), sea["IoU std"]) == (0.5, 0.25, "nan")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("classes_test.csv", text) for text in ("class,IoU\nsky,high\n", "", "IoU\n1\n")),
        *(("metrics.json", text) for text in ('{"test/mIoU": "x"}', "")),
    ],
)
def test_a_damaged_file_of_a_split_is_named(name: str, content: str, protocol: Path) -> None:
    (protocol / "split1" / name).write_text(content)
    with pytest.raises(DataError, match=rf"split1/{name}"):
        summarize(protocol)
