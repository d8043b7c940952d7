"""Names of files in other files and in folders: equal up to Unicode normalisation, and never outside their folder."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath

from gate_lightning.errors import DataError

__all__ = ["inner_path", "path_inside", "same_name"]


def same_name(text: str) -> str:
    """One form of a name: macOS stores accents as letters of their own (NFD), other systems do not (NFC)."""
    return unicodedata.normalize("NFC", text)


def inner_path(text: str, where: str) -> str:
    """A path below a folder as it is written in a file: with forward slashes, in the form of `same_name`.

    Args:
        text: what the file says.
        where: file and line, for messages.

    Raises:
        DataError: absolute, empty, or with a ``..``.
    """
    plain = text.replace("\\", "/")
    path = PurePosixPath(plain)
    absolute = path.is_absolute() or re.match("[A-Za-z]:/", plain)
    if absolute or ".." in path.parts or not path.parts or "\0" in text:
        raise DataError(f"{where}: the path {text!r} leaves its folder; write paths relative to it, without ..")
    return same_name(path.as_posix())


def path_inside(folder: Path, text: str, where: str) -> Path:
    """File of a path that another file names.

    Raises:
        DataError: it lies outside ``folder``, by its name or by a symbolic link.
    """
    path = folder / inner_path(text, where)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {text!r} is a link out of {folder}, to {path.resolve()}; put the file itself there")
    return path
