"""``tool=match``: where points of one image are in another one, by frozen features."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gate_lightning.data.correspondence.annotations import points_of
from gate_lightning.errors import DataError
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.neighbours import dense_matches, mutual_neighbours
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.tools.matching import Describer, PartsOf, cosines, heat_of, image_file, matched
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.files import write_csv, write_image
from gate_lightning.visualization.matches import height_of, match_image, match_page

__all__ = ["match"]

CHOSEN = ("spread", "buddies")
#: height of the images in rows of heat maps, in pixels
ROW = 200


@torch.no_grad()
def match(
    parts_of: PartsOf,
    source: str | Path,
    target: str | Path,
    output: str | Path,
    read_out: ReadOut,
    points: str | Sequence[Sequence[float]] = "spread",
    grid: int = 4,
    resize: str = "square",
    size: int | None = None,
    device: str = "auto",
) -> str:
    """Match points of an image with another image, and write what was found.

    Into ``output``: ``matches.csv`` (source_x, source_y, target_x, target_y in pixels of the files, counted from the
    centre of the first pixel, and similarity, the cosine of both descriptors; empty where there is no match),
    ``matches.png`` (lines), ``heat_maps.png`` (similarities of every point over the target, from the smallest to the
    largest one) and ``warp.png`` (the target made of the source's pixels; see `dense_matches`).

    Args:
        parts_of: makes extractor and amalgamation, once images and points have been looked at. The amalgamation is
            without weights, for nobody has trained them.
        source, target: image files.
        output: folder.
        read_out: rule by which matches are read off.
        points: [[x, y], …] in pixels of the source; "spread": the centres of cells; or "buddies": of the mutual nearest
            neighbours in every cell the most similar, with their partners as matches, whatever the read-out.
        grid: the source is divided into grid × grid cells.
        resize, size: how the backbone sees both images, see `Sizing`; None for its native size.
        device: "auto" (a GPU where there is one) or a torch device.

    Returns:
        Summary: number of points and matches, folder.

    Raises:
        DataError: an image that is missing or broken; points that are no pairs of numbers or outside the source.
        ConfigError: settings out of range, or an amalgamation with weights.
    """
    whole_number(grid, "tool.grid", 1)
    files = [image_file(path, name) for path, name in ((source, "source"), (target, "target"))]
    chosen = _points(points, files[0].sizes(0)[0], grid)
    describe = Describer(parts_of, resize, size, device)
    described = [describe(file) for file in files]
    here, there = grids = [one.grid for one in described]
    if chosen is None:
        chosen, found = _buddies(here, there, grid)
        similarities = cosines(here, there, chosen, found)
    else:
        found, similarities = matched(read_out, here, there, chosen)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "matches.csv", chosen, found, similarities)
    _draw(folder, [one.image for one in described], grids, read_out, (chosen, found, similarities))
    count = int(similarities.isfinite().sum())
    return f"{count} of {len(chosen)} points matched, mean similarity {similarities.nanmean():.3f}: {folder}"


def _points(points: str | Sequence[Sequence[float]], size: tuple[int, int], grid: int) -> Tensor | None:
    """Points (N, 2) of an image of ``size`` (H, W); None for those that features choose."""
    height, width = size
    if isinstance(points, str):
        check_choice(points, "points", CHOSEN)
        if points == "buddies":
            return None
        centres = (torch.arange(grid) + 0.5) / grid
        y, x = torch.meshgrid(centres * height - 0.5, centres * width - 0.5, indexing="ij")
        return torch.stack([x, y], dim=-1).view(-1, 2)
    found = points_of(points, "points", "tool=match")
    if not len(found):
        raise DataError("points is empty; expected [[x, y], …], spread or buddies")
    last = found.new_tensor([width - 1, height - 1])
    for index, point in enumerate(found):
        if not ((point >= 0) & (point <= last)).all():
            raise DataError(
                f"points[{index}] = {list(points[index])} is outside the source of {width} × {height} pixels "
                f"(width × height); expected x in 0 … {width - 1} and y in 0 … {height - 1}"
            )
    return found


def _buddies(source: FeatureGrid, target: FeatureGrid, grid: int) -> tuple[Tensor, Tensor]:
    """The most similar mutual nearest neighbours of every cell that has some: points (N, 2) in both images."""
    here, there, cosines = (part.cpu() for part in mutual_neighbours(source, target))
    height, width = source.size
    column, row = (((here + 0.5) / here.new_tensor([width, height])) * grid).floor().long().clamp(0, grid - 1).unbind(1)
    best: dict[int, int] = {}
    for index in cosines.argsort(descending=True, stable=True).tolist():
        best.setdefault(int(row[index] * grid + column[index]), index)
    order = [best[cell] for cell in sorted(best)]
    if not order:
        raise DataError("no two positions of the images are each other's nearest neighbours; name points")
    return here[order], there[order]


def _write_table(path: Path, points: Tensor, matches: Tensor, similarities: Tensor) -> None:
    columns = ["source_x", "source_y", "target_x", "target_y", "similarity"]
    values = torch.cat([points.double(), matches.double(), similarities.double()[:, None]], dim=1)
    rows = [["" if np.isnan(value) else f"{value:.4f}" for value in row] for row in values.tolist()]
    write_csv(path, columns, rows)


def _draw(
    folder: Path,
    images: Sequence[NDArray[np.uint8]],
    grids: Sequence[FeatureGrid],
    read_out: ReadOut,
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the three figures."""
    (source, target), (here, there) = images, grids
    points, matches, similarities = (values.double().numpy() for values in found)
    colours = _colours(len(points))
    lines = match_image(source, target, points, matches, height=height_of(source, target), colours=colours)
    write_image(folder / "matches.png", Image.fromarray(lines))
    row, rows = min(ROW, height_of(source, target)), []
    for index, colour in enumerate(colours):
        one = slice(index, index + 1)
        shown = heat_of(read_out, here, found[0][one], there, target)
        pair = match_image(source, shown, points[one], matches[one], height=row, colours=[colour])
        rows.append((pair, (_text(index, points[index], matches[index], float(similarities[index])), colour)))
    write_image(folder / "heat_maps.png", Image.fromarray(match_page(rows, [])))
    x, y = dense_matches(here, there).cpu().numpy().transpose(2, 0, 1)
    warp = cv2.remap(source, np.ascontiguousarray(x), np.ascontiguousarray(y), cv2.INTER_LINEAR)
    write_image(folder / "warp.png", Image.fromarray(warp))


def _text(index: int, point: NDArray[np.floating], match: NDArray[np.floating], cosine: float) -> str:
    where = "no match" if np.isnan(match).any() else f"({match[0]:.1f}, {match[1]:.1f}), similarity {cosine:.3f}"
    return f"{index + 1}: ({point[0]:.1f}, {point[1]:.1f}) → {where}"


def _colours(count: int) -> list[tuple[int, int, int]]:
    """Hues that are far from each other for neighbouring numbers."""
    made = (colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85, 0.9) for index in range(count))
    return [(round(255 * red), round(255 * green), round(255 * blue)) for red, green, blue in made]
