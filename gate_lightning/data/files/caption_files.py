"""Captions by image from one file, in the forms that captioning programs write."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gate_lightning.data.files.path_table import PathTable
from gate_lightning.errors import DataError

__all__ = ["CaptionFile"]

FORMS = """.jsonl ({"image": "a.jpg", "caption": "…"} a line), .json ({"a.jpg": "…"} or a list of such objects), \
.csv or .tsv (columns image and caption), .txt (`a.jpg<TAB>…` a line), or a folder of a.txt files"""
_IMAGE_KEYS = ("image", "file_name", "path", "file")
_CAPTION_KEYS = ("caption", "text", "prompt")
_ADVICE = "caption it (eval.py tool=caption writes such a file), or give the prompt technique a fallback (one prompt)"


class CaptionFile:
    """A file (or folder) of captions; see `PathTable` for how images find theirs.

    Args:
        path: the file; its forms are those of ``FORMS``.

    Raises:
        DataError: it is missing, of an unknown form, broken (names the line), or has two captions for one image.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.exists():
            raise DataError(f"the caption file {self.path} (= {self.path.resolve()}) does not exist; expected {FORMS}")
        pairs = _read(self.path)
        entries: dict[str, str] = {}
        for where, image, caption in pairs:
            key = PurePosixPath(image.replace("\\", "/")).as_posix()
            if entries.setdefault(key, caption) != caption:
                raise DataError(f"{where}: a second caption for {image!r}, and another one; keep one of them")
        self.table: PathTable[str] = PathTable(entries, str(self.path), "caption", _ADVICE)
        content = json.dumps(sorted(entries.items())).encode()
        #: of the captions, whatever form they are in
        self.digest = hashlib.sha256(content).hexdigest()[:16]


def _read(path: Path) -> list[tuple[str, str, str]]:
    """(place, image, caption) in the order of the file."""
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        return [(str(f), f.relative_to(path).with_suffix("").as_posix(), _text(f).strip()) for f in files]
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".txt": _txt}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is no caption file of a known form; expected {FORMS}")
    return list(reader(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error}); save it as UTF-8") from error


def _jsonl(path: Path) -> Iterable[tuple[str, str, str]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _pair(_loaded(line, where), where)


def _json(path: Path) -> Iterable[tuple[str, str, str]]:
    value = _loaded(_text(path), str(path))
    if isinstance(value, Mapping):
        for image, caption in value.items():
            if not isinstance(caption, str):
                raise DataError(f"{path}: the caption of {image!r} is a {type(caption).__name__}; expected a text")
            yield str(path), image, caption.strip()
        return
    if not isinstance(value, list):
        raise DataError(f"{path} holds a {type(value).__name__}; expected {FORMS}")
    for number, item in enumerate(value):
        where = f"{path}, entry {number}"
        yield _pair(item, where)


def _csv(path: Path) -> Iterable[tuple[str, str, str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(_text(path).splitlines(keepends=True), delimiter=delimiter)
    for row in reader:
        yield _pair(row, f"{path}, line {reader.line_num}")


def _txt(path: Path) -> Iterable[tuple[str, str, str]]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        image, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            raise DataError(
                f"{path}, line {number}: {line.strip()[:60]!r}; expected `image<TAB>caption`. One prompt for all "
                f"images is the prompt technique's text"
            )
        if tab:
            yield f"{path}, line {number}", image.strip(), caption.strip()


def _loaded(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is no JSON ({error}); expected {FORMS}") from error


def _pair(item: Any, where: str) -> tuple[str, str, str]:
    keys = sorted(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
    image = _first(item, _IMAGE_KEYS)
    caption = _first(item, _CAPTION_KEYS)
    if not isinstance(image, str) or not isinstance(caption, str) or not image:
        raise DataError(f"{where}: found {keys}; expected an object with the texts image and caption")
    return where, image, caption.strip()


def _first(item: Any, names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if name in item), None) if isinstance(item, Mapping) else None
