"""Tables of a report, read from the CSV files of a run folder; what is not there is left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gate_lightning.tools.report.image_uris import image_uri
from gate_lightning.tools.report.words import is_share
from gate_lightning.utils.text import read_csv

__all__ = [
    "Table",
    "category_tables",
    "class_tables",
    "confusions",
    "image_tables",
    "of_splits",
    "resplit_table",
    "shift_tables",
]

#: columns of content_shift.csv that the page shows, and their titles
SHIFT_COLUMNS = {
    "rank": "rank",
    "value": "figure",
    "low": "low",
    "high": "high",
    "difference": "difference to plain",
    "difference_low": "low ",
    "difference_high": "high ",
    "equal_passes_difference": "at equal passes",
    "equal_passes_low": "low  ",
    "equal_passes_high": "high  ",
    "equal_seconds_difference": "at equal time",
    "equal_seconds_low": "low   ",
    "equal_seconds_high": "high   ",
}
#: rows of the tables of images
MOST_IMAGES = 20
#: confusions that are named
MOST_CONFUSED = 8


@dataclass
class Table:
    """Table of a report.

    Attributes:
        title: above.
        columns: titles; the first one's cells are names.
        rows: names and numbers.
        shares: columns that are shown in percent.
        note: below.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[Any]]
    shares: frozenset[str] = field(default_factory=frozenset)
    note: str = ""


def class_tables(folder: Path) -> Iterator[Table]:
    for split, path in of_splits(folder, "classes_{}.csv"):
        rows = read_csv(path, columns=("class",))
        columns = list(rows[0]) if rows else ["class"]
        cells = [[row["class"], *(_number(row[name]) for name in columns[1:])] for row in rows]
        counted = "labelled pixels" if "IoU" in columns else "images"
        note = f"share: of the {counted}" if "share" in columns else ""
        yield Table(split, columns, cells, frozenset(columns[1:]), note)


def category_tables(folder: Path, monitored: str) -> Iterator[Table]:
    """Scores of the categories of pairs, the monitored one first."""
    for split, path in of_splits(folder, "categories_{}.csv"):
        rows = read_csv(path, columns=("category", "pairs", "keypoints"))
        names = list(rows[0]) if rows else ["category", "pairs", "keypoints"]
        scores = sorted((name for name in names if is_share(name)), key=lambda name: name != monitored)
        columns = [*(name for name in names if name not in scores), *scores]
        cells = [[row["category"], *(_number(row[name]) for name in columns[1:])] for row in rows]
        yield Table(split, columns, cells, frozenset(scores))


def image_tables(folder: Path) -> Iterator[Table]:
    """The worst images, and the most uncertain ones."""
    for split, path in of_splits(folder, "images_{}.csv"):
        rows = read_csv(path, columns=("image",))
        yield _images(
            f"{split}: the lowest mIoU first",
            rows,
            f"the first {MOST_IMAGES} of {len(rows)} images; all are in {path.name}",
        )
    for _, path in of_splits(folder, "uncertainty_{}.csv"):
        rows = read_csv(path, columns=("image",))
        yield _images(
            "test: the most uncertain first", rows, f"uncertainty in nats; all {len(rows)} images are in {path.name}"
        )


def _images(title: str, rows: list[dict[str, str]], note: str) -> Table:
    columns = list(rows[0]) if rows else ["image"]
    cells = [[row["image"], *(_number(row[name]) for name in columns[1:])] for row in rows[:MOST_IMAGES]]
    return Table(title, columns, cells, frozenset(name for name in columns if is_share(name)), note)


def confusions(folder: Path) -> Iterator[dict[str, Any]]:
    """Figure of the matrix, and the largest shares of a class that are called another one."""
    for split, path in of_splits(folder, "confusion_{}.csv"):
        drawn = folder / "images" / f"confusion_{split}.png"
        rows = read_csv(path, columns=("truth",))
        pairs = []
        for row in rows:
            truth = row.pop("truth")
            counts = {name: _number(cell) or 0.0 for name, cell in row.items()}
            total = sum(counts.values())
            pairs += [(n / total, truth, name) for name, n in counts.items() if n and name != truth]
        pairs.sort(key=lambda pair: -pair[0])
        yield {"split": split, "matrix": image_uri(drawn) if drawn.is_file() else None, "pairs": pairs[:MOST_CONFUSED]}


def shift_tables(folder: Path) -> Iterator[Table]:
    """Ranking by content shift, over all timesteps and layers: figures, then differences with their intervals."""
    path = folder / "content_shift.csv"
    if not path.is_file():
        return
    rows = read_csv(path, columns=("measure", "candidate", "timestep", "value", "difference", "rank"))
    averaged = {row["measure"] for row in rows if row["timestep"] == "all"}
    shown = [row for row in rows if row["timestep"] == "all" or row["measure"] not in averaged]
    measures = list(dict.fromkeys(row["measure"] for row in shown))
    values = {(row["candidate"], row["measure"]): _number(row["value"]) for row in shown}
    costs = {row["candidate"]: (_number(row["passes"]), _number(row["seconds"])) for row in shown}
    cells = [[name, *(values.get((name, one)) for one in measures), *cost] for name, cost in costs.items()]
    good = {row["measure"]: "high" if row["higher_is_better"] == "True" else "low" for row in shown}
    note = "; ".join(f"{name}: {word} is good" for name, word in good.items())
    columns = ["candidate", *measures, "passes per image", "seconds per image"]
    yield Table("figures", columns, cells, note=f"{note}. Seconds are of this machine, encoding included.")
    compared = [name for name in SHIFT_COLUMNS if shown and name in shown[0]]
    lines = [[f"{row['measure']}: {row['candidate']}", *(_number(row[one]) for one in compared)] for row in shown]
    titles = [SHIFT_COLUMNS[name] for name in compared]
    yield Table(
        "against plain features",
        ["measure: candidate", *titles],
        lines,
        note=(
            "Differences are paired by image, limits are those of the bootstrap over images. Equal passes, equal time: "
            "against plain features averaged over as many noises as cost as much. All timesteps and layers: "
            "content_shift.csv; all images: content_shift_images.csv"
        ),
    )


def of_splits(folder: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    for split in ("test", "val"):
        path = folder / pattern.format(split)
        if path.is_file():
            yield split, path


def resplit_table(folder: Path, splits: Sequence[Path]) -> Table | None:
    """Metrics of every re-split, with a link to its report."""
    path = folder / "splits.csv"
    if not splits or not path.is_file():
        return None
    rows = read_csv(path, columns=("split",))
    columns = list(rows[0]) if rows else ["split"]
    cells = [[row["split"], *(_number(row[name]) for name in columns[1:])] for row in rows]
    return Table("re-splits", columns, cells, frozenset(name for name in columns if is_share(name)))


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
