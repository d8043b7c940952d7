"""``dataset=homographies``: one's own pairs of images with a known homography.

root/**/<name>.jpg                 images
root/<list>.csv or .json           pairs

A CSV table has the columns ``source_path``, ``target_path`` (relative to the root), ``homography``, and perhaps
``group``. A homography is nine numbers row by row, or a text file of 3 × 3 numbers relative to the root, as HPatches'
``H_1_2``; it maps pixels of the source's file to pixels of the target's. A JSON list has objects with the same keys,
the numbers as [[a, b, c], [d, e, f], [g, h, i]].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated, field_of
from gate_lightning.data.correspondence.images import ImageTable
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.data.geometric.base import ViewDataModule, homography_fault
from gate_lightning.data.geometric.hpatches import read_matrix
from gate_lightning.errors import DataError
from gate_lightning.structures import ViewPair
from gate_lightning.utils.text import read_csv, read_json

__all__ = ["HomographyListDataModule"]

_COLUMNS = ("source_path", "target_path", "homography", "group")


class HomographyListDataModule(ViewDataModule):
    """One's own pairs with known homographies (see the head of this module).

    Args:
        root: folder of the images.
        test: list of pairs, ``.csv`` or ``.json``, relative to the root.
        others: `ViewDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    def __init__(self, root: str, test: str = "pairs.csv", **others: Any) -> None:
        super().__init__(**others)
        self.root = require_root(root, "images, and a list of pairs (dataset.test=pairs.csv)", "")
        self.list = self.root / Path(test).expanduser()
        self.card = DatasetCard(self.root.resolve().name)

    def read(self, split: str) -> Annotated[ViewPair]:
        """The pairs of the list.

        Raises:
            DataError: it is missing or broken; names the entry.
        """
        table, pairs, errors = ImageTable(self.root), list[ViewPair](), list[str]()
        for where, entry in self._entries():
            names = [inner_path(field_of(entry, f"{side}_path", str, where), where) for side in ("source", "target")]
            here, there = (table.size(name, "") for name in names)
            matrix = self._matrix(entry, where)
            if here is not None and there is not None:
                fault = homography_fault(matrix, here, where)
                errors += [fault] if fault else []
                group = str(entry.get("group") or "")
                pairs.append(ViewPair(names[0], names[1], here, there, torch.from_numpy(matrix), group=group))
        if not pairs and not table.errors:
            raise DataError(f"{self.list} has no pairs")
        return Annotated(tuple(pairs), table.images, (*table.errors, *errors))

    def _entries(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Place and content of the entries of the list."""
        kind = self.list.suffix.lower()
        if kind not in (".csv", ".json"):
            raise DataError(f"dataset.test={self.list}: expected a list of pairs, .csv or .json")
        rows = read_csv(self.list, columns=_COLUMNS[:3]) if kind == ".csv" else read_json(self.list, kind=list)
        for number, row in enumerate(rows, start=1):
            where = f"{self.list}, {'row' if kind == '.csv' else 'entry'} {number}"
            if not isinstance(row, Mapping):
                raise DataError(f"{where} is {row!r:.60}; expected an object with {', '.join(_COLUMNS[:3])}")
            unknown = [name for name in row if name not in _COLUMNS]
            if unknown:
                raise DataError(f"{where} has {unknown[0]!r}; expected of {', '.join(_COLUMNS)}")
            yield where, row

    def _matrix(self, entry: Mapping[str, Any], where: str) -> np.ndarray:
        """The homography (3, 3) of an entry.

        Raises:
            DataError: neither nine numbers nor a file with them.
        """
        value = field_of(entry, "homography", (str, list), where)
        numbers = value.split() if isinstance(value, str) else value
        try:
            return np.array(numbers, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError):
            if not isinstance(value, str) or not (self.root / value.strip()).is_file():
                raise DataError(
                    f"{where}: homography is {value!r:.80}; expected nine numbers row by row, or a file of them below "
                    f"{self.root}"
                ) from None
        return read_matrix(self.root / value.strip())
