"""Pairs as the files of a data set describe them: reading of points and boxes, and the checks of a split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from gate_lightning.data.correspondence.images import PairImage
from gate_lightning.data.files.checks import check_images
from gate_lightning.data.files.images import image_header
from gate_lightning.data.files.report import SplitReport
from gate_lightning.errors import DataError
from gate_lightning.structures import ImagePair, Pair
from gate_lightning.utils.checks import check_choice

__all__ = [
    "Annotated",
    "AnyPair",
    "Box",
    "box_of",
    "check_files",
    "check_pairs",
    "field_of",
    "first_of",
    "numbers_of",
    "points_of",
    "size_of",
]

Box = tuple[float, float, float, float]
AnyPair = TypeVar("AnyPair", bound=ImagePair)


@dataclass(frozen=True)
class Annotated(Generic[AnyPair]):
    """A split as its annotation files have it.

    Attributes:
        pairs: in the files' order.
        images: sample id → image, of all images that occur in pairs.
        errors: sentences about files that could not be read, each naming the first and how many there are.
        notes: facts for the report of the check.
        without_points: the pairs are there to be looked at, and none has keypoints.
        slack: pixels beyond the centres of the outermost ones that a keypoint may lie: annotations that count from 1,
            and rounding; more where a data set is known for points beside its images.
    """

    pairs: tuple[AnyPair, ...]
    images: Mapping[str, PairImage]
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    without_points: bool = False
    slack: float = 1.0


def field_of(entry: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Entry ``name`` of a JSON object.

    Raises:
        DataError: missing, or of another type.
    """
    if name not in entry:
        raise DataError(f"{where} has no {name!r}; found {', '.join(map(repr, entry)) or 'nothing'}")
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise DataError(f"{where}: {name} is {value!r:.60}; expected {' or '.join(one.__name__ for one in kinds)}")
    return value


def numbers_of(value: Any, name: str, where: str, count: int | None = None) -> list[float]:
    """A list of finite numbers.

    Raises:
        DataError: anything else, or not ``count`` of them.
    """
    wrong = not isinstance(value, list | tuple) or any(
        isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) for one in value
    )
    if wrong or (count is not None and len(value) != count):
        wanted = "a list of numbers" if count is None else f"{count} numbers"
        raise DataError(f"{where}: {name} is {value!r:.80}; expected {wanted}")
    return [float(one) for one in value]


def points_of(value: Any, name: str, where: str) -> Tensor:
    """Points [[x, y], …] of a JSON file as (N, 2) float32.

    Raises:
        DataError: no list of pairs of finite numbers.
    """
    if not isinstance(value, list | tuple):
        raise DataError(f"{where}: {name} is {value!r:.80}; expected [[x, y], …]")
    try:
        points = np.array(value)  # much faster than row by row
    except ValueError:
        points = np.empty(0, dtype=object)
    if points.dtype.kind not in "iuf" or points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        rows = [numbers_of(row, f"{name}[{index}]", where, 2) for index, row in enumerate(value)]
        points = np.array(rows).reshape(-1, 2)
    return torch.from_numpy(points.astype(np.float32))


def box_of(value: Any, name: str, where: str) -> Box:
    """Corners [x1, y1, x2, y2] of a JSON file.

    Raises:
        DataError: not four finite numbers.
    """
    left, top, right, bottom = numbers_of(value, name, where, 4)
    return left, top, right, bottom


def size_of(entry: Mapping[str, Any], name: str, where: str) -> tuple[int, int]:
    """(H, W) of an entry [W, H, …].

    Raises:
        DataError: no list of whole numbers from 1.
    """
    value = entry.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(type(side) is int and side > 0 for side in value[:2]):
        raise DataError(f"{where}: {name} is {value!r:.60}; expected [width, height]")
    return value[1], value[0]


def check_pairs(split: str, annotated: Annotated[Pair], level: str = "quick", by_category: bool = False) -> SplitReport:
    """Check one split: images, sizes, points, boxes, categories, duplicates.

    Args:
        split: name.
        annotated: what its files say.
        level: ``quick`` (all headers, some images decoded) or ``full`` (all decoded).
        by_category: the data set's prompt names the category, so that every image needs one.

    Raises:
        ConfigError: unknown level.
    """
    outside, rounded = _outside(split, annotated.pairs, annotated.slack)
    errors = [*outside, *_no_points(split, annotated), *_no_area(split, annotated), *_twice(split, annotated)]
    if by_category:
        errors += _no_category(split, annotated)
    return check_files(split, annotated, level, errors, rounded)


def check_files(
    split: str, annotated: Annotated[Any], level: str, errors: Sequence[str] = (), warnings: Sequence[str] = ()
) -> SplitReport:
    """Check the images of a split, whatever its pairs say of them.

    Args:
        split: name.
        annotated: what its files say.
        level: ``quick`` (all headers, some images decoded) or ``full`` (all decoded).
        errors, warnings: what else was found.

    Raises:
        ConfigError: unknown level.
    """
    check_choice(level, "level", ("quick", "full"))
    files = [image for image in annotated.images.values() if image.drawn is None]
    there = [image for image in files if image.path.is_file()]
    missing = [image.path for image in files if not image.path.is_file()]
    absent = []
    if missing:
        absent = [f"{split}: {len(missing)} of {len(files)} images are missing, the first is {missing[0]}"]
    report = check_images(split, sorted({image.path for image in there}), level)
    drawn = len(annotated.images) - len(files)
    sizes = Counter(image.size for image in annotated.images.values() if image.drawn is not None and image.size)
    found = (*annotated.errors, *absent, *_sizes(split, there), *errors, *report.errors)
    return replace(
        report,
        count=report.count + drawn,
        inspected=report.inspected + drawn,
        errors=tuple(dict.fromkeys(found)),
        warnings=(*report.warnings, *warnings, *annotated.notes),
        sizes=Counter(report.sizes) + sizes,
    )


def _sizes(split: str, images: Iterable[PairImage]) -> list[str]:
    """Error about images whose size is not that of their annotation."""
    wrong = []
    for image in images:
        if image.size is not None and image.is_whole_file:
            try:
                found = image_header(image.path).size
            except DataError:
                continue  # told of by the check of the images
            if found != image.size:
                wrong.append(
                    f"{image.path} has {found[1]}×{found[0]} pixels (width × height), its annotation says "
                    f"{image.size[1]}×{image.size[0]}"
                )
    if not wrong:
        return []
    return [f"{first_of(split, wrong, 'images')}; points would not fit: use the images as they were published"]


def _outside(split: str, pairs: Sequence[Pair], slack: float) -> tuple[list[str], list[str]]:
    """Errors about keypoints outside their images, and warnings about those that are so by rounding."""
    if not any(map(len, pairs)):
        return [], []
    names = [name for pair in pairs for name in (pair.source, pair.target)]
    sizes = torch.tensor([size for pair in pairs for size in (pair.source_size, pair.target_size)])
    counts = torch.tensor([len(pair) for pair in pairs for _ in range(2)])
    points = torch.cat([both for pair in pairs for both in (pair.source_points, pair.target_points)])
    owner = torch.repeat_interleave(torch.arange(len(names)), counts)
    beyond = torch.maximum(-points, points - (sizes[owner].flip(1) - 1)).amax(dim=1)
    near = int(((beyond > 0.5) & (beyond <= slack)).sum())  # half a pixel around a centre is still the pixel
    far = torch.nonzero(beyond > slack)[:, 0].tolist()
    errors = []
    if far:
        (x, y), (height, width) = points[far[0]].tolist(), sizes[owner[far[0]]].tolist()
        first = f"{names[owner[far[0]]]}: keypoint ({x:g}, {y:g}) is outside the image of {width}×{height} pixels"
        errors = [f"{first_of(split, [first] * len(far), 'keypoints')}; correct the annotation"]
    rounded = f"{split}: {near} keypoints lie up to {slack:g} pixels outside their image; they are taken as they are"
    return errors, [rounded] if near else []


def _no_points(split: str, annotated: Annotated[Pair]) -> list[str]:
    if annotated.without_points:
        return []
    found = [f"{pair.source} → {pair.target}: no keypoints in common" for pair in annotated.pairs if not len(pair)]
    return (
        [f"{first_of(split, found, 'pairs')}; leave such pairs out: nothing can be measured on them"] if found else []
    )


def _no_area(split: str, annotated: Annotated[Pair]) -> list[str]:
    found = [
        f"{name}: the box {list(box)} of {pair.source} → {pair.target} has no area"
        for pair in annotated.pairs
        for name, box in ((pair.source, pair.source_box), (pair.target, pair.target_box))
        if box is not None and not (box[0] < box[2] and box[1] < box[3])
    ]
    return [f"{first_of(split, found, 'boxes')}; expected x1 < x2 and y1 < y2"] if found else []


def _no_category(split: str, annotated: Annotated[Pair]) -> list[str]:
    found = [f"{name}: no category" for name, image in annotated.images.items() if not image.category]
    advice = "the prompt names it; give every pair one, or set dataset.prompt_simple='a photo'"
    return [f"{first_of(split, found, 'images')}; {advice}"] if found else []


def _twice(split: str, annotated: Annotated[Pair]) -> list[str]:
    counts = Counter(
        (pair.source, pair.target, pair.category, pair.group, pair.attributes.get("flip")) for pair in annotated.pairs
    )
    found = [f"{one[0]} → {one[1]} is there {count} times" for one, count in counts.items() if count > 1]
    return [f"{first_of(split, found, 'pairs')}; keep one of each"] if found else []


def first_of(split: str, found: Sequence[str], what: str) -> str:
    """The first of several sentences, and how many more there are."""
    more = f" ({len(found)} such {what} in {split})" if len(found) > 1 else f" ({split})"
    return f"{found[0]}{more}"
