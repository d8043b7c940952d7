"""Images as data URIs, small enough for a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.errors import DataError
from gate_lightning.visualization.examples import IGNORED, read_examples
from gate_lightning.visualization.heat import heat_map
from gate_lightning.visualization.overlay import error_map, legend_entries
from gate_lightning.visualization.palette import IGNORED_COLOUR, Palette, palette_array
from gate_lightning.visualization.predictions import PredictedImage, uncertainty_range

__all__ = ["Example", "Layer", "examples_of", "image_uri"]

#: pixels of the longer side of an example in the page
LONGEST = 448
#: pixels of the width of a chart or grid in the page
WIDEST = 1500
#: pixels of an image that is read
LARGEST = 64_000_000


@dataclass(frozen=True)
class Layer:
    """A stop of an example's slider: name, image, and whether its pixels are to be seen."""

    name: str
    uri: str
    sharp: bool


@dataclass(frozen=True)
class Example:
    """An image with its layers, from first to last stop of the slider."""

    name: str
    miou: float | None
    size: tuple[int, int]
    layers: tuple[Layer, ...]


def examples_of(folder: Path) -> tuple[list[Example], list[tuple[str, str]]]:
    """Examples in a folder, and name and colour (``#rrggbb``) of the classes that occur; both empty where none are.

    Raises:
        DataError: a file is missing or damaged.
    """
    found = read_examples(folder)
    if found is None or not found.rows:
        return [], []
    maps = [labels for row in found.rows for labels in (row.prediction, row.truth[row.truth != IGNORED])]
    legend = legend_entries(maps, found.classes, found.palette)
    heat = [row.uncertainty for row in found.rows if row.uncertainty is not None]
    bright, title = uncertainty_range(heat) if heat else (1.0, "")
    made = [_example(row, found.palette, bright, title) for row in found.rows]
    return made, [(name, "#{:02x}{:02x}{:02x}".format(*colour)) for name, colour in legend]


def image_uri(path: Path) -> tuple[str, tuple[int, int]]:
    """An image file of the run folder as a data URI, at most `WIDEST` pixels wide, and its size there.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > LARGEST:
                raise DataError(f"{path} has {image.width} × {image.height} pixels, expected at most {LARGEST:,}")
            shown = image.convert("RGB")
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
        raise DataError(f"{path} cannot be read: {error}") from error
    if shown.width > WIDEST:
        shown = shown.resize((WIDEST, max(1, round(shown.height * WIDEST / shown.width))), Image.Resampling.LANCZOS)
    return _uri(shown, "WEBP", quality=82, method=4), shown.size


def _example(row: PredictedImage, palette: Palette, bright: float, title: str) -> Example:
    height, width = row.truth.shape
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    layers = [
        Layer("image", _jpeg(_sized(row.image, size, cv2.INTER_AREA)), False),
        Layer("truth", _labels(row.truth, palette, size), True),
        Layer("prediction", _labels(row.prediction, palette, size), True),
        Layer("errors", _jpeg(_sized(error_map(row.image, row.prediction, row.truth, IGNORED), size)), True),
    ]
    if row.uncertainty is not None:
        layers.append(Layer(f"{title} nats", _jpeg(_sized(heat_map(row.uncertainty, bright), size)), True))
    return Example(row.name, row.miou, size, tuple(layers))


def _sized(image: NDArray[np.uint8], size: tuple[int, int], method: int = cv2.INTER_NEAREST) -> Image.Image:
    return Image.fromarray(np.asarray(cv2.resize(image, size, interpolation=method), dtype=np.uint8))


def _jpeg(image: Image.Image) -> str:
    return _uri(image, "JPEG", quality=88, subsampling=0)  # red pixels keep their places


def _labels(labels: NDArray[np.int64], palette: Palette, size: tuple[int, int]) -> str:
    """A label map in the colours of its classes, as an image of indices, which is small."""
    image = _sized(labels.astype(np.uint8), size)
    entries = np.full((256, 3), IGNORED_COLOUR, np.uint8)
    entries[: len(palette)] = palette_array(palette)
    image.putpalette(entries.tobytes())
    return _uri(image, "PNG", optimize=True)


def _uri(image: Image.Image, kind: str, **settings: Any) -> str:
    content = io.BytesIO()
    image.save(content, format=kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
