"""CUB-200-2011 as pairs of birds, by two protocols.

root/images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, parts/part_locs.txt
root/images/<class>/<name>.jpg                                          root is the folder CUB_200_2011
metadata/cub_subset_<0 … 13>_original_paths.txt                         14 lists of 25 images
metadata/acsm_val_cub_cleaned.mat                                       boxes that they are cut out by

``subsets`` (Neural Congealing's and DIFT's): each image cut out by its box, 5 % larger on every side, made square,
continued at its border and resized to 256²; all pairs of a list in both directions; PCK's threshold is a share of the
image's side, all keypoints of a list count alike, and the 14 lists count alike.

``same_class`` (after DistillDIFT): 1,000 of the pairs of test images of one class, with boxes; which 1,000 theirs are
is not published.

Facts: the read-me of CUB-200-2011, and the released preparation of Neural Congealing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gate_lightning.data.card import DatasetCard
from gate_lightning.data.correspondence.annotations import Annotated, Box
from gate_lightning.data.correspondence.base import PairDataModule
from gate_lightning.data.correspondence.batches import Partners
from gate_lightning.data.correspondence.cards import correspondence_branches
from gate_lightning.data.correspondence.images import ImageTable, PairImage
from gate_lightning.data.correspondence.mat_files import read_mat
from gate_lightning.data.correspondence.spair_keypoints import partners_of
from gate_lightning.data.files.names import inner_path
from gate_lightning.data.files.pairing import require_root
from gate_lightning.errors import DataError
from gate_lightning.structures import Pair
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.text import lines_of, read_text

__all__ = ["PARTS", "CUBDataModule", "Cut"]

#: part n + 1 of part_locs.txt
# fmt: off
PARTS = (
    "back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape", "right eye",
    "right leg", "right wing", "tail", "throat",
)
# fmt: on
_SUBSETS = 14
_SIDE = 256
_BIRD = "bird"


@dataclass(frozen=True)
class Cut:
    """A square of an image resized to 256², as the released preparation cuts it; what lies outside repeats the border.

    Attributes:
        left, top: corner in pixels, counted from 0.
        side: in pixels.
    """

    left: int
    top: int
    side: int

    @classmethod
    def around(cls, box: Box) -> Cut:
        """The square of a box, counted from 1, that is 5 % larger on every side; halves are rounded up."""
        left, top, right, bottom = (corner - 1 for corner in box)
        width, height = right - left + 1, bottom - top + 1
        edges = (left - 0.05 * width, top - 0.05 * height, right + 0.05 * width, bottom + 0.05 * height)
        x1, y1, x2, y2 = map(_rounded, edges)
        side = max(x2 - x1 + 1, y2 - y1 + 1)
        return cls(x1 - _rounded((side - (x2 - x1 + 1)) / 2), y1 - _rounded((side - (y2 - y1 + 1)) / 2), side)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → (256, 256, 3)."""
        rows = np.clip(np.arange(self.top, self.top + self.side), 0, image.shape[0] - 1)
        columns = np.clip(np.arange(self.left, self.left + self.side), 0, image.shape[1] - 1)
        cut = Image.fromarray(np.ascontiguousarray(image[rows][:, columns]))
        return np.asarray(cut.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))

    def points(self, points: Tensor) -> Tensor:
        """Points (N, 2), counted from 1, in the cut; scaled without a shift of half a pixel, as released."""
        return (points - torch.tensor([self.left + 1.0, self.top + 1.0])) * (_SIDE / self.side)


class CUBDataModule(PairDataModule):
    """CUB-200-2011 as pairs (see the head of this module); there are test pairs only.

    Args:
        root: the folder ``CUB_200_2011``.
        protocol: ``subsets`` or ``same_class``.
        metadata: folder of the lists and of the mat file for ``subsets``; None for ``cub_metadata`` in the root.
        pairs: number of pairs of ``same_class``.
        others: `PairDataModule`'s arguments.

    Raises:
        DataError: no such folder.
        ConfigError: a setting out of range.
    """

    layout = (
        "images/, images.txt, image_class_labels.txt, train_test_split.txt, bounding_boxes.txt, parts/part_locs.txt"
    )
    splits = ("test",)
    partners: Partners = MappingProxyType({_BIRD: partners_of((7, 11), (8, 12), (9, 13))})
    card = DatasetCard(
        "CUB pairs",
        prompt_simple="a photo of a {category}",
        prompt_fine="a photo of a bird, high quality, best quality, highly realistic, masterpiece, high resolution",
        branches=correspondence_branches(),
        citation="Wah et al., Caltech-UCSD Birds-200-2011; subsets: Ofri-Amar et al., Neural Congealing, CVPR 2023",
        licence="non-commercial research",
    )

    def __init__(
        self, root: str, protocol: str = "subsets", metadata: str | None = None, pairs: int = 1000, **others: Any
    ) -> None:
        super().__init__(**others)
        check_choice(protocol, "dataset.protocol", ("subsets", "same_class"))
        self.root, self.protocol = require_root(root, self.layout, "images"), protocol
        self.metadata = self.root / "cub_metadata" if metadata is None else Path(metadata).expanduser()
        self.count = whole_number(pairs, "dataset.pairs", 1)

    def read(self, split: str) -> Annotated[Pair]:
        """The pairs of the protocol.

        Raises:
            DataError: a table, list or the mat file is missing or broken.
        """
        names = {
            key: f"images/{inner_path(name, 'images.txt')}" for key, (name, *_) in self._table("images.txt", 1).items()
        }
        parts = self._parts()
        return self._subsets(names, parts) if self.protocol == "subsets" else self._same_class(names, parts)

    def _subsets(self, names: Mapping[str, str], parts: Mapping[str, Tensor]) -> Annotated[Pair]:
        lists = [self.metadata / f"cub_subset_{number}_original_paths.txt" for number in range(_SUBSETS)]
        lists = [path for path in lists if path.is_file()]
        if not lists:
            raise DataError(
                f"{self.metadata} has no cub_subset_<0 … 13>_original_paths.txt; give dataset.metadata=<folder>"
            )
        cuts, numbers = self._cuts(), {name: key for key, name in names.items()}
        images: dict[str, PairImage] = {}
        pairs: list[Pair] = []
        without = 0
        for path in lists:
            group = f"subset {int(path.name.split('_')[2]):02d}"
            listed = []
            for line in filter(None, map(str.strip, lines_of(read_text(path)))):
                name = f"images/{inner_path(line, str(path)).rpartition('images/')[2]}"
                if name not in numbers or name not in cuts:
                    raise DataError(
                        f"{path}: {line!r} is not in {'images.txt' if name not in numbers else 'the mat file'}"
                    )
                images[name] = PairImage(self.root / name, _BIRD, (_SIDE, _SIDE), cuts[name])
                located = parts[numbers[name]]
                listed.append((name, torch.cat([cuts[name].points(located[:, :2]), located[:, 2:]], dim=1)))
            for one, two in combinations(listed, 2):
                for first, second in ((one, two), (two, one)):
                    pair = _pair(first, second, ((_SIDE, _SIDE), (_SIDE, _SIDE)), (None, None), group)
                    pairs += [pair] if len(pair) else []
                    without += not len(pair)
        notes = [f"{len(lists)} of the {_SUBSETS} lists are there"] if len(lists) < _SUBSETS else []
        notes += [f"{without} pairs have no visible part in common and count nothing; left out"] if without else []
        # a part beside its bird's box is kept where it is, as in the released protocol
        return Annotated(tuple(pairs), images, notes=tuple(notes), slack=float(_SIDE))

    def _cuts(self) -> dict[str, Cut]:
        path = self.metadata / "acsm_val_cub_cleaned.mat"
        found = read_mat(path, "images")["images"]
        try:
            corners = ("x1", "y1", "x2", "y2")
            return {
                f"images/{entry['rel_path']}": Cut.around(tuple(float(entry["bbox"][corner]) for corner in corners))  # type: ignore[arg-type]
                for entry in found
            }
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path}: images is no list of rel_path and bbox (x1, y1, x2, y2): {error!r}") from error

    def _same_class(self, names: Mapping[str, str], parts: Mapping[str, Tensor]) -> Annotated[Pair]:
        classes = self._table("image_class_labels.txt", 1)
        boxes = self._table("bounding_boxes.txt", 4)
        by_class: dict[str, list[str]] = {}
        for key, (training, *_) in self._table("train_test_split.txt", 1).items():
            if training == "0":
                by_class.setdefault(classes[key][0], []).append(key)
        every = [
            (one, two)
            for keys in by_class.values()
            for one, two in combinations(keys, 2)
            if ((parts[one][:, 2] > 0) & (parts[two][:, 2] > 0)).any()
        ]
        if len(every) < self.count:
            raise DataError(
                f"{self.root}: {len(every)} pairs of test images of one class; ask for fewer: dataset.pairs="
            )
        chosen = sorted(np.random.default_rng(42).choice(len(every), self.count, replace=False).tolist())
        table, pairs = ImageTable(self.root), []
        for one, two in (every[index] for index in chosen):
            sizes = [table.size(names[key], _BIRD) for key in (one, two)]
            if sizes[0] is not None and sizes[1] is not None:
                located = [(names[key], parts[key] - torch.tensor([1.0, 1.0, 0.0])) for key in (one, two)]
                around = [_box(boxes[key], self.root) for key in (one, two)]
                pairs.append(_pair(located[0], located[1], (sizes[0], sizes[1]), (around[0], around[1]), ""))
        return Annotated(tuple(pairs), table.images, table.errors, slack=10.0)

    def _parts(self) -> dict[str, Tensor]:
        """Image's number → x, y (counted from 1) and visibility of its 15 parts, (15, 3)."""
        found: dict[str, list[list[float]]] = {}
        path = self.root / "parts/part_locs.txt"
        for where, (key, part, *values) in self._rows(path, 4):
            located = found.setdefault(key, [])
            if part != str(len(located) + 1):
                raise DataError(f"{where}: part {part} of image {key}; expected parts 1 to {len(PARTS)} in order")
            located.append(_floats(values, where))
        short = [key for key, located in found.items() if len(located) != len(PARTS)]
        if short:
            raise DataError(f"{path}: image {short[0]} has {len(found[short[0]])} parts; expected {len(PARTS)}")
        return {key: torch.tensor(located, dtype=torch.float32) for key, located in found.items()}

    def _table(self, name: str, count: int) -> dict[str, list[str]]:
        """First column → the other ``count`` columns of a table."""
        return {key: values for _, (key, *values) in self._rows(self.root / name, count)}

    def _rows(self, path: Path, count: int) -> Iterator[tuple[str, list[str]]]:
        for number, line in enumerate(lines_of(read_text(path)), start=1):
            cells = line.split()
            if cells and len(cells) != count + 1:
                raise DataError(f"{path}, line {number}: {len(cells)} columns; expected {count + 1}")
            if cells:
                yield f"{path}, line {number}", cells


def _rounded(value: float) -> int:
    """Nearest whole number, halves away from zero."""
    return int(np.copysign(np.floor(abs(value) + 0.5), value))


def _floats(cells: list[str], where: str) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError as error:
        raise DataError(f"{where}: {error}; expected numbers") from None


def _box(cells: list[str], root: Path) -> Box:
    """Corners, counted from 0, of left, top (counted from 1), width and height."""
    left, top, width, height = _floats(cells, f"{root}/bounding_boxes.txt")
    return left - 1, top - 1, left - 1 + width, top - 1 + height


def _pair(
    first: tuple[str, Tensor],
    second: tuple[str, Tensor],
    sizes: tuple[tuple[int, int], tuple[int, int]],
    boxes: tuple[Box | None, Box | None],
    group: str,
) -> Pair:
    seen = (first[1][:, 2] > 0) & (second[1][:, 2] > 0)
    ids = tuple(str(index + 1) for index in torch.nonzero(seen)[:, 0].tolist())
    points = (first[1][seen, :2], second[1][seen, :2])
    return Pair(first[0], second[0], *points, *sizes, *boxes, _BIRD, keypoint_ids=ids, group=group)
