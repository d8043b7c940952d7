"""Files of a run folder that say how it went: one reader each, which names a file that is damaged."""

from __future__ import annotations

import math
from pathlib import Path

from gate_lightning.errors import DataError
from gate_lightning.utils.text import read_csv, read_json

__all__ = ["STATES", "column_of", "differences_of", "metrics_of", "monitor_of", "overrides_of", "status_of"]

#: what ``status.json`` says
STATES = ("running", "done", "failed", "interrupted")
#: above any metric; JSON's numbers may be larger than a float
_LARGEST = 1e300


def status_of(folder: Path) -> tuple[str, str]:
    """Status of a run and the message beside it; ``running`` where nothing says otherwise.

    Raises:
        DataError: ``status.json`` is damaged.
    """
    path = folder / "status.json"
    found = read_json(path) if path.is_file() else {"status": "running"}
    status, message = found.get("status"), found.get("message", "")
    if status not in STATES or not isinstance(message, str):
        raise DataError(f"{path} has the status {status!r}, expected {', '.join(STATES)}")
    return status, message


def metrics_of(path: Path) -> dict[str, float] | None:
    """Metrics of ``metrics*.json`` that have a value, or None where there is no file.

    Raises:
        DataError: the file is damaged.
    """
    if not path.is_file():
        return None
    found = {name: value for name, value in read_json(path).items() if value is not None}
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            raise DataError(f"{path}: {name} is {value!r}, expected a number or null")
    return {name: float(value) for name, value in found.items()}


def monitor_of(folder: Path) -> str | None:
    """Metric that a run monitored; None where ``settings.json`` is missing or names none.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "settings.json"
    found = read_json(path).get("monitor") if path.is_file() else None
    if found is not None and not isinstance(found, str):
        raise DataError(f"{path} has the monitor {found!r}, expected the name of a metric")
    return found


def differences_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Setting → its value and the default, as text, of the settings in which a run differs from the defaults; none
    where ``settings.json`` is missing.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "settings.json"
    found = read_json(path).get("differences", []) if path.is_file() else []
    if not isinstance(found, list) or not all(isinstance(one, dict) and "value" in one for one in found):
        raise DataError(f"{path}: differences are no list of settings with a value")
    return {str(one.get("key")): (str(one["value"]), str(one.get("default", "default"))) for one in found}


def overrides_of(folder: Path) -> list[str]:
    """Overrides that a run was started with; none where there is no ``overrides.json``.

    Raises:
        DataError: the file is damaged.
    """
    path = folder / "overrides.json"
    found = read_json(path, kind=list) if path.is_file() else []
    for item in found:
        if not isinstance(item, str):
            raise DataError(f"{path} holds {item!r}, expected overrides like seed=1")
    return [str(item) for item in found]


def column_of(path: Path, name: str) -> list[float]:
    """Finite numbers of a column of a table; none where there is no such file or column.

    Raises:
        DataError: the table is damaged.
    """
    if not path.is_file():
        return []
    cells = [row[name] for row in read_csv(path) if row.get(name)]
    try:
        return [number for number in map(float, cells) if math.isfinite(number)]
    except ValueError as error:
        raise DataError(f"{path}: {name} has {error}, expected numbers") from error
