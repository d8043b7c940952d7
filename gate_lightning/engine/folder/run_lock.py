"""A run folder belongs to one process at a time, and default folders to one run.

<run>/lock.json    host, process id and its start time, while train.py writes there; gone afterwards
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.utils.commands import override

__all__ = ["Holder", "holder_of", "new_folder", "occupied", "require_new"]

_NAME = "lock.json"
#: seconds by which the start time of one process may differ, read twice: clocks are set
_TOLERANCE = 2.0
#: environment variables that number the processes of one job, as Lightning reads them
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


@dataclass(frozen=True)
class Holder:
    """The process that writes into a run folder.

    Attributes:
        host: its machine.
        pid: its number there.
        started: its start, in seconds since 1970: numbers are given again.
        since: when it took the folder, for people.
    """

    host: str
    pid: int
    started: float
    since: str

    @property
    def elsewhere(self) -> bool:
        """True if it is of another machine, where nobody can look from here."""
        return self.host != socket.gethostname()

    @property
    def alive(self) -> bool:
        """True if it runs still; of another machine, that is assumed."""
        if self.elsewhere:
            return True
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < _TOLERANCE
        except psutil.Error:
            return False


def holder_of(folder: Path) -> Holder | None:
    """The process that writes into a run folder now, or None."""
    try:
        holder = _parsed((folder / _NAME).read_bytes())
    except OSError:
        return None
    return holder if holder is not None and holder.alive else None


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a run folder. The first process of a job holds it for all of them.

    A lock of a process of this machine that runs no longer is taken over.

    Raises:
        ResumeError: another process holds it; says which, since when, and what to do.
        ConfigError: nothing can be written there.
    """
    if any(os.environ.get(name, "0") != "0" for name in _first_set(_RANKS)):
        yield
        return
    path, pid = folder / _NAME, os.getpid()
    mine = Holder(socket.gethostname(), pid, psutil.Process(pid).create_time(), time.strftime("%Y-%m-%d %H:%M:%S"))
    with _locked(path) as file:
        found = _parsed(os.read(file, 1 << 16))
        if found is not None and found.alive:
            raise ResumeError(_refusal(folder, found))
        _write(file, mine)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ConfigError), _locked(path) as file:
            if _parsed(os.read(file, 1 << 16)) == mine:  # a forked process is not the one that took it
                path.unlink()


def require_new(folder: Path) -> None:
    """Refuse to begin a run where one is, however it ended.

    Raises:
        ResumeError: names the two ways on.
    """
    there = [name for name in ("config.yaml", "checkpoints") if (folder / name).exists()]
    if there:
        raise ResumeError(
            f"{folder} holds a run already ({', '.join(there)}), and a new one would overwrite it. Go on with it: "
            f"python train.py {override('resume', folder)}; or begin in another folder: hydra.run.dir=<folder> (of a "
            "sweep, hydra.sweep.dir=<folder>), or none, for a new one by date and time"
        )


def new_folder(wanted: str) -> str:
    """Make a folder that nobody else has: ``wanted``, or ``wanted-2``, ``wanted-3`` … where that is taken.

    Making a folder is atomic, between processes and between machines, so two runs of one second get two folders.

    Raises:
        ConfigError: it cannot be made.
    """
    for number in itertools.count(1):
        path = Path(wanted if number == 1 else f"{wanted}-{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError as error:
            if not path.exists():  # something of its parents is a file
                raise ConfigError(f"{path} cannot be made: {error.strerror} (paths.outputs=<folder>)") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be made: {error.strerror} (paths.outputs=<folder>)") from error
        else:
            return str(path)
    raise AssertionError  # the numbers do not end


def _first_set(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in os.environ][:1]


def _refusal(folder: Path, holder: Holder) -> str:
    what = f"process {holder.pid} on {holder.host} has been writing into {folder} since {holder.since}"
    other = "Wait for it or stop it, or use another folder (hydra.run.dir=<folder>)"
    if holder.elsewhere:
        return (
            f"{what}; whether it still runs cannot be told from here. {other}. If it does not: delete {folder / _NAME}"
        )
    return f"{what}. {other}"


def _parsed(content: bytes) -> Holder | None:
    """The holder of a lock file; None for an empty one, or one that was cut while being written."""
    try:
        found = json.loads(content)
        return Holder(str(found["host"]), int(found["pid"]), float(found["started"]), str(found["since"]))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _write(file: int, holder: Holder) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(asdict(holder)).encode() + b"\n", 0)
    os.fsync(file)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The lock file, open, while no other process looks at it or changes it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with contextlib.suppress(OSError):  # a file system without such locks: two takers in one instant only
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:
                break
            os.close(file)  # released and deleted in between
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose a folder that can") from error
    try:
        yield file
    finally:
        os.close(file)
