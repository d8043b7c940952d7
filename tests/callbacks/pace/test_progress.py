from __future__ import annotations

import io
import logging
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rich
from lightning import Callback

from gate_lightning.callbacks.pace import clock
from gate_lightning.callbacks.pace.clock import Clock
from gate_lightning.callbacks.pace.display import LiveProgress, progress_bar
from gate_lightning.callbacks.pace.progress import ProgressLines, validation_texts
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.errors import ConfigError
from gate_lightning.utils import console
from gate_lightning.utils.units import duration
from tests.support.segmentation_fakes import FakeData, make_task, make_trainer


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.endswith("progress")]


def test_plain_lines_tell_step_loss_pace_and_validation(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    keeper = RunCheckpoint(monitor="val/mIoU")
    make_trainer(tmp_path, ProgressLines(0), keeper, enable_progress_bar=True, max_steps=5).fit(make_task(), FakeData())
    lines = [line for line in said(caplog) if not line.startswith("validation: ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {n}/5" for n in (2, 3, 4, 4, 5)]
    assert lines[0].startswith("step 2/5: train/loss ")
    assert " s a step, " in lines[0]
    assert lines[0].endswith(" left")
    assert lines[-1].endswith(" s a step")
    validation = lines[3]
    assert validation.startswith("step 4/5: val/mIoU ")
    assert " % (best so far)  val/aAcc " in validation


def test_of_many_metrics_a_line_has_the_monitored_one_and_three_of_its_definition() -> None:
    monitor = "val/PCK_0.10_bbox_per-image_le"
    metrics = {
        f"val/PCK_{alpha}_{of}_per-{by}_{sign}": 0.25
        for alpha in ("0.01", "0.05", "0.10", "0.15")
        for of in ("bbox", "img")
        for by in ("image", "point")
        for sign in ("le", "lt")
    }
    trainer: Any = SimpleNamespace(callback_metrics=metrics, callbacks=[RunCheckpoint(monitor=monitor)])
    alike = [f"val/PCK_{alpha}_bbox_per-image_le 25.0 %" for alpha in ("0.01", "0.05", "0.15")]
    assert validation_texts(trainer) == [f"{monitor} 25.0 % (best so far)", *alike]
    trainer.callbacks = []
    assert len(validation_texts(trainer)) == 4


def test_only_the_first_step_is_said_to_be_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, waited = ProgressLines(0), []
    monkeypatch.setattr(lines, "waits", lambda what, seconds=5.0: waited.append(what))
    make_trainer(tmp_path, lines, enable_progress_bar=True, max_steps=3, limit_val_batches=0).fit(
        make_task(), FakeData()
    )
    assert waited.count("computing the first step") == 1


def test_long_evaluations_tell_their_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    trainer = make_trainer(tmp_path, ProgressLines(0), enable_progress_bar=True)
    trainer.validate(make_task(), FakeData(), verbose=False)
    trainer.test(make_task(), FakeData(), verbose=False)
    of = {name: len(getattr(FakeData(), f"{name}_dataloader")()) for name in ("val", "test")}
    expected = [f"validation: batch {n} of {of['val']}, " for n in range(1, of["val"])]
    expected += [f"test: batch {n} of {of['test']}, " for n in range(1, of["test"])]
    assert [line[: len(start)] for line, start in zip(said(caplog), expected, strict=True)] == expected


def test_a_task_that_stops_by_itself_says_what_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    task = make_task()
    monkeypatch.setattr(type(task), "steps_bounds", (3.0, 5.0), raising=False)
    make_trainer(tmp_path, ProgressLines(0), enable_progress_bar=True, max_steps=8).fit(task, FakeData())
    first = said(caplog)[0]
    assert first.startswith("step 2/5: ")
    assert first.endswith(" left at most")


def test_lines_keep_their_distance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    trainer = make_trainer(tmp_path, ProgressLines(1000), enable_progress_bar=True, val_check_interval=100)
    trainer.fit(make_task(), FakeData())
    assert said(caplog) == []


@pytest.mark.parametrize(
    ("terminal", "term", "kind"),
    [(True, "xterm", LiveProgress), (True, "dumb", ProgressLines), (False, "xterm", ProgressLines)],
)
def test_a_display_is_for_terminals(monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, kind: type) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    assert type(progress_bar()) is kind


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Talking(Callback):
    """Logs in the middle of training, and looks at the display."""

    def __init__(self) -> None:
        self.live: list[bool] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        logging.getLogger("gate_lightning.x").info("a line at step %d", trainer.global_step)
        self.live.append(console.is_live())


@pytest.mark.parametrize("fails", [False, True])
def test_log_lines_stand_above_the_display_and_the_cursor_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    screen, talking = Terminal(), Talking()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(rich, "_console", rich.console.Console(width=80, force_terminal=True))
    monkeypatch.setattr(logging.getLogger(), "handlers", [console.ConsoleHandler()])
    monkeypatch.setattr(logging.getLogger("gate_lightning"), "level", logging.INFO)
    monkeypatch.setattr("gate_lightning.callbacks.pace.display._STEPS_EVERY", 0.0)
    if fails:

        class Failing(Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                if trainer.global_step == 3:
                    raise RuntimeError("no")

        trainer = make_trainer(tmp_path, LiveProgress(), talking, Failing(), enable_progress_bar=True, max_steps=5)
        with pytest.raises(RuntimeError):
            trainer.fit(make_task(), FakeData())
    else:
        trainer = make_trainer(tmp_path, LiveProgress(), talking, enable_progress_bar=True, max_steps=5)
        trainer.fit(make_task(), FakeData())
    written = screen.getvalue()
    assert all(talking.live)
    assert not console.is_live()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # cursor hidden, shown
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    lines = [line.split("\x1b[2K")[-1] for line in written.replace("\r", "").split("\n") if "a line at step" in line]
    assert [line.rpartition(" ")[2].strip() for line in lines] == ["1", "2", "3", "4", "5"][: 3 if fails else 5]
    assert not any("train" in line for line in lines)  # no line is glued to the display
    assert "/5" in written


def test_the_clock_counts_steps_and_validations(monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(monotonic=lambda: now.time, time=0.0)
    monkeypatch.setattr(clock, "time", now)
    watch = Clock()
    watch.start(0)
    now.time = 50.0  # the first batch
    watch.step(1)
    assert math.isnan(watch.pace)
    for step in (2, 3, 4):
        now.time += 2.0
        watch.step(step)
        watch.step(step)  # accumulated batches
    assert watch.pace == pytest.approx(2.0)
    assert watch.left(4, 12) == pytest.approx(16.0)
    watch.pause(4)
    now.time += 30.0
    watch.go_on()
    assert watch.pace == pytest.approx(2.0)
    assert watch.left(4, 12) == pytest.approx(16.0 + 2 * 30.0)  # at steps 8 and 12
    now.time += 2.0
    watch.step(5)
    assert watch.left(5, 12) == pytest.approx(14.0 + 2 * 30.0)
    assert watch.left(5, math.inf) == math.inf
    for step in range(6, 200):  # faster from now on: the pace is that of the last minute
        now.time += 0.5
        watch.step(step)
    assert watch.pace == pytest.approx(0.5)


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
