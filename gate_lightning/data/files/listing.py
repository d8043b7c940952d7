"""The files below a folder, or of a pattern: one listing for every job, which also says what it leaves out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gate_lightning.data.files.images import IMAGE_SUFFIXES
from gate_lightning.data.files.names import same_name
from gate_lightning.errors import DataError

__all__ = ["EVERYTHING", "Listing", "describe_left_out", "list_files"]

log = logging.getLogger(__name__)

#: pattern of all files below a folder
EVERYTHING = ("**",)
#: files beside images that this program writes or reads for another purpose
_OWN = ("captions.txt", "captions.jsonl", "classes.txt", "palette.txt", "uncertainty.csv")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".parquet", ".arrow", ".tfrecord", ".h5")
#: folders behind symbolic links that are followed in one listing
_MOST_LINKS = 10_000

_said: set[str] = set()


@dataclass(frozen=True)
class Listing:
    """Files of a folder.

    Attributes:
        root: folder.
        files: those of the kinds that were asked for, sorted.
        left_out: files of other kinds, and folders that a pattern names without naming what is in them; sorted.
    """

    root: Path
    files: tuple[Path, ...]
    left_out: tuple[Path, ...]

    def say(self) -> None:
        """Log once in this process what is left out."""
        text = describe_left_out(self.root, self.left_out)
        if text and text not in _said:
            _said.add(text)
            log.warning("%s", text)


def list_files(root: Path, pattern: Sequence[str] = EVERYTHING, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Listing:
    """List the files below a folder that a pattern allows.

    Hidden files and folders are passed over. Symbolic links are followed; one to a folder that it lies in is not.

    Args:
        root: folder.
        pattern: parts of the path below it; ``*``, ``?`` and ``[…]`` stand for letters of a name, ``**`` for any number
            of folders and, at the end, for all files in them.
        suffixes: of ``files``, in small letters.

    Raises:
        DataError: a folder cannot be read, a name is not UTF-8, or links lead to each other without end.
    """
    wanted: list[Path] = []
    others: list[Path] = []
    for path in _walk(root, tuple(same_name(part) for part in pattern)):
        (wanted if path.suffix.lower() in suffixes and not path.is_dir() else others).append(path)
    return Listing(root, tuple(sorted(wanted)), tuple(sorted(others)))


def describe_left_out(place: Path, paths: Sequence[Path], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> str:
    """Sentence that counts and names files that are left out, by kind; empty if there are none.

    Args:
        place: where they are.
        paths: the files.
        suffixes: kinds that are read.
    """
    kinds: dict[str, list[str]] = {}
    for path in paths:
        if path.name not in _OWN and not path.name.endswith("manifest.json"):
            suffix = path.suffix.lower() or "without suffix"
            kind = "folders, whose files the pattern does not name" if path.is_dir() else suffix
            kinds.setdefault(kind, []).append(path.name)
    if not kinds:
        return ""
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    shown = [f"{len(names)} {kind} ({names[0]}{', …' if len(names) > 1 else ''})" for kind, names in ordered[:8]]
    more = [f"{len(ordered) - 8} more kinds"] if len(ordered) > 8 else []
    count = sum(map(len, kinds.values()))
    advice = "; unpack archives" if any(kind in _ARCHIVES for kind in kinds) else ""
    return f"{place}: {count} left out: {', '.join([*shown, *more])}. What is read: {', '.join(suffixes)}{advice}"


def _walk(root: Path, pattern: tuple[str, ...]) -> Iterable[Path]:
    """Files and, where the pattern ends with their name, folders; in no order."""
    # parts of the pattern that are still open for a folder's entries, and the folders it lies in, by device and inode
    waiting = [(root, _open_parts([pattern]), frozenset([_identity(root)]))]
    links = 0
    while waiting:
        folder, tails, above = waiting.pop()
        for entry in _entries(folder):
            ends, deeper = _step(tails, same_name(entry.name))
            if entry.name.startswith(".") or not (ends or deeper):
                continue
            path = folder / _utf8(folder, entry.name)
            if not entry.is_dir():
                if ends:
                    yield path
            elif deeper:
                inside = _identity(path)
                if inside in above:
                    continue
                links += entry.is_symlink()
                if links > _MOST_LINKS:
                    raise DataError(f"{root}: more than {_MOST_LINKS} linked folders; do links lead to each other?")
                waiting.append((path, deeper, above | {inside}))
            elif ends:
                yield path


def _open_parts(tails: Iterable[tuple[str, ...]]) -> frozenset[tuple[str, ...]]:
    """The rests of a pattern, and those behind a ``**``, which may stand for no folder."""
    found: set[tuple[str, ...]] = set()
    for tail in tails:
        found.add(tail)
        while len(tail) > 1 and tail[0] == "**":
            tail = tail[1:]
            found.add(tail)
    return frozenset(found)


def _step(tails: Iterable[tuple[str, ...]], name: str) -> tuple[bool, frozenset[tuple[str, ...]]]:
    """True if a pattern ends with this name, and the tails left for the entries of a folder of this name."""
    ends, deeper = False, []
    for tail in tails:
        if tail[0] == "**":
            ends |= len(tail) == 1
            deeper.append(tail)
        elif fnmatchcase(name, tail[0]):
            ends |= len(tail) == 1
            deeper += [tail[1:]] if len(tail) > 1 else []
    return ends, _open_parts(deeper)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror or error}") from error


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be read: {error.strerror or error}") from error
    return status.st_dev, status.st_ino


def _utf8(folder: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", errors="replace")
        raise DataError(f"{folder}: the name {shown!r} is not UTF-8; rename it") from error
    return name
