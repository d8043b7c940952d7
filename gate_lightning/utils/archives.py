"""Integrity of the zip archives that ``torch.save`` writes."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from gate_lightning.errors import GateError, first_line

__all__ = ["check_archive"]

_BLOCK = 2**20


def check_archive(path: Path, error: type[GateError]) -> None:
    """Compare every entry of an archive with its checksum (CRC-32), which ``torch.load`` does not.

    Reads the file once: about 0.6 s per GB. Archives written without checksums (all of them 0) are only read.

    Raises:
        error: the file is no zip archive, cut off, compressed (whose tensors torch would map as they are), or an
            entry is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise error(
                        f"{path}: its entry {entry.filename} is compressed, and torch would read it as it lies there; "
                        f"unpack it and write it again with torch.save"
                    )
            checked = any(entry.CRC for entry in entries)
            for entry in entries if checked else ():
                with archive.open(entry) as content:
                    while content.read(_BLOCK):  # raises behind the last byte of an entry that differs
                        pass
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as problem:
        if isinstance(problem, GateError):
            raise
        raise error(f"{path} is damaged or incomplete ({first_line(problem)}); take a copy that is whole") from problem
