"""Overlays of label maps on images, error maps, and the files of a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.errors import ConfigError
from gate_lightning.utils.files import write_image
from gate_lightning.visualization.grid import with_legend
from gate_lightning.visualization.palette import IGNORED_COLOUR, Palette, colorize, palette_array

__all__ = ["WRONG_COLOUR", "error_map", "legend_entries", "overlay", "write_mask", "write_prediction"]

#: colour of wrongly labelled pixels in error maps
WRONG_COLOUR = (214, 39, 40)


def overlay(image: NDArray[np.uint8], labels: NDArray[np.integer], palette: Palette) -> NDArray[np.uint8]:
    """Image tinted with the colours of its labels, half and half.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) class indices.
        palette: colour per class.

    Raises:
        ConfigError: if the sizes differ.
        DataError: if a label has no colour.
    """
    _check_sizes(image, labels)
    return np.rint(0.5 * image + 0.5 * colorize(labels, palette)).astype(np.uint8)


def error_map(
    image: NDArray[np.uint8],
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    ignore_index: int | None = None,
) -> NDArray[np.uint8]:
    """Error map: wrong pixels in red, correct ones as a pale grey image, ignored ones dark.

    Args:
        image: (H, W, 3) uint8 RGB.
        prediction, truth: (H, W) class indices.
        ignore_index: label of ``truth`` that is not judged.

    Raises:
        ConfigError: if the sizes differ.
    """
    _check_sizes(image, prediction)
    _check_sizes(image, truth)
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    image = np.repeat((160.0 + grey[..., None] * (85.0 / 255.0)), 3, axis=2).astype(np.uint8)
    image[prediction != truth] = WRONG_COLOUR
    if ignore_index is not None:
        image[truth == ignore_index] = IGNORED_COLOUR
    return image


def legend_entries(
    labels: Sequence[NDArray[np.integer]], classes: Sequence[str], palette: Palette, most: int = 24
) -> list[tuple[str, tuple[int, int, int]]]:
    """Name and colour of the classes that occur in label maps, largest area first, at most ``most``."""
    areas = sum(np.bincount(m[(m >= 0) & (m < len(classes))].ravel(), minlength=len(classes)) for m in labels)
    colours = palette_array(palette)
    order = [int(k) for k in np.argsort(-np.asarray(areas), kind="stable") if np.asarray(areas)[k] > 0]
    return [(classes[k], (int(colours[k][0]), int(colours[k][1]), int(colours[k][2]))) for k in order[:most]]


def write_mask(path: Path, labels: NDArray[np.integer], palette: Palette) -> None:
    """Write class indices as a PNG with a palette: an index image for programs, coloured for people.

    Args:
        path: ``.png`` file; its folder is created.
        labels: (H, W) indices 0 … 255.
        palette: colour per class.

    Raises:
        ConfigError: if an index does not fit into a byte.
    """
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ConfigError(f"labels {labels.min()} … {labels.max()} do not fit into an 8-bit index image")
    image = Image.fromarray(labels.astype(np.uint8))
    # all 256 entries: with fewer, Pillow writes fewer bits a pixel and cuts larger indices (255, say) down
    entries = np.full((256, 3), IGNORED_COLOUR, np.uint8)
    colours = palette_array(palette)[:256]
    entries[: len(colours)] = colours
    image.putpalette(entries.tobytes())
    write_image(path, image)


def write_prediction(
    output: Path,
    name: str,
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    palette: Palette,
    classes: Sequence[str],
) -> None:
    """Write ``masks/<name>.png`` (class indices) and ``overlays/<name>.png`` (image, tint, legend).

    The mask is written last: where it exists, the image is done.

    Args:
        output: folder.
        name: file name without extension, with sub-folders if the images have them.
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) class indices.
        palette: colour per class.
        classes: name per class.
    """
    tinted = overlay(image, labels, palette)
    # enlarged by whole pixels where it is tiny: the overlay is for people, the mask for programs
    factor = max(1, 256 // min(tinted.shape[:2]))
    tinted = tinted.repeat(factor, axis=0).repeat(factor, axis=1)
    tinted = with_legend(tinted, legend_entries([labels], classes, palette))
    write_image(output / "overlays" / f"{name}.png", Image.fromarray(tinted))
    write_mask(output / "masks" / f"{name}.png", labels, palette)


def _check_sizes(image: NDArray[np.uint8], labels: NDArray[np.integer]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[:2] != labels.shape:
        raise ConfigError(
            f"image {image.shape} and labels {labels.shape} differ in size; expected (H, W, 3) and (H, W)"
        )
