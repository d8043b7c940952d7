from __future__ import annotations

import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gate_lightning.utils import console
from gate_lightning.utils.console import HEADLINE, ConsoleHandler, FirstProcess, brief, leave_to_root, taking, without


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """A root logger with our handler alone, as the commands have it."""
    monkeypatch.setattr(console, "_rank", lambda: 0)
    for name in ("lightning", "lightning.pytorch"):  # imported before the root logger has handlers, it keeps its lines
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    logger = logging.getLogger()
    before, level = logger.handlers, logger.level
    logger.handlers = [ConsoleHandler(sys.stderr)]
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers, logger.level = before, level


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is on standard output, without the time of day."""
    return [line[9:] for line in capsys.readouterr().out.splitlines()]


def test_a_line_is_time_and_message_and_who_says_it_only_of_others(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("gate_lightning.engine.jobs.training").info("run folder: a")
    logging.getLogger("gate_lightning.data.files").warning("3 files are broken")
    logging.getLogger("lightning.pytorch.callbacks").info("Monitored metric did not improve")
    assert lines(capsys) == [
        "run folder: a",
        "WARNING: 3 files are broken",
        "lightning: Monitored metric did not improve",
    ]


def test_noise_is_left_out_by_its_text_and_warnings_are_not(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    for text in (
        "GPU available: False, used: False",
        "TPU available: False, using: 0 TPU cores",
        "Restoring states from the checkpoint path at a/best.ckpt",
        "`Trainer.fit` stopped: `max_steps=500` reached.",
    ):
        lightning.info(text)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("The 'train_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1)
            warnings.warn("GPU available but not used", stacklevel=1)
    finally:
        logging.captureWarnings(False)
    (line,) = lines(capsys)
    assert line.startswith("WARNING: ")
    assert line.endswith("GPU available but not used")


def test_a_warning_names_its_package_and_not_its_line_of_code(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "/x/site-packages/torch/nn/a.py:12: FutureWarning: old\nway\n  code()\n"
    logging.getLogger("py.warnings").warning("%s", text)
    logging.getLogger("py.warnings").warning("%s", "/x/site-packages/lightning/b.py:3: do that\n")
    assert capsys.readouterr().out.splitlines()[0].endswith(" WARNING: torch: old")
    logging.getLogger("py.warnings").warning("%s", "/x/site-packages/lightning/b.py:3: do that\n")
    assert lines(capsys) == ["WARNING: lightning: do that"]


def test_a_brief_console_shows_headlines_warnings_and_rare_progress(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, progress = logging.getLogger("gate_lightning.x"), logging.getLogger("gate_lightning.callbacks.pace.progress")
    with brief():
        log.info("detail")
        log.info("done", extra=HEADLINE)
        log.warning("careful")
        progress.info("step 1")
        monkeypatch.setattr(console, "SWEEP_PROGRESS", 0.0)
        progress.info("step 2")
    log.info("detail again")
    assert lines(capsys) == ["done", "WARNING: careful", "step 2", "detail again"]


def test_loggers_are_left_out_with_all_below_them(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with without("gate_lightning.reports"):
        logging.getLogger("gate_lightning.reports.table").info("hidden")
        logging.getLogger("gate_lightning.reports.table").warning("shown")
        logging.getLogger("gate_lightning.reports_of_others").info("shown, too")
    assert lines(capsys) == ["WARNING: shown", "shown, too"]


def test_the_first_process_speaks_for_all_and_the_others_of_errors(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = logging.FileHandler(tmp_path / "run.log", delay=True)
    kept.addFilter(FirstProcess())
    root.addHandler(kept)
    monkeypatch.setattr(console, "_rank", lambda: 1)
    log = logging.getLogger("gate_lightning.x")
    log.info("said by the first one")
    log.warning("said by the first one")
    assert not (tmp_path / "run.log").exists()
    log.error("only here")
    logging.getLogger("gate_lightning.tools.extraction").info("images of this process")
    assert lines(capsys) == ["ERROR: process 2: only here", "images of this process"]
    assert (tmp_path / "run.log").read_text() == "only here\nimages of this process\n"


def test_lines_of_processes_with_names_begin_with_them(
    root: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("split2", "SpawnProcess-1"):
        monkeypatch.setattr(multiprocessing.current_process(), "name", name)
        logging.getLogger("gate_lightning.x").info("done")
    assert lines(capsys) == ["split2: done", "done"]


def test_what_takes_long_is_said_once(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with taking("reading nothing", seconds=30):
        pass
    with taking("reading much", seconds=0.01):
        time.sleep(0.2)
    assert lines(capsys) == ["reading much …"]


def test_a_librarys_own_handler_goes_where_the_root_has_one(root: logging.Logger) -> None:
    logger = logging.getLogger("some_library")
    logger.addHandler(logging.NullHandler())
    below = logging.getLogger("some_library.part")
    below.addHandler(logging.NullHandler())
    below.propagate = False
    leave_to_root("some_library")
    assert (logger.handlers, below.handlers, below.propagate) == ([], [], True)
    logger.addHandler(logging.NullHandler())
    root.handlers = []
    leave_to_root("some_library")
    assert len(logger.handlers) == 1
