"""Atomic writes, and manifests that record the settings of a folder's content."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from gate_lightning.errors import CacheError

__all__ = [
    "append",
    "claim",
    "clean_leftovers",
    "differences",
    "digest_of",
    "plain_json",
    "publish",
    "write_atomically",
    "write_csv",
    "write_image",
    "writing",
]

#: seconds after which a temporary file of another machine counts as left over: a write takes seconds
_STALE = 24 * 3600
_SUFFIX = ".part"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its own, then rename it.

    Whoever reads ``path``, in whatever process, finds all of the content or no file (or the former one).

    Raises:
        CacheError: the file cannot be written (disk full, no permission); nothing of it is left.
    """
    temporary = path.with_name(f".{_owner()}.{hashlib.sha256(path.name.encode()).hexdigest()[:16]}{_SUFFIX}")
    try:
        with writing(path, len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # a disk that is full may say so only here
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # there only if something failed or was interrupted
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Context in which ``path`` is written, of ``size`` bytes if that is known.

    Raises:
        CacheError: instead of an OSError, with what to do.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(_reason(path, size, error)) from error


def publish(temporary: Path, path: Path) -> None:
    """Give a file that is complete its name, once its content is on the disk; the name is, when this returns.

    Raises:
        OSError: the disk is full, or gone.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header line, as `write_atomically` does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode())


def write_image(path: Path, image: Image.Image) -> None:
    """Write an image as PNG, as `write_atomically` does."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_atomically(path, content.getvalue())


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file that only its writer reads.

    Raises:
        CacheError: the file cannot be written; a part of ``content`` may be there.
    """
    with writing(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def clean_leftovers(folder: Path) -> int:
    """Delete temporary files of writers that were killed; return their number.

    Files of processes that run on this machine are left alone, those of other machines for a day.
    """
    count = 0
    for path in folder.rglob(f".*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may clean at the same time
            if _left_over(path):
                path.unlink()
                count += 1
    return count


def claim(path: Path, description: Mapping[str, Any], what: str, used: Callable[[], bool]) -> str:
    """Write the manifest of a folder, or check the one that is there; the description's digest.

    Args:
        path: of the manifest.
        description: all that the folder's content depends on, JSON-able.
        what: the content, for the error: "features", say.
        used: whether there is any. The manifest of a first attempt that wrote nothing is replaced.

    Raises:
        CacheError: the content was written by another description, or the manifest is damaged.
    """
    wanted = plain_json(description)
    content = {"digest": digest_of(wanted), "description": wanted}
    found, problem = _manifest(path)
    if found == content:
        return str(content["digest"])
    if path.exists() and used():
        if found is None:
            raise CacheError(
                f"{path} is damaged ({problem}), so nobody can tell by which settings the {what} beside it were "
                "written; delete the folder, or write into another one"
            )
        changes = differences(found["description"], wanted) or ["its digest is not that of its description"]
        listed = "\n  ".join(changes[:20]) + (f"\n  and {len(changes) - 20} more" if len(changes) > 20 else "")
        raise CacheError(
            f"{path.parent} holds {what} written by other settings (there → now):\n  {listed}\n"
            "Use the settings they were written with, write into another folder, or delete this one."
        )
    write_atomically(path, json.dumps(content, indent=2).encode() + b"\n")
    return str(content["digest"])


def _manifest(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The content of a manifest, or None and why not."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"digest": found["digest"], "description": found["description"]}, ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return None, type(error).__name__


def digest_of(description: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def plain_json(description: Mapping[str, Any]) -> Any:
    """Through JSON and back: tuples become lists, so that a loaded description compares equal."""
    return json.loads(json.dumps(description))


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Differences of two nested JSON-like values, as ``key.sub[2]: before → after``."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(before.keys() | after.keys())
        found = (
            differences(before.get(key, "(absent)"), after.get(key, "(absent)"), f"{prefix}.{key}".lstrip("."))
            for key in keys
        )
        return [line for lines in found for line in lines]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (old, new) in pairs for line in differences(old, new, f"{prefix}[{i}]")]
    return [] if before == after else [f"{prefix or 'description'}: {before!r} → {after!r}"]


def _owner() -> str:
    return f"{socket.gethostname()}.{os.getpid()}"


def _left_over(path: Path) -> bool:
    parts = path.name[1:].rsplit(".", 3)
    if len(parts) < 4 or not parts[1].isdigit():
        return False  # not ours
    host, pid = parts[:2]
    if host == socket.gethostname():
        return not psutil.pid_exists(int(pid))
    return time.time() - path.stat().st_mtime > _STALE


def _reason(path: Path, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        wanted = f" ({size / 1e6:.1f} MB were to be written)" if size else ""
        advice = f"the disk is full{wanted}: free space or choose another folder"
    else:
        advice = f"{error.strerror or error}: choose a folder that can be written"
    again = "What was written before is whole: go on with the same command (a training: resume=)"
    return f"{path} cannot be written; {advice}. {again}"
