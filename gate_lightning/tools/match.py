"""``tool=match``: where points of one image are in another one, by frozen features."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.correspondence.annotations import points_of
from gate_lightning.data.samples import BatchDataset, SampleRequest
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.descriptors import descriptor_grids
from gate_lightning.heads.descriptors import PlainDescriptors
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.neighbours import dense_matches, mutual_neighbours
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.structures import Extractor
from gate_lightning.tools.devices import device_of
from gate_lightning.tools.extraction.sizing import Sizing
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.files import write_csv, write_image
from gate_lightning.visualization.heat import heat_overlay
from gate_lightning.visualization.matches import height_of, match_image, match_page

__all__ = ["match"]

CHOSEN = ("spread", "buddies")
#: height of the images in rows of heat maps, in pixels
ROW = 200


@torch.no_grad()
def match(
    extractor: Extractor,
    amalgamation: Amalgamation,
    source: str | Path,
    target: str | Path,
    output: str | Path,
    read_out: ReadOut,
    points: str | Sequence[Sequence[float]] = "spread",
    grid: int = 4,
    resize: str = "square",
    size: int | None = None,
    device: str = "auto",
    required_inputs: RequiredInputs | None = None,
) -> str:
    """Match points of an image with another image, and write what was found.

    Into ``output``: ``matches.csv`` (source_x, source_y, target_x, target_y in pixels of the files, counted from the
    centre of the first pixel, and similarity, the cosine of both descriptors; empty where there is no match),
    ``matches.png`` (lines), ``heat_maps.png`` (similarities of every point over the target, from the smallest to the
    largest one) and ``warp.png`` (the target made of the source's pixels; see `dense_matches`).

    Args:
        extractor: frozen backbone and branches.
        amalgamation: fuses the branches; without weights, for nobody has trained them.
        source, target: image files.
        output: folder.
        read_out: rule by which matches are read off.
        points: [[x, y], …] in pixels of the source; "spread": the centres of cells; or "buddies": of the mutual nearest
            neighbours in every cell the most similar, with their partners as matches, whatever the read-out.
        grid: the source is divided into grid × grid cells.
        resize, size: how the backbone sees both images, see `Sizing`; None for its native size.
        device: "auto" (a GPU where there is one) or a torch device.
        required_inputs: control images and captions that techniques need.

    Returns:
        Summary: number of points and matches, folder.

    Raises:
        DataError: an image that is missing or broken; points that are no pairs of numbers or outside the source.
        ConfigError: settings out of range, or an amalgamation with weights.
    """
    whole_number(grid, "tool.grid", 1)
    sizing = Sizing(resize, extractor.backbone.native_size if size is None else size)
    head = _plain_head(amalgamation)
    files = [_file(path, name) for path, name in ((source, "source"), (target, "target"))]
    chosen = _points(points, files[0].sizes(0)[0], grid)
    if isinstance(extractor, nn.Module):
        extractor.to(device_of(device))
    grids = [_grid(file, extractor, amalgamation, head, sizing, required_inputs or RequiredInputs()) for file in files]
    images = [file.load(0).image for file in files]
    here, there = grids
    if chosen is None:
        chosen, found = _buddies(here, there, grid)
    else:  # one by one: similarities to a large image fill memory
        found = torch.cat([read_out(here, there, point).cpu() for point in chosen.split(1)])
    cosines = cosine_similarity(here.sample(chosen), there.sample(found.nan_to_num())).cpu()
    cosines = cosines.where(found.isfinite().all(dim=1), torch.nan)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "matches.csv", chosen, found, cosines)
    _draw(folder, images, grids, read_out, (chosen, found, cosines))
    matched = int(cosines.isfinite().sum())
    return f"{matched} of {len(chosen)} points matched, mean similarity {cosines.nanmean():.3f}: {folder}"


def _plain_head(amalgamation: Any) -> PlainDescriptors:
    """What makes descriptors of the pyramid."""
    if not isinstance(amalgamation, Amalgamation):
        raise ConfigError(f"amalgamation is a {type(amalgamation).__name__}, and makes no feature maps; use concat")
    if any(parameter.requires_grad for parameter in amalgamation.parameters()):
        raise ConfigError("the amalgamation has weights that nobody has trained; use amalgamation=concat")
    return PlainDescriptors(amalgamation.out_channels)


def _file(path: str | Path, name: str) -> ImageSource:
    file = Path(path).expanduser()
    if not file.is_file():
        found = "is a folder" if file.is_dir() else "does not exist"
        raise DataError(f"{name}={path} {found} (= {file.resolve()}); give an image")
    return ImageSource(file)


def _grid(
    file: ImageSource,
    extractor: Extractor,
    amalgamation: Amalgamation,
    head: PlainDescriptors,
    sizing: Sizing,
    required_inputs: RequiredInputs,
) -> FeatureGrid:
    """Descriptors of an image."""
    batch = BatchDataset(required_inputs.attach(file), sizing)[[SampleRequest(0)]]
    place = extractor.backbone.device
    images, conditions = batch.images.to(place), batch.conditions.to(place)
    (grid,) = descriptor_grids(extractor, amalgamation, head, images, conditions, file.sizes(0))
    return grid


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


def _write_table(path: Path, points: Tensor, matches: Tensor, cosines: Tensor) -> None:
    columns = ["source_x", "source_y", "target_x", "target_y", "similarity"]
    values = torch.cat([points.double(), matches.double(), cosines.double()[:, None]], dim=1)
    rows = [["" if np.isnan(value) else f"{value:.4f}" for value in row] for row in values.tolist()]
    write_csv(path, columns, rows)


def _draw(
    folder: Path,
    images: Sequence[NDArray[np.uint8]],
    grids: Sequence[FeatureGrid],
    read_out: ReadOut,
    found: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Write the three pictures."""
    (source, target), (here, there) = images, grids
    points, matches, cosines = (values.double().numpy() for values in found)
    colours = _colours(len(points))
    lines = match_image(source, target, points, matches, height=height_of(source, target), colours=colours)
    write_image(folder / "matches.png", Image.fromarray(lines))
    row, rows = min(ROW, height_of(source, target)), []
    whole = ReadOut(metric=read_out.metric, query=read_out.query)  # over the file's pixels, whatever the rule
    for index, colour in enumerate(colours):
        one = slice(index, index + 1)
        heat = whole.similarities(whole.descriptors(here, found[0][one].to(here.features.device)), there)[0]
        shown = heat_overlay(target, heat.cpu().numpy())
        pair = match_image(source, shown, points[one], matches[one], height=row, colours=[colour])
        rows.append((pair, (_text(index, points[index], matches[index], float(cosines[index])), colour)))
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
