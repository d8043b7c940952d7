from __future__ import annotations

import logging
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import RichProgressBar

from gate_lightning.callbacks.pace.progress import ProgressLines, progress_bar
from gate_lightning.errors import ConfigError
from gate_lightning.utils.units import duration
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


def test_plain_lines_tell_step_loss_pace_and_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    make_trainer(tmp_path, ProgressLines(0), enable_progress_bar=True, max_steps=5).fit(make_task(), FakeData())
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("progress")]
    assert len(lines) == 6
    assert lines[2].startswith("step 3/5  train/loss ")
    assert "s a step, " in lines[2]
    assert lines[2].endswith(" left")
    assert lines[4].startswith("step 4  val/aAcc 0.")


def test_a_task_that_stops_by_itself_says_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    task = make_task()
    monkeypatch.setattr(type(task), "steps_bounds", (3.0, 5.0), raising=False)
    make_trainer(tmp_path, ProgressLines(0), enable_progress_bar=True, max_steps=8).fit(task, FakeData())
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("progress")]
    assert lines[1].startswith("step 2/5  ")
    assert lines[1].endswith(" left at most")


def test_lines_keep_their_distance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    trainer = make_trainer(tmp_path, ProgressLines(1000), enable_progress_bar=True, val_check_interval=100)
    trainer.fit(make_task(), FakeData())
    assert [record for record in caplog.records if record.name.endswith("progress")] == []


@pytest.mark.parametrize(("terminal", "kind"), [(True, RichProgressBar), (False, ProgressLines)])
def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, terminal: bool, kind: type) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert type(progress_bar()) is kind


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.213, "0.21 s"),
        (9.4, "9.4 s"),
        (42.4, "42 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (59.7, "1 min 00 s"),
    ],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_negative_distance_is_refused() -> None:
    with pytest.raises(ConfigError):
        ProgressLines(-1)
