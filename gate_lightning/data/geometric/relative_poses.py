"""``dataset=relative_poses``: pairs of images with known cameras, in the format of SuperGlue's lists.

root/**/<name>.jpg                 images
root/<list>.txt                    pairs, one a line, 38 columns separated by blanks:

    source target  rotation rotation  source camera (9)  target camera (9)  motion (16)

Paths are relative to the root. The two rotations (quarter turns by which SuperGlue turns images) have to be 0. Cameras
are 3 × 3 intrinsics and the motion 4 × 4, both row by row; the motion takes points of the source's camera to the
target's. Lists of ScanNet and MegaDepth pairs are published like that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated
from gate_lightning.data.correspondence.images import ImageTable
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.data.geometric.base import ViewDataModule
from gate_lightning.errors import DataError
from gate_lightning.structures import RelativePose, ViewPair
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["RelativePoseDataModule"]

_COLUMNS = 38


class RelativePoseDataModule(ViewDataModule):
    """Pairs with known cameras (see the head of this module).

    Args:
        root: folder of the images.
        test: list of pairs, relative to the root.
        others: `ViewDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    def __init__(self, root: str, test: str = "pairs.txt", **others: Any) -> None:
        super().__init__(**others)
        self.root = require_root(root, "images, and a list of pairs (dataset.test=pairs.txt)", "")
        self.list = self.root / Path(test).expanduser()
        self.card = DatasetCard(self.root.resolve().name)

    def read(self, split: str) -> Annotated[ViewPair]:
        """The pairs of the list.

        Raises:
            DataError: it is missing or broken; names the line.
        """
        table, pairs = ImageTable(self.root), list[ViewPair]()
        for number, line in enumerate(lines_of(read_text(self.list)), start=1):
            cells, where = line.split(), f"{self.list}, line {number}"
            if not cells:
                continue
            pose = _pose(cells, where)
            names = [inner_path(cell, where) for cell in cells[:2]]
            here, there = (table.size(name, "") for name in names)
            if here is not None and there is not None:
                pairs.append(ViewPair(names[0], names[1], here, there, pose=pose))
        if not pairs and not table.errors:
            raise DataError(f"{self.list} has no pairs")
        return Annotated(tuple(pairs), table.images, table.errors)


def _pose(cells: list[str], where: str) -> RelativePose:
    """Cameras and motion of a line.

    Raises:
        DataError: other columns, rotated images, or matrices that are no cameras and no motion.
    """
    if len(cells) != _COLUMNS:
        raise DataError(
            f"{where} has {len(cells)} columns; expected {_COLUMNS}: source target rotation rotation, 9 numbers of "
            "each camera, 16 of the motion"
        )
    try:
        numbers = np.array(cells[2:], dtype=np.float64)
    except ValueError:
        raise DataError(f"{where}: columns 3 to {_COLUMNS} have to be numbers") from None
    if numbers[:2].any():
        raise DataError(
            f"{where}: its images are turned by {cells[2]} and {cells[3]} quarter turns; turn the files, and list them "
            "with 0 0"
        )
    source, target, motion = numbers[2:11].reshape(3, 3), numbers[11:20].reshape(3, 3), numbers[20:].reshape(4, 4)
    for name, camera in (("source", source), ("target", target)):
        upper = np.isfinite(camera).all() and camera[0, 0] > 0 < camera[1, 1]
        if not upper or not np.allclose(camera[[1, 2, 2], [0, 0, 1]], 0) or not np.isclose(camera[2, 2], 1):
            raise DataError(
                f"{where}: the {name}'s camera is {camera.tolist()}; expected [[f, 0, x], [0, f, y], [0, 0, 1]]"
            )
    rotation, translation = motion[:3, :3], motion[:3, 3]
    turn = np.isfinite(motion).all() and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
    if not turn or np.linalg.det(rotation) < 0 or not np.linalg.norm(translation) > 0:
        raise DataError(
            f"{where}: the motion is {motion.tolist()}; expected a rotation and a translation that is not 0"
        )
    return RelativePose(*(torch.from_numpy(part) for part in (source, target, rotation, translation)))
