"""Images side by side, with titles and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gate_lightning.errors import ConfigError

__all__ = ["fit", "image_grid", "with_legend"]

BACKGROUND = (255, 255, 255)
INK = (20, 20, 20)
GAP = 6

#: name and RGB colour
LegendEntry = tuple[str, tuple[int, int, int]]


def fit(image: NDArray[np.uint8], height: int, width: int, smooth: bool = False) -> NDArray[np.uint8]:
    """An image scaled to fit into (height, width) without changing its aspect, on white.

    Args:
        image: (h, w, 3) uint8.
        height, width: of the result.
        smooth: interpolate (photographs). Otherwise pixels stay hard-edged, as for label maps and features whose
            resolution should be seen.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = (cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC) if smooth else cv2.INTER_NEAREST
    scaled = cv2.resize(image, size, interpolation=method)
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = scaled
    return canvas


def image_grid(
    rows: Sequence[Sequence[NDArray[np.uint8] | None]],
    column_titles: Sequence[str],
    row_titles: Sequence[str] = (),
    legend: Sequence[LegendEntry] = (),
    tile_height: int = 160,
    smooth: Sequence[bool] | bool = False,
) -> NDArray[np.uint8]:
    """A table of images.

    Args:
        rows: images (h, w, 3) uint8 of any size, or None for an empty cell; as many a row as there are titles.
        column_titles: written above the columns; long ones are broken at spaces and slashes.
        row_titles: written below the first image of each row, or none.
        legend: names and colours written below.
        tile_height: pixels of a cell; its width follows from the widest aspect (at most 2:1).
        smooth: per column, or for all: whether images are interpolated (see `fit`).

    Returns:
        (H, W, 3) uint8.

    Raises:
        ConfigError: if a row's length is not that of the titles.
    """
    for row in rows:
        if len(row) != len(column_titles):
            raise ConfigError(f"a row has {len(row)} images for {len(column_titles)} titles")
    flags = [smooth] * len(column_titles) if isinstance(smooth, bool) else list(smooth)
    aspects = [cell.shape[1] / cell.shape[0] for row in rows for cell in row if cell is not None]
    width = round(tile_height * min(max(aspects, default=1.0), 2.0))
    titles = [_text_block(title, width, 13, bold=True) for title in column_titles]
    header_height = max(title.shape[0] for title in titles)
    header = [_bottom_aligned(title, header_height, width) for title in titles]
    lines = [_join(header, axis=1)]
    for number, row in enumerate(rows):
        blank = np.full((tile_height, width, 3), BACKGROUND, np.uint8)
        cells = [blank if c is None else fit(c, tile_height, width, s) for c, s in zip(row, flags, strict=True)]
        lines.append(_join(cells, axis=1))
        if row_titles:
            lines.append(_text_block(row_titles[number], lines[-1].shape[1], 11))
    return with_legend(_framed(_join(lines, axis=0)), legend)


def with_legend(image: NDArray[np.uint8], entries: Sequence[LegendEntry]) -> NDArray[np.uint8]:
    """An image with named colour patches below it; unchanged without entries."""
    if not entries:
        return image
    width = max(image.shape[1], 160)
    font = _font(13)
    placed: list[tuple[int, int, LegendEntry]] = []
    x, y, line_height = GAP, GAP, 22
    for entry in entries:
        needed = 20 + round(font.getlength(entry[0])) + 14
        if x > GAP and x + needed > width:
            x, y = GAP, y + line_height
        placed.append((x, y, entry))
        x += needed
    widest = max(left + 34 + round(font.getlength(name)) for left, _, (name, _) in placed)
    strip = Image.new("RGB", (max(width, widest), y + line_height + 2), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for left, top, (name, colour) in placed:
        draw.rectangle((left, top + 1, left + 14, top + 15), fill=colour, outline=INK)
        draw.text((left + 20, top + 8), name, fill=INK, font=font, anchor="lm")
    return _join([image, np.asarray(strip)], axis=0, gap=0)


def _join(images: Sequence[NDArray[np.uint8]], axis: int, gap: int = GAP) -> NDArray[np.uint8]:
    """Images in a line with gaps; shorter ones are filled up with the background."""
    across = 1 - axis
    extent = max(image.shape[across] for image in images)
    pieces: list[NDArray[np.uint8]] = []
    for image in images:
        shape = list(image.shape)
        shape[across] = extent
        piece = np.full(shape, BACKGROUND, np.uint8)
        piece[: image.shape[0], : image.shape[1]] = image
        if pieces and gap:
            shape[axis] = gap
            pieces.append(np.full(shape, BACKGROUND, np.uint8))
        pieces.append(piece)
    return np.concatenate(pieces, axis=axis)


def _framed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.copyMakeBorder(image, GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=BACKGROUND)


def _bottom_aligned(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    canvas[height - image.shape[0] :, : image.shape[1]] = image
    return canvas


def _text_block(text: str, width: int, size: int, bold: bool = False) -> NDArray[np.uint8]:
    """Text broken to ``width`` pixels, as an image of that width."""
    font = _font(size, bold)
    lines: list[str] = []
    for word in text.replace("/", "/\u200b").replace("-", "-\u200b").replace(" ", " \u200b").split("\u200b"):
        if lines and font.getlength((lines[-1] + word).rstrip()) <= width:
            lines[-1] += word
        else:
            lines.append(word)
    line_height = round(size * 1.3)
    image = Image.new("RGB", (width, line_height * len(lines) + 2), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((0, number * line_height), line.rstrip(), fill=INK, font=font)
    return np.asarray(image)


@lru_cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib brings DejaVu along, so that text looks the same everywhere and names in any language have glyphs
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
