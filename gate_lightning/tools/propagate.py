"""``tool=propagate``: an edit drawn on one image, carried to other images or a video by frozen features."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.files.frames import Frames, natural_order, open_frames
from gate_lightning.data.files.images import IMAGE_SUFFIXES, opened, read_image
from gate_lightning.data.samples import Sample
from gate_lightning.errors import DataError
from gate_lightning.ops.correspondence.estimators import Estimator
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.homographies import Numbers
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.ops.correspondence.warps import MODELS, Warp, averaged, fitted_warp
from gate_lightning.tools.matching import Describer, PartsOf
from gate_lightning.utils.checks import check_choice, number, whole_number
from gate_lightning.utils.files import write_csv, write_image
from gate_lightning.utils.seeding import data_generator
from gate_lightning.utils.videos import VIDEO_SUFFIXES, write_video
from gate_lightning.visualization.edits import edited, marked
from gate_lightning.visualization.grid import image_grid

__all__ = ["propagate"]

log = logging.getLogger(__name__)

#: images beside the source in the strip
SHOWN = 5
#: fewest inliers, whatever their share
FEWEST = 8
#: similarities that are in memory at once
VALUES = 2**23
#: frames a second of a video that tells none
RATE = 10.0


@dataclass
class _Carried:
    """An image that the edit is carried to."""

    name: str
    image: NDArray[np.uint8]
    matches: Numbers
    warp: Warp | None
    reason: str = ""


@dataclass
class _Output:
    """Files of the folder, written one image after the other."""

    folder: Path
    edit: NDArray[np.uint8]
    shown: frozenset[int]
    rows: list[list[Any]] = field(default_factory=list)
    strip: list[NDArray[np.uint8]] = field(default_factory=list)
    untouched: int = 0

    def write(self, one: _Carried) -> None:
        """Write an image with the edit, or as it is where it could not be carried."""
        result, inliers = one.image, np.zeros(len(one.matches), dtype=bool)
        if one.warp is not None:
            result = edited(one.image, self.edit, one.warp.sources(one.image.shape[:2]))
            inliers = one.warp.inliers
        else:
            self.untouched += 1
            log.warning("%s is left as it is: %s", one.name, one.reason)
        write_image(self.folder / "frames" / f"{one.name}.png", Image.fromarray(result))
        outline = None if one.warp is None else one.warp.outline
        overlay = marked(one.image, outline, one.matches, inliers)
        write_image(self.folder / "overlays" / f"{one.name}.png", Image.fromarray(overlay))
        if len(self.rows) in self.shown:
            self.strip.append(result)
        self.rows.append([one.name, len(one.matches), int(inliers.sum()), one.reason])

    def table(self) -> None:
        """Write the table of the images so far."""
        write_csv(self.folder / "inliers.csv", ["image", "matches", "inliers", "untouched_because"], self.rows)


@torch.no_grad()
def propagate(
    parts_of: PartsOf,
    source: str | Path,
    edit: str | Path,
    input: str | Path,
    output: str | Path,
    read_out: ReadOut,
    model: str = "homography",
    method: str = "ransac",
    threshold: float = 5.0,
    points: int = 1000,
    least_inliers: float = 0.05,
    stiffness: float = 10.0,
    smooth: int = 0,
    resize: str = "square",
    size: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> str:
    """Carry an edit, drawn on one image, to other images or the frames of a video.

    Pixels of the edit are drawn by chance (those with alpha above 0), the nearest neighbour of each is found among the
    pixels of the other image, and the edit is laid over it through the warp that fits them (DIFT's edit propagation).

    Into ``output``: ``frames/<name>.png``, the images with the edit; ``overlays/<name>.png``, where it went and by
    which matches; ``inliers.csv`` (image, matches, inliers, untouched_because); ``strip.png``, the source and some of
    the images side by side; of a video file, too, ``edited.<suffix>``, the frames as a video again (in MPEG-4 where
    its own format is not written), without its sound. An image that the matches support no warp of stays as it is.

    Args:
        parts_of: makes backbone and branches, and what fuses them, without weights.
        source: image file.
        edit: image file of the source's size with an alpha channel.
        input: an image, a folder of images, or a video file.
        output: folder.
        read_out: rule by which the match of a pixel is found; DIFT's is the nearest neighbour.
        model: ``homography``, ``affine`` or ``thin_plate``, see `fitted_warp`.
        method, threshold: of the estimate of the warp, see `Estimator`.
        points: most pixels of the edit that are matched.
        least_inliers: smallest share of them that has to agree with the warp, and 8 at least.
        stiffness: of thin plates: 0 passes through all inliers, much is an affine map.
        smooth: the edit's place is averaged over so many images before and behind, for videos; 0 for none.
        resize, size: how the backbone sees all images, see `Sizing`; None for its native size.
        seed: of the pixels that are drawn.
        device: "auto" (a GPU where there is one) or a torch device.

    Returns:
        Summary: number of images, how many were left as they are, folder.

    Raises:
        DataError: an image that is missing or broken (images before it are written); an edit without alpha, of another
            size, or with nothing on it.
        ConfigError: settings out of range, or an amalgamation with weights, which nobody has trained.
    """
    check_choice(model, "tool.model", MODELS)
    whole_number(points, "tool.points", 4)
    whole_number(smooth, "tool.smooth")
    number(least_inliers, "tool.least_inliers", 0.0, 1.0)
    number(stiffness, "tool.stiffness", 0.0)
    first, layer = _drawn(Path(source).expanduser(), Path(edit).expanduser())
    images, count, film = _images(Path(input).expanduser())
    chosen, box = _chosen(layer, points, seed)
    rule = Estimator(method, threshold)
    describe = Describer(parts_of, resize, size, device)

    def fitted(there: FeatureGrid) -> tuple[Numbers, Warp | None, str]:
        matches = _matched(read_out, here, there, chosen)
        there_are = np.isfinite(matches).all(axis=1)
        matches = matches[there_are]
        warp = fitted_warp(model, rule, chosen[there_are], matches, box, stiffness)
        if isinstance(warp, str):
            return matches, None, warp
        reason = warp.fault or _too_few(warp, least_inliers)
        return matches, None if reason else warp, reason

    here = describe.grid_of(Sample(Path(source).name, first))
    folder = Path(output)
    shown = frozenset(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist())
    written = _Output(folder, layer, shown)
    found = (_Carried(name, image, *fitted(describe.grid_of(Sample(name, image)))) for name, image in images())
    try:
        for one in _smoothed(found, smooth):
            written.write(one)
            log.info("%d/%d %s", len(written.rows), count, one.name)
    finally:
        if written.rows:
            written.table()
    _write_strip(folder / "strip.png", edited(first, layer), written)
    if film is not None:
        _write_video(folder, film, written)
    left = f", {written.untouched} of them left as they are (inliers.csv says why)" if written.untouched else ""
    return f"{len(written.rows)} images{left}: {folder}"


def _drawn(source: Path, edit: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The source (H, W, 3) and the edit (H, W, 4)."""
    image = read_image(source)
    with opened(edit) as file:
        has_alpha = file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info
        layer = np.array(ImageOps.exif_transpose(file).convert("RGBA"))
        mode = file.mode
    if not has_alpha:
        raise DataError(
            f"edit={edit} has no alpha channel (colour mode {mode}); save it as RGBA PNG, transparent where nothing is "
            "drawn"
        )
    if layer.shape[:2] != image.shape[:2]:
        raise DataError(
            f"edit={edit} has {layer.shape[1]}×{layer.shape[0]} pixels (width × height) and the source {source} "
            f"{image.shape[1]}×{image.shape[0]}; draw it on an image of the source's size"
        )
    if not layer[..., 3].any():
        raise DataError(f"edit={edit} is transparent everywhere; there is nothing to carry")
    return image, layer


def _images(path: Path) -> tuple[Callable[[], Iterator[tuple[str, NDArray[np.uint8]]]], int, Frames | None]:
    """Names and images of a file or folder of images or of a video, one after the other; their number; the video."""
    if path.is_dir() or (path.suffix.lower() in IMAGE_SUFFIXES and path.suffix.lower() != ".gif"):
        images = ImageSource(path)
        order = sorted(
            range(len(images)), key=lambda index: (images.paths[index].parent, natural_order(images.paths[index]))
        )
        return lambda: ((images.names[index], images.load(index).image) for index in order), len(order), None
    frames = open_frames(path)
    return lambda: ((frames.name(index), image) for index, image in enumerate(frames)), len(frames), frames


def _chosen(layer: NDArray[np.uint8], most: int, seed: int) -> tuple[Numbers, Numbers]:
    """Pixels x, y (N, 2) of the edit, and the corners (4, 2) of the box around all of it."""
    rows, columns = np.nonzero(layer[..., 3])
    pixels = np.stack([columns, rows], axis=1).astype(np.float64)
    (left, top), (right, bottom) = (pixels.min(axis=0) - 0.5).tolist(), (pixels.max(axis=0) + 0.5).tolist()
    drawn = data_generator("pixels of an edit", seed).permutation(len(pixels))[:most]
    return pixels[np.sort(drawn)], np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _matched(read_out: ReadOut, here: FeatureGrid, there: FeatureGrid, points: Numbers) -> Numbers:
    """Nearest neighbours (N, 2) of points among the pixels of an image, without a map of vectors at its size."""
    block = max(1, VALUES // (there.size[0] * there.size[1]))
    found = [read_out(here, there, part).cpu() for part in torch.from_numpy(points).split(block)]
    return torch.cat(found).numpy()


def _too_few(warp: Warp, least: float) -> str:
    """Reason why a warp has too few inliers, "" where it has enough."""
    inliers, matches = int(warp.inliers.sum()), len(warp.inliers)
    wanted = min(max(FEWEST, round(least * matches)), matches)
    if inliers >= wanted:
        return ""
    return f"{inliers} of {matches} matches agree with its {warp.model}, fewer than {wanted} (tool.least_inliers)"


def _smoothed(found: Iterator[_Carried], reach: int) -> Iterator[_Carried]:
    """Images with the places of their edits averaged over their neighbours, as soon as these are known.

    Where an image cannot be read, those before it come out first.
    """
    if not reach:
        yield from found
        return
    near: deque[tuple[int, _Carried]] = deque()
    last, failed = -1, None
    while failed is None:
        try:
            one = next(found)
        except StopIteration:
            break
        except DataError as error:
            failed = error
            break
        last += 1
        near.append((last, one))
        if last >= reach:
            yield _with_neighbours(near, last - reach, reach)
        while near[0][0] < last - 2 * reach:
            near.popleft()
    for index in range(max(0, last - reach + 1), last + 1):
        yield _with_neighbours(near, index, reach)
    if failed is not None:
        raise failed


def _with_neighbours(near: Sequence[tuple[int, _Carried]], index: int, reach: int) -> _Carried:
    """Image ``index``, its edit where those of its neighbours are in the mean (Gaussian weights)."""
    (one,) = (carried for place, carried in near if place == index)
    if one.warp is None:
        return one
    others = [(place - index, carried.warp) for place, carried in near if abs(place - index) <= reach]
    known = [(offset, warp) for offset, warp in others if warp is not None]
    weights = [float(np.exp(-0.5 * (2 * offset / reach) ** 2)) for offset, _ in known]
    warp = averaged([warp for _, warp in known], weights, one.warp)
    fault = warp.fault
    return _Carried(one.name, one.image, one.matches, None if fault else warp, fault)


def _write_strip(path: Path, drawn: NDArray[np.uint8], written: _Output) -> None:
    names = [row[0] for index, row in enumerate(written.rows) if index in written.shown]
    strip = image_grid([[drawn, *written.strip]], ["edit on the source", *names], tile_height=240, smooth=True)
    write_image(path, Image.fromarray(strip))


def _write_video(folder: Path, film: Frames, written: _Output) -> None:
    """Frames with the edit as a video, read back one after the other: there may be too many for memory."""
    suffix = film.path.suffix.lower()
    frames = (read_image(folder / "frames" / f"{row[0]}.png") for row in written.rows)
    write_video(folder / f"edited{suffix if suffix in VIDEO_SUFFIXES else '.mp4'}", frames, film.rate or RATE)
