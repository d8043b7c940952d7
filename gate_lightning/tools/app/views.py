"""Views of the page: a marked point, matches with heat maps, principal components as colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.ops.pca import principal_components, to_unit_range
from gate_lightning.tools.matching import DescribedImage, heat_of, matched

__all__ = ["PointMatch", "colours_of", "match_of", "shown", "to_file", "with_mark"]

#: longer side of images on the page, in pixels
SIDE = 512
_INK, _MARK = (255, 255, 255), (230, 30, 60)


@dataclass(frozen=True, eq=False)
class PointMatch:
    """The match of a point in an image.

    Attributes:
        point: x, y in pixels of the file; None where there is none (mutual read-out).
        similarity: cosine of both descriptors.
        image: (h, w, 3) uint8, the image as shown, with or without its heat map, and a mark.
    """

    point: tuple[float, float] | None
    similarity: float
    image: NDArray[np.uint8]


def match_of(
    read_out: ReadOut, source: DescribedImage, target: DescribedImage, point: tuple[float, float], heat: bool
) -> PointMatch:
    """Match of a point of the source in the target, as ``tool=match`` finds it."""
    where = torch.tensor([point], dtype=torch.float32)
    found, similarities = matched(read_out, source.grid, target.grid, where)
    place = tuple(found[0].tolist()) if found.isfinite().all() else None
    image = shown(target.image)
    if heat:
        image = heat_of(read_out, source.grid, where, _resized(target.grid, image), image)
    marked = image if place is None else with_mark(image, place, target.image.shape[:2])
    return PointMatch(place, float(similarities[0]), marked)


def colours_of(images: Sequence[DescribedImage]) -> list[NDArray[np.uint8]]:
    """The first three principal components of descriptors as red, green and blue, of one basis for all images.

    Returns:
        (h, w, 3) uint8 each: a pixel is a position of the feature map.
    """
    maps = []
    for one in images:
        rows, columns = one.grid.inside
        maps.append(one.grid.features[None, :, :rows, :columns].cpu())
    project = principal_components(maps)
    colours = to_unit_range([project(features) for features in maps])
    return [(255 * one[0]).round().to(torch.uint8).permute(1, 2, 0).numpy() for one in colours]


def shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image with `SIDE` pixels on its longer side."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)


def to_file(x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    """A pixel of an image as it is shown, in pixels of its file of ``size`` (height, width); to a hundredth.

    >>> to_file(255.5, 0, (100, 200))  # shown with 256 × 512 pixels
    (99.5, 0.0)
    """
    height, width = (max(1, round(side * SIDE / max(size))) for side in size)
    found = ((x + 0.5) / width * size[1] - 0.5, (y + 0.5) / height * size[0] - 0.5)
    across, down = (min(max(value, 0.0), side - 1.0) for value, side in zip(found, (size[1], size[0]), strict=True))
    return round(across, 2), round(down, 2)


def with_mark(image: NDArray[np.uint8], point: Sequence[float], size: Sequence[int]) -> NDArray[np.uint8]:
    """An image as it is shown with a ring around a point x, y in pixels of its file of ``size`` (height, width)."""
    height, width = image.shape[:2]
    x, y = (point[0] + 0.5) * width / size[1] - 0.5, (point[1] + 0.5) * height / size[0] - 0.5
    canvas = np.ascontiguousarray(image).copy()
    place = (round(16 * x), round(16 * y))  # sixteenths of a pixel
    for colour, thickness in ((_INK, 7), (_MARK, 3)):
        cv2.circle(canvas, place, 16 * 13, colour, thickness, cv2.LINE_AA, shift=4)
    for colour, radius in ((_INK, 5), (_MARK, 3)):
        cv2.circle(canvas, place, 16 * radius, colour, -1, cv2.LINE_AA, shift=4)
    return canvas


def _resized(grid: FeatureGrid, image: NDArray[np.uint8]) -> FeatureGrid:
    """The same feature map of an image of another size."""
    height, width = image.shape[:2]
    scale = grid.scales[0] * grid.size[0] / height, grid.scales[1] * grid.size[1] / width
    return replace(grid, size=(height, width), scale=scale)
