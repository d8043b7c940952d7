"""HPatches: sequences of six images of a plane, under other light (``i_*``) or from other places (``v_*``).

root/<i_name or v_name>/{1,2,3,4,5,6}.ppm
root/<i_name or v_name>/H_1_{2,3,4,5,6}        3 × 3 numbers: pixels of image 1 → pixels of image k

Pairs are 1 → 2 … 6. Files of keypoints are called <sequence>-<k>.kp. Facts: the data set's paper; the list of sequences
that D2-Net leaves out, because of their size, is that of its repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated
from gate_lightning.data.correspondence.images import ImageTable
from gate_lightning.data.files.pairing import require_root
from gate_lightning.data.geometric.base import ViewDataModule, homography_fault
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import ViewPair
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.text import read_text

__all__ = ["LEFT_OUT", "HPatchesDataModule", "read_matrix"]

LAYOUT = "<i_… or v_…>/{1 … 6}.ppm, <i_… or v_…>/H_1_{2 … 6}"
GROUPS = {"i_": "illumination", "v_": "viewpoint"}
#: sequences that D2-Net's selection leaves out
# fmt: off
LEFT_OUT = (
    "i_contruction", "i_crownnight", "i_dc", "i_pencils", "i_whitebuilding", "v_artisans", "v_astronautis", "v_talent",
)
# fmt: on
_VIEWS = range(2, 7)


class HPatchesDataModule(ViewDataModule):
    """HPatches in its official layout: 5 pairs of each of 116 sequences.

    Args:
        root: the data set's folder.
        sequences: ``d2net`` (108 of them, those that papers report), ``all``, or a list of names.
        others: `ViewDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    card = DatasetCard(
        "HPatches",
        prompt_simple="",
        prompt_fine="a photo",
        citation="Balntas et al., HPatches: A benchmark and evaluation of local descriptors, 2017",
        licence="see its authors",
    )
    layout = LAYOUT

    def __init__(self, root: str, sequences: str | Sequence[str] = "d2net", **others: Any) -> None:
        super().__init__(**others)
        self.root = require_root(root, LAYOUT, "")
        if isinstance(sequences, str):
            check_choice(sequences, "dataset.sequences", ("d2net", "all"))
        elif not sequences or len(set(sequences)) < len(sequences):
            raise ConfigError(f"dataset.sequences={list(sequences)}: expected d2net, all or names, each once")
        self.sequences = sequences

    def keypoint_file(self, name: str) -> str:
        """Name of a keypoint file: ``<sequence>-<k>.kp`` for ``<sequence>/<k>.ppm``."""
        path = PurePosixPath(name)
        return f"{path.parent.name}-{path.stem}.kp"

    def read(self, split: str) -> Annotated[ViewPair]:
        """The pairs of the sequences; only ``test`` is there."""
        table, pairs, errors = ImageTable(self.root), list[ViewPair](), list[str]()
        for name in self._names():
            if len(list((self.root / name).glob("*.ppm"))) < 2:
                errors.append(f"{self.root / name} has fewer than two images; expected 1.ppm … 6.ppm")
                continue
            first = table.size(f"{name}/1.ppm", "")
            for view in _VIEWS:
                size = table.size(f"{name}/{view}.ppm", "")
                path = self.root / name / f"H_1_{view}"
                try:
                    matrix = read_matrix(path)
                except DataError as error:
                    errors.append(str(error))
                    continue
                if first is None or size is None:
                    continue
                fault = homography_fault(matrix, first, path)
                errors += [fault] if fault else []
                truth = torch.from_numpy(matrix)
                pairs.append(
                    ViewPair(f"{name}/1.ppm", f"{name}/{view}.ppm", first, size, truth, group=GROUPS[name[:2]])
                )
        return Annotated(tuple(pairs), table.images, (*table.errors, *errors))

    def _names(self) -> list[str]:
        there = sorted(path.name for path in self.root.iterdir() if path.is_dir() and path.name[:2] in GROUPS)
        if not there:
            raise DataError(f"{self.root} has no sequences; expected {LAYOUT}")
        if isinstance(self.sequences, str):
            return [name for name in there if self.sequences == "all" or name not in LEFT_OUT]
        missing = [name for name in self.sequences if name not in there]
        if missing:
            raise DataError(f"{self.root} has no sequence {missing[0]}; there are {', '.join(there[:6])} …")
        return list(self.sequences)


def read_matrix(path: Path) -> np.ndarray:
    """Matrix (3, 3) float64 of a text file.

    Raises:
        DataError: the file is missing, or holds anything else.
    """
    text = read_text(path)
    try:
        return np.array(text.split(), dtype=np.float64).reshape(3, 3)
    except ValueError:
        raise DataError(f"{path} holds {text.strip()[:40]!r} …; expected 3 × 3 numbers") from None
