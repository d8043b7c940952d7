"""Captions of images from files, and the control that gives every image the caption of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.data.files.listing import list_files
from gate_lightning.data.files.names import inner_path, same_name
from gate_lightning.data.files.path_table import PathTable
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.seeding import data_generator
from gate_lightning.utils.text import lines_of, parse_json, read_csv, read_json, read_text

__all__ = ["CaptionFile", "derangement", "read_captions"]

FORMS = """.jsonl ({"image": "a.jpg", "caption": "…"} a line), .json ({"a.jpg": "…"} or a list of such objects), \
.csv or .tsv (columns image and caption), .txt (`a.jpg<TAB>…` a line), or a folder of a.txt files"""
_IMAGE_KEYS = ("image", "file_name", "path", "file")
_CAPTION_KEYS = ("caption", "text", "prompt")
_ADVICE = "caption it (eval.py tool=caption writes such a file), or give the prompt technique a fallback (one prompt)"


class CaptionFile:
    """Captions of the prompt technique, from a file or folder; `PathTable` says how images find theirs.

    Args:
        path: the file; its forms are those of ``FORMS``.

    Raises:
        DataError: it is missing, of an unknown form, broken (names the line), or has two captions for one image.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise DataError(f"the caption file {self.path} (= {self.path.resolve()}) does not exist; expected {FORMS}")
        entries: dict[str, str] = {}
        for where, image, caption in _entries(self.path):
            if entries.setdefault(inner_path(image, where), caption) != caption:
                raise DataError(f"{where}: a second caption for {image!r}, and another one; keep one of them")
        self.table: PathTable[str] = PathTable(entries, str(self.path), "caption", _ADVICE)
        #: hash of the captions; the same for every form of file
        self.digest = hashlib.sha256(json.dumps(sorted(entries.items())).encode()).hexdigest()[:16]


def read_captions(root: Path, split: str, names: Sequence[str], kind: str = "captions") -> list[str] | None:
    """Captions of a split, from ``captions/<split>/<name>.txt`` or from ``captions.txt``.

    ``captions.txt`` has one image a line: its path below ``images/`` with or without suffix, a tab, the caption.
    The text is taken as it is, without surrounding blanks.

    Args:
        root: data set folder.
        split: ``train``, ``val``, ``test``; empty where ``root`` has no splits.
        names: images of the split relative to ``images/<split>``, without suffix.
        kind: name of the folder or file, for data sets with several captions.

    Returns:
        One caption per name, or None if there are no captions for this split.

    Raises:
        DataError: captions for some images only, two for one, or a line without tab. The first one is named.
    """
    folder, table = root / kind / split, root / f"{kind}.txt"
    if folder.is_dir() and table.is_file():
        raise DataError(f"there are captions in {folder} and in {table}; keep one of them")
    found: dict[str, str] = {}
    if folder.is_dir():
        found = {same_name(image): caption for _, image, caption in _entries(folder)}
    elif table.is_file():
        found = _of_split(table, f"{split}/" if split else "")
    if not found:
        return None
    source = folder if folder.is_dir() else table
    missing = [name for name in names if same_name(name) not in found]
    if missing:
        where = f" of {split}" if split else ""
        raise DataError(
            f"{source} has no caption for {missing[0]!r}{where} ({len(missing)} of {len(names)} are missing); "
            "every image needs one, an empty one counts"
        )
    return [found[same_name(name)] for name in names]


def _of_split(table: Path, prefix: str) -> dict[str, str]:
    """Captions of a table's images below ``prefix``, by their paths with and without suffix."""
    found: dict[str, str] = {}
    for where, image, caption in _entries(table):
        path = inner_path(image, where)
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and found.setdefault(name, caption) != caption:
            raise DataError(f"{where}: a second caption for {image!r}, and another one; keep one of them")
    return {Path(name).with_suffix("").as_posix(): caption for name, caption in found.items()} | found


def derangement(length: int, *key: object) -> np.ndarray:
    """A permutation that moves every element, int64 (length,), decided by ``key``.

    It is one cycle through all elements (Sattolo's algorithm).

    Raises:
        ConfigError: fewer than two elements, which cannot change places.
    """
    if length < 2:
        raise ConfigError(f"captions=shuffled needs at least 2 images in the split, there is {length}")
    rng = data_generator("derangement", *key)
    order = np.arange(length)
    for last in range(length - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """(place, image, caption) in the order of the file."""
    form = path.suffix.lower()
    if path.is_dir():
        for file in list_files(path, suffixes=(".txt",)).files:
            yield str(file), file.relative_to(path).with_suffix("").as_posix(), read_text(file).strip()
    elif form in (".jsonl", ".ndjson"):
        for where, line in _lines(path):
            yield _pair(parse_json(line, where), where)
    elif form == ".json":
        yield from _json(path)
    elif form in (".csv", ".tsv"):
        for number, row in enumerate(read_csv(path, delimiter="," if form == ".csv" else "\t"), start=1):
            yield _pair(row, f"{path}, row {number}")
    elif form == ".txt":
        for where, line in _lines(path):
            yield _tabbed(line, where)
    else:
        raise DataError(f"{path} is no caption file of a known form; expected {FORMS}")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of the lines that are not blank."""
    lines = enumerate(lines_of(read_text(path)), start=1)
    return ((f"{path}, line {number}", line) for number, line in lines if line.strip())


def _tabbed(line: str, where: str) -> tuple[str, str, str]:
    image, tab, caption = line.partition("\t")
    if not tab:
        raise DataError(
            f"{where}: {line.strip()[:60]!r}; expected `image<TAB>caption`. One prompt for all images is the prompt "
            f"technique's text"
        )
    return where, image.strip(), caption.strip()


def _json(path: Path) -> Iterator[tuple[str, str, str]]:
    value = read_json(path, kind=(dict, list))
    if isinstance(value, Mapping):
        for image, caption in value.items():
            if not isinstance(caption, str):
                raise DataError(f"{path}: the caption of {image!r} is a {type(caption).__name__}; expected a text")
            yield str(path), image, caption.strip()
    else:
        for number, item in enumerate(value):
            yield _pair(item, f"{path}, entry {number}")


def _pair(item: Any, where: str) -> tuple[str, str, str]:
    keys = sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
    image, caption = (_first(item, names) for names in (_IMAGE_KEYS, _CAPTION_KEYS))
    if not isinstance(image, str) or not isinstance(caption, str) or not image:
        raise DataError(f"{where}: found {keys}; expected an object with the texts image and caption")
    return where, image, caption.strip()


def _first(item: Any, names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None) if isinstance(item, Mapping) else None
