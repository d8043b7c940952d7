"""A disk that is full: one message, no traceback, and what was written before is whole."""

from __future__ import annotations

import csv
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.engine import cli
from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.pixel_classifiers.store import PixelStore
from gate_lightning.structures import FeatureInfo
from gate_lightning.visualization.charts import comparison_chart


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes (Python ignores the signal and raises an OSError)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_row_that_does_not_fit_leaves_the_rows_before_it(tmp_path: Path) -> None:
    log = RunLog(str(tmp_path))
    for step in range(3):
        log.log_metrics({"a": 0.125}, step)
    size = log.path.stat().st_size
    with largest_file(size + 3), pytest.raises(CacheError, match=r"metrics\.csv cannot be written"):
        log.log_metrics({"a": 0.25}, 3)
    with log.path.open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]


def test_an_image_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    comparison_chart(["a"], [[0.5]], "mIoU", path)
    before = path.read_bytes()
    with largest_file(1000), pytest.raises(CacheError, match=r"chart\.png cannot be written"):
        comparison_chart(["a", "b"], [[0.5], [0.1]], "mIoU", path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["chart.png"]


def test_features_that_do_not_fit_are_refused_before_a_page_is_written(tmp_path: Path) -> None:
    info = {"a": {"x": FeatureInfo(64, 1)}}
    with largest_file(10_000), pytest.raises(CacheError, match="no file for features could be made"):
        PixelStore(info, {"g": ("a",)}, (16, 16), 4, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_hydra_cannot_write_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "outputs/x/.hydra/config.yaml")

    assert cli._guarded(job) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("outputs/x/.hydra/config.yaml cannot be written: No space left on device")
    assert len(said.splitlines()) == 1


def test_a_status_that_cannot_be_written_hides_no_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the reason"), largest_file(10), cli._recorded(tmp_path):
        raise ConfigError("the reason")
    assert not list(tmp_path.iterdir())


def test_the_store_is_as_large_as_its_maps(tmp_path: Path) -> None:
    store = PixelStore({"a": {"x": FeatureInfo(8, 1)}}, {"g": ("a",)}, (4, 4), 2, folder=tmp_path)
    features = {"a": {"x": torch.randn(1, 8, 4, 4)}}
    store.put(1, features)
    found = store.sample(torch.tensor([1]), torch.tensor([5]))["g"][0, 0]
    assert torch.equal(found, features["a"]["x"][0, :, 1, 1].half().float())
