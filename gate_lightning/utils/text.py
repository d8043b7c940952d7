"""Text, JSON and CSV files of users: one strict reader each."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gate_lightning.errors import DataError, GateError

__all__ = ["lines_of", "parse_json", "read_csv", "read_json", "read_text"]

_NAMES: dict[type, str] = {dict: "an object {…}", list: "a list […]", str: "a text"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, error: type[GateError] = DataError) -> str:
    """Text of a UTF-8 file; a byte-order mark at its beginning is left out.

    Raises:
        error: no such file, not readable, or not UTF-8; names the file and the first line that is not.
    """
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}") from reason
    if content.startswith(_UTF16):
        raise error(f"{path} is encoded as UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        line = content.count(b"\n", 0, reason.start) + 1
        raise error(
            f"{path}, line {line}: byte 0x{content[reason.start]:02x} is not UTF-8 (an editor's Windows encoding such "
            "as cp1252 or GBK?); save the file as UTF-8"
        ) from reason
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise error(f"{path}, line {line}: a zero byte, so this is no text in UTF-8 (UTF-16?); save the file as UTF-8")
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a text. ``str.splitlines`` splits also at signs that may stand inside one (U+2028, form feed)."""
    lines = re.split(r"\r\n?|\n", text)
    return lines if lines[-1] else lines[:-1]


def read_json(path: Path, error: type[GateError] = DataError, kind: type | tuple[type, ...] = dict) -> Any:
    """Content of a JSON file.

    Args:
        kind: type that the whole must have.

    Raises:
        error: as `read_text` and `parse_json` do.
    """
    return parse_json(read_text(path, error), str(path), error, kind)


def parse_json(text: str, where: str, error: type[GateError] = DataError, kind: type | tuple[type, ...] = dict) -> Any:
    """Value of a JSON text. ``NaN`` and ``Infinity``, which are not JSON, are refused.

    Args:
        where: source of the text, for messages.

    Raises:
        error: no JSON, nested too deeply, or of another type than ``kind``.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # half of a surrogate pair can be written, and no text holds it
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as reason:
        raise error(f"{where} is no JSON: {reason.msg} (line {reason.lineno}, column {reason.colno})") from reason
    except RecursionError:
        raise error(f"{where} is no JSON that is read here: it is nested too deeply") from None
    except ValueError as reason:
        raise error(f"{where} is no JSON: {reason}") from reason
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(_NAMES.get(one, one.__name__) for one in kinds)
        raise error(f"{where} holds {_NAMES.get(type(value), repr(value)[:40])}, expected {wanted}")
    return value


def read_csv(
    path: Path, columns: Sequence[str] = (), error: type[GateError] = DataError, delimiter: str = ","
) -> list[dict[str, str]]:
    """Rows of a table with a header line; blank lines are left out.

    Args:
        columns: names that the header must have; others are kept too.

    Raises:
        error: as `read_text` does; a column is missing or named twice; a row has more or fewer cells than the header.
    """
    # strict: a quote that is left open would swallow the rows behind it
    reader = csv.reader(io.StringIO(read_text(path, error), newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, str]] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = _header(cells, columns, path, error)
            elif len(cells) != len(header):
                raise error(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(header)}: {', '.join(header)}"
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as reason:
        raise error(
            f"{path}, line {reader.line_num}: {reason}; a cell that begins with a quote ends with one, and quotes "
            'inside are doubled: "a ""word"" in quotes"'
        ) from reason
    if header is None:
        raise error(f"{path} is empty, expected a table with a header line")
    return rows


def _header(cells: list[str], columns: Sequence[str], path: Path, error: type[GateError]) -> list[str]:
    missing = [name for name in columns if name not in cells]
    if missing:
        raise error(f"{path} has no column {', '.join(missing)}; its header is: {', '.join(cells)}")
    if len(set(cells)) < len(cells):
        raise error(f"{path} names a column twice: {', '.join(cells)}")
    return cells


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
