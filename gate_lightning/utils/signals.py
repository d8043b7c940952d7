"""Signals that end a command, taken from its first line to its last.

SIGINT (Ctrl-C), SIGTERM (`kill`, `timeout`, schedulers), SIGHUP (the terminal is gone) and SIGUSR1 (what schedulers
send ahead of a time limit) all mean: save what there is, say how to go on, leave with 128 + the signal's number.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

__all__ = [
    "STOPPING",
    "Stop",
    "leave_to_parent",
    "note",
    "raise_stop",
    "received",
    "run_command",
    "say",
    "starting_workers",
    "stop_in",
    "stopped_text",
    "stopping",
    "stopping_text",
]

#: signals that stop a command, on this platform
STOPPING = tuple(
    signal.Signals[n] for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if n in signal.Signals.__members__
)
#: seconds within which further signals are the same stop: `timeout`, shells and launchers send it to the process and
#: to its group
SAME = 1.0


class Stop(KeyboardInterrupt):
    """A signal asked this process to stop. A KeyboardInterrupt: libraries tidy up behind it and let it pass.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class _Taken:
    """Signals while `stopping` is active: of which process, and the first one with its time."""

    process: int | None = None
    first: tuple[signal.Signals, float] | None = None


def received() -> signal.Signals | None:
    """The signal that has asked this command to stop; None if there was none, or outside `stopping`."""
    return _Taken.first[0] if _Taken.first is not None else None


def note(number: int) -> bool:
    """Remember a signal; whether it asks for something new: it is the first, or comes clearly later than that.

    Outside `stopping` every signal is new.
    """
    if _Taken.process is None:
        return True
    if _Taken.first is None:
        _Taken.first = (signal.Signals(number), time.monotonic())
        return True
    return time.monotonic() - _Taken.first[1] > SAME


def raise_stop(number: int, frame: FrameType | None) -> None:
    """Raise `Stop`: the handler that `stopping` sets."""
    if os.getpid() != _Taken.process:  # forked from it
        if not multiprocessing.current_process().daemon:
            raise Stop(number)
    elif note(number):  # a worker leaves it to its parent
        raise Stop(_Taken.first[0] if _Taken.first is not None else number)


def _again_later(unraisable: Any) -> None:
    """A `Stop` raised where Python drops exceptions (a destructor, a callback of a weak reference): send it again.

    Installed as ``sys.unraisablehook``.
    """
    if not isinstance(unraisable.exc_value, Stop) or _Taken.process != os.getpid():
        sys.__unraisablehook__(unraisable)
        return
    _Taken.first = None
    threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.signal)).start()


@contextmanager
def stopping() -> Iterator[None]:
    """Context in which the signals raise `Stop`; inside another one, and in other threads, nothing changes.

    SIGHUP and SIGUSR1 are left alone where something else handles or ignores them (`nohup`).
    """
    if _Taken.process == os.getpid() or threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [n for n in STOPPING if n in STOPPING[:2] or signal.getsignal(n) == signal.SIG_DFL]
    _Taken.process, _Taken.first = os.getpid(), None
    before = {number: signal.signal(number, raise_stop) for number in wanted}
    hook, sys.unraisablehook = sys.unraisablehook, _again_later
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _Taken.process = _Taken.first = None


def stop_in(error: BaseException | None) -> signal.Signals | None:
    """The signal behind an exception: it, its cause or context is a KeyboardInterrupt; None if none is.

    Lightning turns a KeyboardInterrupt into a SystemExit.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return getattr(error, "signal", signal.SIGINT)
        error = error.__cause__ or error.__context__
    return None


def stopping_text(number: int) -> str:
    """Message of a training that finishes its step before it stops."""
    return f"{signal.Signals(number).name}: stopping after this step, then saving. Ctrl-C aborts at once."


def stopped_text(number: signal.Signals) -> str:
    """Message of a command that has no state to go on from."""
    return f"stopped by {number.name}. Go on with the same command: what is already written is whole, and kept"


def say(text: str) -> None:
    """Write a line to standard error, if that is still there."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"\n{text}\n")
        sys.stderr.flush()


def run_command(module: str, function: str) -> int:
    """Import and call a command's main function under `stopping`; returns the exit status.

    The import takes seconds, in which a signal is already one of ours.
    """
    try:
        with stopping():
            return int(getattr(importlib.import_module(module), function)())
    except KeyboardInterrupt as error:
        number = stop_in(error) or signal.SIGINT
        say(stopped_text(number))
        return 128 + number
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left is the interpreter's end: no traceback from there


@contextmanager
def starting_workers() -> Iterator[None]:
    """Context in which worker processes are started that will `leave_to_parent`.

    Libraries start threads in a forked process before its own code runs (those of dashboards, for one). A thread takes
    signals that it does not block, and with them the SIGTERM that the worker waits for; so they inherit that it is
    blocked. One that comes meanwhile reaches this process at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """In a worker process: ignore the signals that reach the whole group, so that the parent can finish with it.

    A SIGTERM from the parent itself still ends the worker, if it was started under `starting_workers`. What the worker
    starts inherits that SIGTERM is blocked.
    """
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # not os.getppid(): that of a process that a fork server has made is the server
        parent = multiprocessing.parent_process()
        owner = os.getppid() if parent is None else parent.pid
        threading.Thread(target=_end_on_behalf_of, args=(owner,), daemon=True).start()


def _end_on_behalf_of(parent: int | None) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
