"""PF-PASCAL (Proposal Flow): pairs of the 20 classes of PASCAL VOC.

root/JPEGImages/<name>.jpg                                root is the folder PF-dataset-PASCAL
root/Annotations/<class>/<name>.mat                       kps: (N, 2), NaN where a keypoint is absent; bbox: x1 y1 x2 y2
root/{trn,val,test}_pairs_pf_pascal.csv                   (or {trn,val,test}_pairs.csv): source_image, target_image,
                                                          class (1 … 20), and flip or the points XA, YA, XB, YB

Facts: the lists of the SCNet and CNNGeometric authors, and their readers in CATs, SD4Match and GeoAware-SC. The
training list names pairs a second time with flip=1: both images are mirrored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated, Box
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.images import ImageTable
from gate_lightning.data.correspondence.mat_files import read_mat
from gate_lightning.data.correspondence.pf_willow import below, first_of
from gate_lightning.data.files.pairing import require_root
from gate_lightning.errors import DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.text import read_csv

__all__ = ["CLASSES", "PFPascalDataModule"]

# fmt: off
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_LISTS = {"train": ("trn", "train"), "val": ("val",), "test": ("test",)}


class PFPascalDataModule(PairDataModule):
    """PF-PASCAL: 2,940 training, 308 validation and 299 test pairs.

    Args:
        root: the folder ``PF-dataset-PASCAL``.
        points: where points come from: ``mat`` (the annotations, with boxes and numbers of keypoints, as CATs and
            SD4Match read them) or ``csv`` (the lists, without boxes; the published ones have them for the test pairs).
        others: `PairDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = "JPEGImages/*.jpg, Annotations/<class>/*.mat, {trn,val,test}_pairs_pf_pascal.csv"
    card = DatasetCard(
        "PF-PASCAL",
        prompt_simple="a photo of a {category}",
        prompt_fine="a photo of "
        + ", ".join(CLASSES)
        + ", high quality, best quality, highly realistic, masterpiece, high resolution",
        branches=correspondence_branches(),
        citation="Ham et al., Proposal Flow: Semantic Correspondences from Object Proposals, PAMI 2017",
        licence="images: PASCAL VOC (Flickr terms of use); research use",
    )

    def __init__(self, root: str, points: str = "mat", **others: Any) -> None:
        super().__init__(**others)
        check_choice(points, "dataset.points", ("mat", "csv"))
        self.root, self.points = require_root(root, self.layout, "JPEGImages"), points

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits whose lists are there."""
        return tuple(split for split in _LISTS if self._list(split) is not None)

    @property
    def has_test(self) -> bool:
        """True if there are test pairs."""
        return "test" in self.splits

    def _list(self, split: str) -> Path | None:
        names = [f"{name}_pairs{end}.csv" for name in _LISTS[split] for end in ("_pf_pascal", "")]
        return first_of(self.root, *names)

    def read(self, split: str) -> Annotated[Pair]:
        """The pairs of a split.

        Raises:
            DataError: its list, or an annotation, is missing or broken.
        """
        path = self._list(split)
        assert path is not None  # of `splits`
        columns = ("source_image", "target_image", "class", *(("XA", "YA", "XB", "YB") if self.points == "csv" else ()))
        table, pairs = ImageTable(self.root), []
        annotations: dict[Path, tuple[np.ndarray, Box]] = {}
        for number, row in enumerate(read_csv(path, columns), start=1):
            where = f"{path}, row {number}"
            category = _class(row["class"], where)
            names = [f"JPEGImages/{Path(below('JPEGImages', row[key], where)).name}" for key in columns[:2]]
            # images of one class may be those of another's pairs too: the first class is the one of its prompt
            shown = [table.images[name].category if name in table.images else category for name in names]
            sizes = [table.size(name, word) for name, word in zip(names, shown, strict=True)]
            if sizes[0] is None or sizes[1] is None:
                continue
            boxes: tuple[Box | None, Box | None] = (None, None)
            if self.points == "csv":
                points, ids = _listed(row, where)
            else:
                files = [self.root / f"Annotations/{category}/{Path(name).stem}.mat" for name in names]
                for file in files:
                    if file not in annotations:
                        annotations[file] = _annotation(file)
                read = [annotations[file] for file in files]
                points, ids = _common(read[0][0], read[1][0])
                boxes = (read[0][1], read[1][1])
            attributes = {"flip": 1} if row.get("flip", "0").strip() in ("1", "1.0", "True") else {}
            pairs.append(
                Pair(
                    names[0],
                    names[1],
                    points[0],
                    points[1],
                    sizes[0],
                    sizes[1],
                    boxes[0],
                    boxes[1],
                    category,
                    keypoint_ids=ids,
                    attributes=attributes,
                )
            )
        return Annotated(tuple(pairs), table.images, table.errors, slack=10.0)


def _class(text: str, where: str) -> str:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= len(CLASSES):
        raise DataError(f"{where}: class {text!r}; expected 1 to {len(CLASSES)}")
    return CLASSES[number - 1]


def _listed(row: Mapping[str, str], where: str) -> tuple[tuple[Tensor, Tensor], tuple[str, ...]]:
    """Points of both images as the list has them."""
    try:
        columns = [[float(cell) for cell in row[name].split(";") if cell.strip()] for name in ("XA", "YA", "XB", "YB")]
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected numbers with ; between them in XA, YA, XB and YB") from None
    if len(set(map(len, columns))) > 1:
        raise DataError(
            f"{where}: {[len(column) for column in columns]} numbers in XA, YA, XB, YB; expected as many in each"
        )
    points = torch.tensor(columns, dtype=torch.float32)
    if not torch.isfinite(points).all():
        raise DataError(f"{where}: a coordinate is not finite")
    return (points[:2].T.contiguous(), points[2:].T.contiguous()), ()


def _annotation(path: Path) -> tuple[np.ndarray, Box]:
    """Keypoints (N, 2) and box of an image."""
    found = read_mat(path, "kps", "bbox")
    try:
        points, box = np.asarray(found["kps"], dtype=np.float64), np.asarray(found["bbox"], dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: kps and bbox are no numbers; replace it") from error
    if points.ndim != 2 or points.shape[1] != 2 or box.shape != (4,) or not np.isfinite(box).all():
        raise DataError(f"{path}: kps has shape {points.shape} and bbox {box.shape}; expected (N, 2) and 4 numbers")
    left, top, right, bottom = box.tolist()
    return points, (left, top, right, bottom)


def _common(first: np.ndarray, second: np.ndarray) -> tuple[tuple[Tensor, Tensor], tuple[str, ...]]:
    """Keypoints that both images have, and their numbers."""
    count = min(len(first), len(second))
    both = ~np.isnan(first[:count]).any(axis=1) & ~np.isnan(second[:count]).any(axis=1)
    places = np.flatnonzero(both)
    chosen = tuple(torch.from_numpy(points[places].astype(np.float32)) for points in (first, second))
    return (chosen[0], chosen[1]), tuple(map(str, places.tolist()))
