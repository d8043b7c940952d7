"""PF-WILLOW (Proposal Flow): 900 test pairs of ten subsets, ten keypoints each.

root/<subset>/<name>.png               root is the folder PF-dataset
root/test_pairs_pf.csv                 (or test_pairs.csv) two images and 40 numbers a row: x and y of the points of the
                                       first image, x and y of those of the second

Facts: the list of the CNNGeometric authors, and its readers in CATs and SD4Match. There are no boxes: thresholds are
the extent of the keypoints, or the image.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.images import ImageTable
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.errors import DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.text import read_csv

__all__ = ["PFWillowDataModule", "below", "first_of"]

#: folder's name up to its bracket → words of the prompt, where they are not the same
_WORDS = {"winebottle": "wine bottle"}
_COUNT = 10


class PFWillowDataModule(PairDataModule):
    """PF-WILLOW; there are test pairs only.

    Args:
        root: the folder ``PF-dataset``.
        others: `PairDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = "test_pairs_pf.csv and <subset>/*.png"
    card = DatasetCard(
        "PF-WILLOW",
        prompt_simple="a photo of a {category}",
        prompt_fine="a photo of a car, a duck, a motorbike or a wine bottle, high quality, highly realistic",
        branches=correspondence_branches(),
        citation="Ham et al., Proposal Flow, CVPR 2016",
        licence="research use",
    )

    def __init__(self, root: str, **others: Any) -> None:
        super().__init__(**others)
        self.root = require_root(root, self.layout, "")

    @property
    def splits(self) -> tuple[str, ...]:
        """The test split, if its list is there."""
        return ("test",) if self._list is not None else ()

    @property
    def _list(self) -> Path | None:
        return first_of(self.root, "test_pairs_pf.csv", "test_pairs.csv")

    def read(self, split: str) -> Annotated[Pair]:
        """The 900 test pairs of the list.

        Raises:
            DataError: the list is broken; names the row.
        """
        assert self._list is not None  # of `splits`
        table, pairs = ImageTable(self.root), []
        for number, row in enumerate(read_csv(self._list), start=1):
            where, cells = f"{self._list}, row {number}", list(row.values())
            if len(cells) != 2 + 4 * _COUNT:
                raise DataError(f"{where}: {len(cells)} cells; expected two images and {4 * _COUNT} numbers")
            names = [below("PF-dataset", cell, where) for cell in cells[:2]]
            folders = [name.split("/")[0] for name in names]
            sizes = [table.size(name, _word(folder)) for name, folder in zip(names, folders, strict=True)]
            if sizes[0] is not None and sizes[1] is not None:
                columns = torch.tensor(_floats(cells[2:], where)).reshape(4, _COUNT)
                source, target = columns[:2].T.contiguous(), columns[2:].T.contiguous()
                ids = tuple(map(str, range(_COUNT)))
                pairs.append(
                    Pair(
                        names[0],
                        names[1],
                        source,
                        target,
                        sizes[0],
                        sizes[1],
                        category=folders[0],
                        keypoint_ids=ids,
                    )
                )
        return Annotated(tuple(pairs), table.images, table.errors)


def first_of(root: Path, *names: str) -> Path | None:
    """The first of several files that is there."""
    return next((root / name for name in names if (root / name).is_file()), None)


def below(folder: str, text: str, where: str) -> str:
    """A path of a list, from behind the data set's folder on if it names that.

    Raises:
        DataError: it leaves the folder.
    """
    return inner_path(text.strip(), where).rpartition(f"{folder}/")[2]


def _word(folder: str) -> str:
    name = folder.partition("(")[0]
    return _WORDS.get(name, name)


def _floats(cells: list[str], where: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected numbers behind the two images") from None
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: a coordinate is not finite")
    return values
