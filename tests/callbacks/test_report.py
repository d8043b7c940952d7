"""The report at the end of a run: what goes wrong with it never counts against the run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gate_lightning.callbacks import report
from gate_lightning.callbacks.report import Report, try_report
from tests.support.run_folders import make_run


@pytest.fixture(autouse=True)
def _lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")


def test_report_is_written_at_the_end_and_its_size_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder: Any = make_run(tmp_path / "run")
    Report().on_run_end(SimpleNamespace(default_root_dir=str(folder)), None, {})  # type: ignore[arg-type]
    assert (folder / "report.html").stat().st_size > 1000
    assert not caplog.records  # the last lines of the run name it
    try_report(folder)
    assert f"report: {folder / 'report.html'} (" in caplog.text


def test_a_failure_is_a_warning_with_the_command(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Path:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(report, "write_report", fails)
    try_report(tmp_path / "a b")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "ZeroDivisionError: a fault of ours" in record.getMessage()
    assert f"python eval.py tool=report \"run='{tmp_path}/a b'\"" in record.getMessage()


def test_a_damaged_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.json").write_text("{")
    try_report(folder)
    assert str(folder / "metrics.json") in caplog.text
    assert not (folder / "report.html").exists()


def test_without_jinja2_one_line_says_how_to_get_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    try_report(make_run(tmp_path / "run"))
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage() == "no report: jinja2 is not installed (pip install 'jinja2>=3.1')"
