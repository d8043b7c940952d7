"""``dataset=pairs``: one's own pairs of images, with points or for looking only.

root/**/<name>.jpg                 images
root/<list>.json or .csv           pairs, a list for each split

A JSON list has the format of Hyperfeatures (`data.correspondence.hyperfeatures`). A CSV table has the same columns, of
which ``source_path`` and ``target_path`` must be there; points are ``x y; x y; …`` and boxes ``x1 y1 x2 y2``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.hyperfeatures import read_list, read_rows
from gate_lightning.data.files.pairing import require_root
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.text import read_csv

__all__ = ["OwnPairsDataModule", "read_table"]

_TEXTS = ("source_path", "target_path", "category", "target_category", "group")
_POINTS = ("source_points", "target_points")
_BOXES = ("source_bounding_box", "target_bounding_box")


class OwnPairsDataModule(PairDataModule):
    """One's own pairs (see the head of this module). ``val`` and ``train`` are only needed for training.

    Args:
        root: folder of the images.
        train, val, test: lists of pairs, ``.json`` or ``.csv``, relative to the root; None for none.
        prompt_simple, prompt_fine: prompts of the card; {category} in the simple one stands for the pair's category.
        others: `PairDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: no list, or a setting out of range.
    """

    def __init__(
        self,
        root: str,
        train: str | None = None,
        val: str | None = None,
        test: str | None = "pairs.csv",
        prompt_simple: str = "a photo",
        prompt_fine: str = "a photo",
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.root = require_root(root, "images, and lists of pairs (dataset.test=pairs.csv)", "")
        given = {"train": train, "val": val, "test": test}
        self.lists = {split: self.root / Path(path).expanduser() for split, path in given.items() if path is not None}
        if not self.lists:
            raise ConfigError("dataset=pairs has no list of pairs; give dataset.test=<file.csv or file.json>")
        self.card = DatasetCard(
            self.root.resolve().name, prompt_simple, prompt_fine, correspondence_branches(other=None)
        )

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have a list."""
        return tuple(self.lists)

    @property
    def has_test(self) -> bool:
        """True if there are test pairs."""
        return "test" in self.lists

    def read(self, split: str) -> Annotated[Pair]:
        """The pairs of a split.

        Raises:
            DataError: its list is missing or broken; names the entry.
        """
        path = self.lists[split]
        if path.suffix.lower() == ".csv":
            return read_table(path, self.root)
        if path.suffix.lower() == ".json":
            return read_list(path, self.root)
        raise DataError(f"dataset.{split}={path}: expected a list of pairs, .csv or .json")


def read_table(path: Path, root: Path) -> Annotated[Pair]:
    """A CSV table of pairs.

    Raises:
        DataError: the file is missing or broken, or a cell does not read so; names the row.
    """
    rows = []
    for number, row in enumerate(read_csv(path, columns=("source_path", "target_path")), start=1):
        where = f"{path}, row {number}"
        unknown = [name for name in row if name not in (*_TEXTS, *_POINTS, *_BOXES)]
        if unknown:
            raise DataError(f"{path}: column {unknown[0]!r}; expected of {', '.join((*_TEXTS, *_POINTS, *_BOXES))}")
        rows.append((where, _entry(row, where)))
    if not rows:
        raise DataError(f"{path} has a header and no pairs")
    return read_rows(rows, root)


def _entry(row: Mapping[str, str], where: str) -> dict[str, Any]:
    """A row in the form of a JSON entry."""
    entry: dict[str, Any] = {name: row[name].strip() for name in _TEXTS if row.get(name, "").strip()}
    for name in _POINTS:
        cells = [cell for cell in row.get(name, "").split(";") if cell.strip()]
        if cells:
            entry[name] = [_numbers(cell, name, where) for cell in cells]
    for name in _BOXES:
        if row.get(name, "").strip():
            entry[name] = _numbers(row[name], name, where)
    return entry


def _numbers(cell: str, name: str, where: str) -> list[float]:
    try:
        return [float(part) for part in re.split(r"[\s,]+", cell.strip())]
    except ValueError:
        wanted = "x y; x y; …" if name in _POINTS else "x1 y1 x2 y2"
        raise DataError(f"{where}: {name} has {cell.strip()!r}; expected {wanted}") from None
