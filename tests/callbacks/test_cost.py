from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback

from gate_lightning.callbacks import cost
from gate_lightning.callbacks.checkpoint import RunCheckpoint
from gate_lightning.callbacks.cost import CostReport
from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.errors import ConfigError
from tests.segmentation_fakes import FakeData, make_task, make_trainer


class Clock(Callback):
    """Time as the module under test sees it: 0.1 s a batch, 0.5 s the first one, 0.3 s a prediction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        predict = pl_module.predict_step

        def slow_predict(batch: Any, batch_idx: int) -> Any:
            self.now += 0.3
            return predict(batch, batch_idx)

        pl_module.predict_step = slow_predict

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.now += 0.1 if self.now else 0.5


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_report_foretells_time_memory_and_disk(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    callback, task = CostReport(), make_task()
    settings = {"max_steps": 9, "val_check_interval": 4, "logger": RunLog(str(tmp_path))}
    make_trainer(tmp_path, clock, callback, RunCheckpoint(100), **settings).fit(task, FakeData())
    report = callback.report
    assert report["seconds_per_step"] == pytest.approx(0.1)
    # after three of nine steps: six steps, and two validations (after 4 and 8) of two batches
    assert report["training_seconds"] == pytest.approx(0.6)
    assert report["validation_seconds"] == pytest.approx(2 * 2 * 0.3)
    assert 0.05 < report["memory_gib"] <= report["memory_peak_gib"] + 0.01
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("cost")]
    assert "0.1 s a step, 6 steps to go, 2 validations of 2 batches (1.2 s): about 1.8 s in all" in line
    assert "cost/seconds_per_step" in (tmp_path / "metrics.csv").read_text()
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


def test_epochs_are_counted_in_steps_and_validations(tmp_path: Path, clock: Clock) -> None:
    """Four epochs of six batches, two validations each."""
    callback = CostReport()
    settings = {"max_steps": -1, "max_epochs": 4, "val_check_interval": 0.5, "check_val_every_n_epoch": 1}
    make_trainer(tmp_path, clock, callback, **settings).fit(make_task(), FakeData())
    # after three batches, where the first validation is still to come
    assert callback.report["training_seconds"] == pytest.approx((24 - 3) * 0.1)
    assert callback.report["validation_seconds"] == pytest.approx(8 * 2 * 0.3)


def test_a_validation_in_the_middle_is_not_taken_for_steps(tmp_path: Path, clock: Clock) -> None:
    callback = CostReport(warmup=1, measured=3)
    make_trainer(tmp_path, clock, callback, max_steps=12, val_check_interval=3).fit(make_task(), FakeData())
    assert callback.report == {}
    callback = CostReport(warmup=1, measured=3)
    make_trainer(tmp_path, clock, callback, max_steps=12, val_check_interval=5).fit(make_task(), FakeData())
    assert callback.report["seconds_per_step"] == pytest.approx(0.1)


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    plain = make_task()
    make_trainer(tmp_path, max_steps=6).fit(plain, FakeData())
    measured = make_task()
    make_trainer(tmp_path, CostReport(), max_steps=6).fit(measured, FakeData())
    assert all(torch.equal(value, measured.state_dict()[name]) for name, value in plain.state_dict().items())
    assert measured.head.training
    assert not measured.metrics["val"].confusion.any()


def test_full_disk_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    make_trainer(tmp_path, CostReport(), max_steps=4).fit(make_task(), FakeData())
    assert "no room" in caplog.text


def test_measuring_nothing_is_refused() -> None:
    with pytest.raises(ConfigError):
        CostReport(measured=0)
