"""Tables of a ranking by content shift: of candidates, of images, and a short one for the log."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from lightning import Trainer

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_table
from gate_lightning.metrics.content_shift.table import Compared, Figure, overall
from gate_lightning.tasks.content_shift.study import ShiftResults
from gate_lightning.tasks.content_shift.task import ContentShiftResults
from gate_lightning.utils.files import write_atomically, write_csv

__all__ = ["CONTENT_SHIFT", "ShiftTables", "short_table"]

log = logging.getLogger(__name__)

#: name of the table, without suffix
CONTENT_SHIFT = "content_shift"
KEY = ("measure", "candidate", "timestep", "layer")
COLUMNS = (
    *(*KEY, "kind", "value", "low", "high", "difference", "difference_low", "difference_high", "rank"),
    *("higher_is_better", "anchor", "passes", "seconds"),
    *(f"equal_{kept}{part}" for kept in ("passes", "seconds") for part in ("", "_difference", "_low", "_high")),
)


class ShiftTables(SplitReport[ContentShiftResults, Any]):
    """Writes ``content_shift.csv``, ``content_shift_images.csv`` and ``content_shift.json``, and shows a short table.

    Lines of the first: measure, candidate, timestep, layer, the figure with its interval over images, its difference
    to plain and to plain features of equal passes and equal time (paired by image), rank, cost. ``all`` stands for the
    mean over timesteps and layers. The second has the figures of the images; the third everything, with the reasons of
    what was not measured.
    """

    reads: ClassVar[type] = ContentShiftResults

    def on_split_end(self, trainer: Trainer, task: ContentShiftResults, split: str, rows: list[Any]) -> None:
        """Write all three and log the short one."""
        folder, results, table = Path(trainer.default_root_dir), task.shift_results[split], task.shift_table[split]
        lines = [_line(one, results) for one in table]
        publish_table(trainer, CONTENT_SHIFT, COLUMNS, [_typed(line) for line in lines])
        write_csv(folder / f"{CONTENT_SHIFT}_images.csv", ("image", *KEY, "value"), _of_images(results))
        content = json.dumps(_described(results, split, lines), indent=1, allow_nan=False)
        write_atomically(folder / f"{CONTENT_SHIFT}.json", content.encode())
        log.info("content shift of %d images of %s\n%s", len(results.images), split, short_table(table, results))


def short_table(table: Sequence[Compared], results: ShiftResults) -> str:
    """Figures over all timesteps and layers: measures down, candidates across; then each measure's ranking."""
    shown = overall(table)
    measures, names = (list(dict.fromkeys(getattr(one, key) for one in shown)) for key in ("measure", "candidate"))
    found = {(one.measure, one.candidate): one for one in shown}
    better = {one.measure: one.higher_is_better for one in shown}
    lines = [["", *names]]
    for measure in measures:
        cells = [_short(found.get((measure, name))) for name in names]
        lines.append([f"{measure} ({'high' if better[measure] else 'low'} is good)", *cells])
    for title, key, factor in (("passes per image", "passes", 1.0), ("ms per image", "seconds", 1e3)):
        costs = [results.cost(name) for name in names]
        lines.append([title, *("" if one is None else f"{factor * getattr(one, key):.3g}" for one in costs)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    ranked = [f"{measure}: {_order([one for one in shown if one.measure == measure], results)}" for measure in measures]
    note = "* the interval of the difference to plain, over images, leaves out 0"
    return "\n".join(
        [
            *text,
            note,
            "ranking, the least shift first; in brackets plain features of several noises, the controls of equal cost:",
            *ranked,
        ]
    )


def _order(lines: Sequence[Compared], results: ShiftResults) -> str:
    """Names of the candidates and of the controls of equal cost, the least shift first."""
    kinds = {one.candidate: results.candidates[one.candidate].kind for one in lines}
    told = [one for one in lines if one.rank or (kinds[one.candidate] == "noises" and not math.isnan(one.figure.value))]
    told.sort(key=lambda one: -one.figure.value if one.higher_is_better else one.figure.value)
    return " > ".join(f"[{one.candidate}]" if kinds[one.candidate] == "noises" else one.candidate for one in told)


def _short(one: Compared | None) -> str:
    if one is None or math.isnan(one.figure.value):
        return "–"
    difference = one.difference
    sure = difference is not None and (difference.low > 0 or difference.high < 0)
    return f"{one.figure.value:.3f}{'*' if sure else ' '}"


def _line(one: Compared, results: ShiftResults) -> dict[str, Any]:
    """A line of the table by column; numbers that are not finite are None."""
    cost = results.cost(one.candidate)
    line: dict[str, Any] = {
        **{name: getattr(one, name) for name in KEY},
        "kind": results.candidates[one.candidate].kind,
        **dict(zip(("value", "low", "high"), _numbers(one.figure), strict=True)),
        **dict(zip(("difference", "difference_low", "difference_high"), _numbers(one.difference), strict=True)),
        "rank": one.rank,
        "higher_is_better": one.higher_is_better,
        "anchor": one.anchor,
        "passes": None if cost is None else cost.passes,
        "seconds": None if cost is None else cost.seconds,
    }
    for kept in ("passes", "seconds"):
        row, difference = one.controlled.get(kept, ("", None))
        names = (f"equal_{kept}{part}" for part in ("_difference", "_low", "_high"))
        line |= {f"equal_{kept}": row, **dict(zip(names, _numbers(difference), strict=True))}
    return line


def _numbers(figure: Figure | None) -> list[float | None]:
    if figure is None:
        return [None] * 3
    return [value if math.isfinite(value) else None for value in (figure.value, figure.low, figure.high)]


def _typed(line: dict[str, Any]) -> list[Any]:
    """Cells of a line; a column of a dashboard's table has one type, or none."""
    timestep = line["timestep"]
    return list({**line, "timestep": None if timestep is None else str(timestep)}.values())


def _of_images(results: ShiftResults) -> Iterator[list[Any]]:
    for measure, found in results.statistics.items():
        for key, statistic in found.items():
            for image, value in zip(results.images, statistic.of_images.tolist(), strict=True):
                yield [image, measure, *key, value if math.isfinite(value) else None]


def _described(results: ShiftResults, split: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "split": split,
        "images": list(results.images),
        "timesteps": list(results.timesteps),
        "seconds": results.seconds,
        "candidates": {
            name: {"kind": one.kind, "of": one.of, "plain": results.plain(name), **one.branch.description}
            for name, one in results.candidates.items()
        },
        "not_measured": dict(results.left_out),
        "lines": lines,
    }
