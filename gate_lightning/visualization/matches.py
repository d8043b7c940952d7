"""Pairs of images with lines between matching points."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from gate_lightning.visualization.grid import LegendEntry, with_legend

__all__ = ["PLAIN", "RIGHT", "WRONG", "height_of", "match_image", "match_page"]

RIGHT, WRONG, PLAIN = (30, 160, 60), (215, 40, 40), (40, 110, 220)
INK = (255, 255, 255)
GAP = 6
#: pixels of two images side by side: as wide as this, but no higher than that
WIDTH, HIGHEST = 720, 400


def match_image(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    points: NDArray[np.floating],
    matches: NDArray[np.floating],
    right: NDArray[np.bool_] | None = None,
    truth: NDArray[np.floating] | None = None,
    height: int = 300,
    colours: Sequence[tuple[int, int, int]] | None = None,
    frames: Sequence[tuple[NDArray[np.floating], tuple[int, int, int]]] = (),
    thin: bool = False,
) -> NDArray[np.uint8]:
    """Two images side by side, a line from every point to its match.

    Args:
        source, target: (h, w, 3) uint8.
        points: (N, 2) x, y in pixels of ``source``.
        matches: (N, 2) x, y in pixels of ``target``; NaN where there is none.
        right: (N,) whether matches are correct: green lines, else red ones; None where nobody knows: blue ones.
        truth: (N, 2) in pixels of ``target``: marked by a ring where the match is wrong; or None.
        height: of both images, in pixels.
        colours: N, of lines and points where nobody knows which are correct.
        frames: closed lines on ``target``: corners x, y (K, 2), and colour.
        thin: lines and points as small as many of them need.

    Returns:
        (height, W, 3) uint8.
    """
    left, right_side = (_to_height(image, height) for image in (source, target))
    canvas = np.concatenate([left, np.full((height, GAP, 3), 255, np.uint8), right_side], axis=1)
    offset = np.array([left.shape[1] + GAP, 0.0])
    here = _scaled(points, source, height)
    there = _scaled(matches, target, height) + offset
    wanted = None if truth is None else _scaled(truth, target, height) + offset
    for corners, colour in frames:
        place = (_scaled(corners, target, height) + offset).clip(-(2**14), 2**14)
        # on the target only, whatever of it lies outside
        part = canvas[:, left.shape[1] + GAP :]
        shifted = np.rint(place - offset).astype(np.int32)
        cv2.polylines(part, [shifted], True, colour, 2, cv2.LINE_AA)
    for index in range(len(points)):
        matched = bool(np.isfinite(there[index]).all())
        good = None if right is None else bool(right[index]) and matched
        plain = PLAIN if colours is None else colours[index]
        colour = plain if good is None else RIGHT if good else WRONG
        if wanted is not None and not good:
            _ring(canvas, wanted[index], colour)
        if matched:
            cv2.line(canvas, _pixel(here[index]), _pixel(there[index]), colour, 1 if thin else 2, cv2.LINE_AA)
            _dot(canvas, there[index], colour, thin)
        _dot(canvas, here[index], colour, thin)
    return canvas


def height_of(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> int:
    """Height at which two images side by side fill the width of a page."""
    aspects = sum(image.shape[1] / image.shape[0] for image in (source, target))
    return min(round((WIDTH - GAP) / aspects), HIGHEST)


def match_page(
    rows: Sequence[tuple[NDArray[np.uint8], LegendEntry]], legend: Sequence[LegendEntry]
) -> NDArray[np.uint8]:
    """Pairs below each other, each with a line of text and a coloured mark below it, and a legend below all.

    Args:
        rows: images (h, w, 3) of `match_image`, and their text and colour.
        legend: names and colours.

    Returns:
        (H, W, 3) uint8.
    """
    blocks = [with_legend(image, [entry]) for image, entry in rows]
    width = max(block.shape[1] for block in blocks)
    wide = [np.pad(block, ((0, GAP), (0, width - block.shape[1]), (0, 0)), constant_values=255) for block in blocks]
    page = with_legend(np.concatenate(wide), legend)
    return np.pad(page, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def _to_height(image: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    scale = height / image.shape[0]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (max(1, round(image.shape[1] * scale)), height), interpolation=method)
    return np.ascontiguousarray(resized, dtype=np.uint8)


def _scaled(points: NDArray[np.floating], image: NDArray[np.uint8], height: int) -> NDArray[np.floating]:
    scaled: NDArray[np.floating] = (points + 0.5) * (height / image.shape[0]) - 0.5
    return scaled


def _pixel(point: NDArray[np.floating]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def _dot(
    canvas: NDArray[np.uint8], point: NDArray[np.floating], colour: tuple[int, int, int], thin: bool = False
) -> None:
    cv2.circle(canvas, _pixel(point), 3 if thin else 5, INK, -1, cv2.LINE_AA)
    cv2.circle(canvas, _pixel(point), 2 if thin else 4, colour, -1, cv2.LINE_AA)


def _ring(canvas: NDArray[np.uint8], point: NDArray[np.floating], colour: tuple[int, int, int]) -> None:
    cv2.circle(canvas, _pixel(point), 7, INK, 4, cv2.LINE_AA)
    cv2.circle(canvas, _pixel(point), 7, colour, 2, cv2.LINE_AA)
