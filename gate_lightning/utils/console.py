"""Log lines on the console: short, without what nobody can act on, above the live display where there is one.

The log file of a run has everything that its first process says.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

__all__ = [
    "HEADLINE",
    "ConsoleHandler",
    "FirstProcess",
    "brief",
    "is_live",
    "leave_to_root",
    "set_live",
    "taking",
    "without",
]

log = logging.getLogger(__name__)

#: ``extra=`` of a line that is shown in a sweep, too
HEADLINE = {"headline": True}
#: seconds between two lines on the progress of a job of a sweep
SWEEP_PROGRESS = 300.0
#: lines of libraries, by what they begin with, that say what everybody knows or nobody can change by a setting
NOISE = re.compile(
    "|".join(
        [
            r"[GTH]PU available: ",
            r"LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES",
            r"Initializing distributed: ",
            r"-+\ndistributed_backend=",
            r"Using (?:16bit|bfloat16) Automatic Mixed Precision",
            r"`Trainer\.fit` stopped: ",  # the last line of a run says it
            r"Restoring states from the checkpoint path",
            r"Restored all states from the checkpoint",
            r"Loaded model weights from the checkpoint",
            r"Loading `train_dataloader` to estimate",
            r"\s*Detected KeyboardInterrupt",  # the last line of a stopped run says where it stopped
            r".*litlogger",  # an advertisement
            r"\t#\d+ : ",  # of Hydra: a job of a sweep, which has a line of its own
            # warnings: frozen parts are in evaluation mode on purpose; loaders have the workers that were measured to
            # be best; values are summed over processes where that is meant, and batch sizes are given where they count
            r"Found \d+ module\(s\) in eval mode",
            r"The '\w+' does not have many workers",
            r"It is recommended to use `self\.log\(.*, sync_dist=True\)`",
            r"Trying to infer the `batch_size` from an ambiguous collection",
            r"The number of training batches \(\d+\) is smaller than the logging interval",  # steps, not epochs
            r"`?isinstance\(treespec, LeafSpec\)",  # Lightning's own use of torch
        ]
    )
)
#: of a message that `logging.captureWarnings` made: "<file>:<line>: <category>: <text>\n  <line of code>";
#: Lightning leaves out category and code
_WARNING = re.compile(r"(.+?):\d+: (?:\w+Warning: )?(.*?)(?:\n  [^\n]*)?\s*$", re.DOTALL)
#: what tells of each of its processes
_OF_EACH_PROCESS = ("gate_lightning.tools.", "gate_lightning.utils.progress")


class _Shown:
    """State of what the console shows."""

    brief = False
    hidden: tuple[str, ...] = ()
    last = 0.0
    live = False


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes log lines to standard output: time and message; of others than this package their name; the level of
    warnings and errors.

    Where rich draws a live display, the lines go above it. Of several processes the first one writes (`FirstProcess`).

    Args:
        stream: taken and ignored: standard output, whatever it is at that moment.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(sys.stdout)

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is shown."""
        return _is_shown(record) and bool(super().filter(record))

    def format(self, record: logging.LogRecord) -> str:
        """Text of a record."""
        parts = _parts(record)
        text = " ".join(part for part in parts if part)
        if record.exc_info:
            text += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        return text

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; a live display stays below it."""
        _Shown.last = time.monotonic()
        self.stream = sys.stdout
        if not _is_terminal() or "rich" not in sys.modules:
            super().emit(record)
            return
        try:
            _print(self.format(record), record.levelno)
        except OSError:  # the terminal is gone
            self.handleError(record)


class FirstProcess(logging.Filter):
    """Lets pass what the first of several processes says, errors of the others, and tools that tell of each process."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True if the record is kept."""
        return _speaks(record)


def leave_to_root(name: str) -> None:
    """Leave the lines of a library to the root logger's handlers, if it has some: they would be written twice.

    Args:
        name: of the library's logger; those below it have handlers of their own where they were made before the root's.
    """
    if not logging.getLogger().handlers:
        return
    for one in [name, *(below for below in logging.root.manager.loggerDict if below.startswith(f"{name}."))]:
        logger = logging.getLogger(one)
        if logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def set_live(on: bool) -> None:
    """Say that a live display is drawn, or no longer."""
    _Shown.live = on


def is_live() -> bool:
    """True if a live display is drawn: what is written past standard output and error would tear it."""
    return _Shown.live


@contextmanager
def brief(on: bool = True) -> Iterator[None]:
    """Context in which the console shows headlines and warnings only, and now and then a line of progress."""
    before, _Shown.brief = _Shown.brief, on or _Shown.brief
    try:
        yield
    finally:
        _Shown.brief = before


@contextmanager
def without(*loggers: str) -> Iterator[None]:
    """Context in which the console leaves out what these loggers, and those below them, say below a warning."""
    before, _Shown.hidden = _Shown.hidden, (*_Shown.hidden, *loggers)
    try:
        yield
    finally:
        _Shown.hidden = before


@contextmanager
def taking(what: str, seconds: float = 3.0) -> Iterator[None]:
    """Context of something that may take long: says what it is once it has taken ``seconds``.

    Args:
        what: in words, beginning with a verb: ``reading the captions of 20210 images``.
        seconds: of silence before.
    """
    timer = threading.Timer(seconds, log.info, (f"{what} …",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _is_shown(record: logging.LogRecord) -> bool:
    if getattr(record, "file_only", False):
        return False
    if record.levelno < logging.ERROR and NOISE.match(_message(record)):
        return False
    if not _speaks(record):
        return False
    if record.levelno >= logging.WARNING:
        return True
    if any(record.name == name or record.name.startswith(f"{name}.") for name in _Shown.hidden):
        return False
    if _Shown.brief and not getattr(record, "headline", False):
        progress = record.name.startswith("gate_lightning.callbacks.pace.progress")
        return progress and time.monotonic() - _Shown.last > SWEEP_PROGRESS
    return True


def _speaks(record: logging.LogRecord) -> bool:
    return _rank() == 0 or record.levelno >= logging.ERROR or record.name.startswith(_OF_EACH_PROCESS)


def _message(record: logging.LogRecord) -> str:
    """The message; of a Python warning without file, line and code."""
    text = record.getMessage()
    found = _WARNING.match(text) if record.name == "py.warnings" else None
    return found.group(2) if found else text


def _parts(record: logging.LogRecord) -> tuple[str, str, str, str]:
    """Time, level, who says it, and what; empty where it goes without saying."""
    top = record.name.partition(".")[0]
    found = _WARNING.match(record.getMessage()) if record.name == "py.warnings" else None
    if found:
        top = found.group(1).rpartition("site-packages/")[2].partition("/")[0] or "gate_lightning"
    name = "" if top in ("gate_lightning", "py", "root") else f"{top}:"
    level = f"{record.levelname}:" if record.levelno >= logging.WARNING else ""
    rank = f"process {_rank() + 1}: " if _rank() and record.levelno >= logging.WARNING else ""
    own = record.processName or ""
    part = "" if "Process" in own else f"{own}: "  # names that nobody has given
    return time.strftime("%H:%M:%S", time.localtime(record.created)), level, name, rank + part + _message(record)


def _print(text: str, level: int) -> None:
    from rich import get_console
    from rich.text import Text

    clock, _, rest = text.partition(" ")
    style = "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else ""
    # no wrapping: a path or a command that is copied stays one line
    get_console().print(Text.assemble((clock, "dim"), " ", (rest, style)), soft_wrap=True, highlight=False)


def _is_terminal() -> bool:
    with suppress(ValueError, OSError):  # closed
        return bool(sys.stdout.isatty())
    return False


def _rank() -> int:
    """Number of this process among those of a run, from 0."""
    lightnings: Any = sys.modules.get("lightning_utilities.core.rank_zero")
    if lightnings is not None:
        return int(getattr(lightnings.rank_zero_only, "rank", None) or 0)
    return int(next((os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ), 0))
