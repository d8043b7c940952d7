from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from gate_lightning.callbacks import cost, measuring
from gate_lightning.callbacks.loggers import RunLog
from gate_lightning.callbacks.pace.cost import CostReport
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.structures import Conditions, Features
from tests.support.segmentation_fakes import FakeData, FakeExtractor, make_task, make_trainer


class Clock(Callback):
    """Time as the modules under test see it: 0.1 s a batch, 0.5 s the first one, 0.3 s a prediction or validation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (cost, measuring):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for name in ("predict_step", "validation_step"):
            setattr(pl_module, name, self._slow(getattr(pl_module, name)))

    def _slow(self, step: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        def slow(batch: Any, batch_idx: int) -> Any:
            self.now += 0.3
            return step(batch, batch_idx)

        return slow

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


def test_a_task_that_stops_by_itself_says_when(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    callback, task = CostReport(), make_task()
    monkeypatch.setattr(type(task), "steps_bounds", (5.0, 7.0), raising=False)
    make_trainer(tmp_path, clock, callback, max_steps=9, val_check_interval=100).fit(task, FakeData())
    assert callback.report["training_seconds"] == pytest.approx(0.4)
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("cost")]
    assert "2 to 4 steps to go" in line
    assert "about 0.2 s to 0.4 s in all" in line
    monkeypatch.setattr(type(task), "steps_bounds", (100.0, 200.0), raising=False)
    make_trainer(tmp_path, clock, callback, max_steps=9, val_check_interval=100).fit(make_task(), FakeData())
    assert callback.report["training_seconds"] == pytest.approx(0.6)


def test_a_training_whose_last_step_nobody_knows_is_reported(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    caplog.set_level(logging.INFO, "gate_lightning")
    task = make_task(scheduler=None)
    monkeypatch.setattr(type(task), "steps_bounds", (5.0, math.inf), raising=False)
    make_trainer(tmp_path, clock, CostReport(), Enough(), max_steps=-1, max_epochs=-1, val_check_interval=100).fit(
        task, FakeData()
    )
    assert "2 or more steps to go" in caplog.text
    assert "no end set in all" in caplog.text


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


class SlowExtractor(FakeExtractor):
    """Takes 0.4 s a batch."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        self.clock.now += 0.4
        return super().forward(images, conditions)


class Moment(Callback):
    """When the report was made, and how often the extractor had computed by then."""

    def __init__(self, clock: Clock, report: CostReport, extractor: FakeExtractor) -> None:
        self.clock, self.report, self.extractor = clock, report, extractor
        self.now, self.computed = 0.0, 0

    def on_train_batch_end(self, *_: Any) -> None:
        if self.report.report and not self.computed:
            self.now, self.computed = self.clock.now, len(self.extractor.seen)


def foretold(
    folder: Path,
    clock: Clock,
    gigabytes: float,
    plain: bool = True,
    batch_size: int = 2,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> tuple[dict[str, float], float, int]:
    """The report, the seconds that the rest then took, and the training batches computed in it."""
    extractor, report = SlowExtractor(clock), CostReport()
    moment = Moment(clock, report, extractor)
    data = FakeData(batch_size=batch_size)
    data.random_views = not plain
    task = make_task(MemoryCache(extractor, gigabytes))
    defaults = {"max_steps": 20, "val_check_interval": 4}
    trainer = make_trainer(folder, clock, report, moment, **{**defaults, **settings})
    trainer.fit(task, data, ckpt_path=ckpt_path, weights_only=True)
    computed = [conditions for conditions in extractor.seen[moment.computed :] if conditions.training]
    return report.report, clock.now - moment.now, len(computed)


def test_features_that_are_remembered_cost_their_time_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    report, taken, computed = foretold(tmp_path, clock, gigabytes=1.0)
    assert report["seconds_per_step"] == pytest.approx(0.5)
    assert report["seconds_per_known_step"] == pytest.approx(0.1)
    assert report["new_steps"] == computed == 3  # of six in an epoch
    # the features of one validation batch are known by then: measuring computed them
    assert report["training_seconds"] + report["validation_seconds"] == pytest.approx(taken + 0.4)
    assert "cost: 0.5 s a step for 3 steps, then 0.1 s (features known), 17 steps to go" in caplog.text


@pytest.mark.parametrize(
    ("gigabytes", "settings"),
    [(6e-6, {}), (1.0, {"plain": False}), (1.0, {"limit_train_batches": 4, "val_check_interval": 4})],
    ids=["no room", "augmented", "another part of every epoch"],
)
def test_nothing_is_foretold_to_get_cheaper_that_may_not(
    tmp_path: Path, clock: Clock, gigabytes: float, settings: dict[str, Any]
) -> None:
    report, taken, computed = foretold(tmp_path, clock, gigabytes, **settings)
    assert report["seconds_per_known_step"] == report["seconds_per_step"] == pytest.approx(0.5)
    assert report["training_seconds"] == pytest.approx(17 * 0.5)
    assert computed <= 17
    assert taken <= report["training_seconds"] + report["validation_seconds"] + 1e-6


def test_validation_is_recalled_where_only_training_is_augmented(tmp_path: Path, clock: Clock) -> None:
    report, _, computed = foretold(tmp_path, clock, 1.0, plain=False)
    assert computed == 17
    # five validations of two batches; the first one computes
    assert report["validation_seconds"] == pytest.approx(2 * (5 * 0.3 + 0.4))


def test_images_that_wait_for_a_later_epoch_are_counted(tmp_path: Path, clock: Clock) -> None:
    report, _, computed = foretold(tmp_path, clock, 1.0, batch_size=5, val_check_interval=10)
    assert 0 <= computed <= report["new_steps"] == 1  # two batches of five, and two images later: four batches


@pytest.mark.parametrize(("before", "new"), [(3, 6), (6, 3)], ids=["in an epoch", "between epochs"])
def test_a_resumed_run_has_not_seen_the_images_of_the_batches_before(
    tmp_path: Path, clock: Clock, before: int, new: int
) -> None:
    data = FakeData()
    data.random_views = False
    first = make_trainer(tmp_path, RunCheckpoint(1, "val/mIoU"), max_steps=before, val_check_interval=100)
    first.fit(make_task(), data)
    last = tmp_path / "checkpoints" / "last.ckpt"
    report, _, computed = foretold(tmp_path, clock, 1.0, ckpt_path=last, max_steps=30, val_check_interval=100)
    assert computed <= report["new_steps"] == new


def test_features_on_disk_are_known_from_the_second_run_on(tmp_path: Path, clock: Clock) -> None:
    def run() -> dict[str, float]:
        report = CostReport()
        data = FakeData()
        data.random_views = False
        task = make_task(DiskCache(SlowExtractor(clock), tmp_path / "cache"))
        make_trainer(tmp_path, clock, report, max_steps=9, val_check_interval=9).fit(task, data)
        return report.report

    first, second = run(), run()
    assert first["training_seconds"] == pytest.approx(6 * 0.1 + 3 * 0.4)
    assert second["seconds_per_step"] == pytest.approx(0.1)
    assert second["training_seconds"] == pytest.approx(6 * 0.1)


def test_nothing_stays_hooked_into_the_network(tmp_path: Path) -> None:
    for steps in (2, 9):  # too short to be measured, and measured
        extractor = FakeExtractor()
        make_trainer(tmp_path, CostReport(), max_steps=steps, val_check_interval=9).fit(
            make_task(MemoryCache(extractor, 1.0)), FakeData()
        )
        assert not extractor._forward_hooks
        assert not extractor._forward_pre_hooks


def test_full_disk_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    make_trainer(tmp_path, CostReport(), max_steps=4).fit(make_task(), FakeData())
    assert "no room" in caplog.text


def test_measuring_nothing_is_refused() -> None:
    with pytest.raises(ConfigError):
        CostReport(measured=0)
