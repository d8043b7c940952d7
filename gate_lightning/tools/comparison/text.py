"""A comparison as text: one column per setting in which runs differ, both splits side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from gate_lightning.tools.comparison.rows import BROKEN, Row, counterpart

__all__ = ["comparison_text", "spread"]


def comparison_text(rows: Sequence[Row], metric: str) -> str:
    """Table of rows, in percent; below a row, what is to say about its runs.

    Args:
        rows: best first.
        metric: that of ``Row.values``.
    """
    other = counterpart(metric)
    shown = {
        metric: [list(row.values.values()) for row in rows],
        other: [list(row.counterparts.values()) for row in rows],
        "difference": [[] if row.baseline == row.label else list(row.differences) for row in rows],
    }
    columns = _settings(rows)
    columns["n"] = [str(len(row.values)) for row in rows]
    for name, values in shown.items():
        if any(values):
            columns[name] = [spread(runs, signed=name == "difference") for runs in values]
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}

    def line(cells: Sequence[str]) -> str:
        return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths.values(), strict=True)).rstrip()

    lines = [line(list(columns))]
    for number, row in enumerate(rows):
        lines.append(line([cells[number] for cells in columns.values()]))
        lines += [f"    {text}" for text in (*_repeated(row), *_failed(row))]
    compared = {row.baseline for row in rows if row.differences and row.baseline != row.label}
    to = next(iter(compared)) if len(compared) == 1 else "plain features of the same other settings"
    said = f"; differences to {to} are paired by seed" if compared else ""
    return "\n".join([f"in percent, mean ± standard deviation of n runs{said}", *lines])


def spread(values: Sequence[float], signed: bool = False) -> str:
    """``mean ± standard deviation`` (n - 1) of fractions, in percent; a dash where there is none.

    Args:
        values: fractions.
        signed: whether a mean from 0 up has a plus sign.
    """
    if not values:
        return "–"
    percent = [100 * value for value in values]
    text = f"{mean(percent):{'+' if signed else ''}.1f}"
    return text if len(percent) < 2 else f"{text} ± {stdev(percent):.1f}"


def _settings(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Setting in which rows differ → its value in every row; ``run`` → labels, where settings do not tell rows apart.

    The settings of a run whose files are damaged are unknown: the first column has its label.
    """
    if len(rows) == 1 and rows[0].runs[0].settings:
        return {"run": ["settings of all"]}  # nothing differs but seeds
    chosen = [dict(_key_and_value(item) for item in row.runs[0].settings) for row in rows]
    known = [settings for settings, row in zip(chosen, rows, strict=True) if row.runs[0].status != BROKEN]
    keys = dict.fromkeys(key for settings in known for key in settings)
    varied = [key for key in keys if len({settings.get(key) for settings in known}) > 1]
    if len({tuple(settings.get(key) for key in varied) for settings in known}) < len(known) or not varied:
        return {"run": [row.label for row in rows]}
    columns = {key: [settings.get(key, "default") for settings in chosen] for key in varied}
    for number, row in enumerate(rows):
        if row.runs[0].status == BROKEN:
            for key, cells in columns.items():
                cells[number] = row.label if key == varied[0] else ""
    return columns


def _key_and_value(item: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    return (key, value) if equals else (item, "set")


def _repeated(row: Row) -> list[str]:
    """Sentences about runs of equal settings and seed, of which one counts."""
    folders: dict[str, list[Path]] = {}
    for run in row.runs:
        if run.status == "done":
            folders.setdefault(run.seed, []).append(run.folder)
    return [
        f"{len(same)} finished runs have seed {seed} and these settings; the last one counts ({same[-1]})"
        for seed, same in folders.items()
        if len(same) > 1
    ]


def _failed(row: Row) -> list[str]:
    return [f"{run.status}: {run.message or 'no message'} ({run.folder})" for run in row.failures]
