"""Reading of MATLAB files, for which scipy is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gate_lightning.errors import DataError, first_line

__all__ = ["read_mat"]


def read_mat(path: Path, *names: str) -> Mapping[str, Any]:
    """Variables of a MATLAB file (version 7 or older); structures are mappings, arrays of them lists.

    Args:
        path: the file.
        names: variables that it must have.

    Raises:
        DataError: scipy is not installed, or the file is missing, damaged, or lacks a variable.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"{path} is a MATLAB file, which scipy reads: pip install 'gate-lightning[mat]'") from error
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        found: Mapping[str, Any] = loadmat(str(path), simplify_cells=True)
    except Exception as error:  # scipy raises whatever a damaged file leads it to
        raise DataError(f"{path} is no MATLAB file that can be read ({first_line(error)}); replace it") from error
    missing = [name for name in names if name not in found]
    if missing:
        there = ", ".join(name for name in found if not name.startswith("__")) or "nothing"
        raise DataError(f"{path} has no {' and no '.join(missing)}; found {there}")
    return found
