from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.callbacks.pace import cost
from gate_lightning.callbacks.pace.cost import CostReport
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.errors import ConfigError
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


class Clock(Callback):
    """Time as the callback sees it: 0.1 s a batch, 0.5 s the first one, 100 s a validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.now += 0.1 if self.now else 0.5

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.now += 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "gate_lightning")
    return caplog


def test_report_tells_time_memory_and_disk(tmp_path: Path, clock: Clock, lines: pytest.LogCaptureFixture) -> None:
    callback, task = CostReport(), make_task()
    settings = {"max_steps": 9, "val_check_interval": 4, "logger": RunLog(str(tmp_path))}
    make_trainer(tmp_path, clock, callback, RunCheckpoint(100), **settings).fit(task, FakeData())
    report = callback.report
    assert report["seconds_per_step"] == pytest.approx(0.1)
    assert report["training_seconds"] == pytest.approx((9 - 3) * 0.1)
    assert 0.05 < report["memory_gib"] <= report["memory_peak_gib"] + 0.01
    assert "0.1 s a step, 6 steps to go: about 0.6 s" in lines.text
    assert "cost/seconds_per_step" in (tmp_path / "metrics.csv").read_text()
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written["seconds_per_step"] == report["seconds_per_step"]
    assert written["trained_steps"] == 9
    # nine steps, the first one of which is longer, and two validations
    assert written["trained_seconds"] == pytest.approx(0.5 + 8 * 0.1 + 2 * 100.0)
    on_disk = (tmp_path / "checkpoints" / "last.ckpt").stat().st_size
    weights = sum(p.numel() for p in task.parameters() if p.requires_grad) * 4
    # two states of weights and two moments each, one set of weights
    assert report["checkpoints_gib"] * 2**30 == pytest.approx(7 * weights, rel=0.01)
    assert weights * 3 < on_disk


def test_accumulated_batches_make_one_step(tmp_path: Path, clock: Clock) -> None:
    callback = CostReport(warmup=2, measured=2)
    settings = {"max_steps": 5, "accumulate_grad_batches": 2, "val_check_interval": 100}
    make_trainer(tmp_path, clock, callback, **settings).fit(make_task(), FakeData())
    assert callback.report["seconds_per_step"] == pytest.approx(0.2)
    assert callback.report["training_seconds"] == pytest.approx(3 * 0.2)


def test_epochs_are_counted_in_steps(tmp_path: Path, clock: Clock) -> None:
    """Four epochs of six batches."""
    callback = CostReport()
    settings = {"max_steps": -1, "max_epochs": 4, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}
    make_trainer(tmp_path, clock, callback, **settings).fit(make_task(), FakeData())
    assert callback.report["training_seconds"] == pytest.approx((24 - 3) * 0.1)


@pytest.mark.parametrize(
    ("bounds", "max_steps", "expected"),
    [
        ((5.0, 7.0), 9, "2 to 4 steps to go: 0.2 s to 0.4 s"),
        ((100.0, 200.0), 9, "6 steps to go: about 0.6 s"),
        ((5.0, math.inf), -1, "2 or more steps to go"),
        ((math.inf, math.inf), -1, "no end set"),
    ],
)
def test_a_task_that_stops_by_itself_says_when(
    tmp_path: Path,
    clock: Clock,
    lines: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    bounds: tuple[float, float],
    max_steps: int,
    expected: str,
) -> None:
    class Enough(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    task = make_task(scheduler=None)
    monkeypatch.setattr(type(task), "steps_bounds", bounds)
    settings = {"max_steps": max_steps, "max_epochs": -1, "val_check_interval": 100}
    make_trainer(tmp_path, clock, CostReport(), Enough(), **settings).fit(task, FakeData())
    assert expected in lines.text
    total = json.loads((tmp_path / "cost.json").read_text()).get("training_seconds")
    assert (total is None) == (max_steps == -1)


@pytest.mark.thorough
def test_a_validation_in_the_middle_is_not_taken_for_steps(tmp_path: Path, clock: Clock) -> None:
    callback = CostReport(warmup=1, measured=3)
    make_trainer(tmp_path, clock, callback, max_steps=12, val_check_interval=3).fit(make_task(), FakeData())
    assert callback.report == {}
    callback = CostReport(warmup=1, measured=3)
    make_trainer(tmp_path, clock, callback, max_steps=12, val_check_interval=5).fit(make_task(), FakeData())
    assert callback.report["seconds_per_step"] == pytest.approx(0.1)


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    plain = make_task()  # each right before its training: it seeds the stream that dropout draws from
    make_trainer(tmp_path, max_steps=6).fit(plain, FakeData())
    measured = make_task()
    make_trainer(tmp_path, CostReport(), max_steps=6).fit(measured, FakeData())
    assert all(torch.equal(value, measured.state_dict()[name]) for name, value in plain.state_dict().items())


def test_full_disk_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    make_trainer(tmp_path, CostReport(), max_steps=4).fit(make_task(), FakeData())
    assert "no room" in caplog.text


def test_measuring_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="measured=0"):
        CostReport(measured=0)
