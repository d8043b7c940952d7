"""Pairs of images with lines between matching points."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["RIGHT", "WRONG", "match_image"]

RIGHT, WRONG, PLAIN = (30, 160, 60), (215, 40, 40), (40, 110, 220)
INK = (255, 255, 255)


def match_image(
    source: NDArray[np.uint8],
    target: NDArray[np.uint8],
    points: NDArray[np.floating],
    matches: NDArray[np.floating],
    right: NDArray[np.bool_] | None = None,
    truth: NDArray[np.floating] | None = None,
    height: int = 300,
) -> NDArray[np.uint8]:
    """Two images side by side, a line from every point to its match.

    Args:
        source, target: (h, w, 3) uint8.
        points: (N, 2) x, y in pixels of ``source``.
        matches: (N, 2) x, y in pixels of ``target``; NaN where there is none.
        right: (N,) whether matches are correct: green lines, else red ones; None where nobody knows: blue ones.
        truth: (N, 2) in pixels of ``target``: marked by a ring where the match is wrong; or None.
        height: of both images, in pixels.

    Returns:
        (height, W, 3) uint8.
    """
    left, right_side = (_to_height(image, height) for image in (source, target))
    canvas = np.concatenate([left, np.full((height, 6, 3), 255, np.uint8), right_side], axis=1)
    offset = np.array([left.shape[1] + 6, 0.0])
    here = _scaled(points, source, height)
    there = _scaled(matches, target, height) + offset
    wanted = None if truth is None else _scaled(truth, target, height) + offset
    for index in range(len(points)):
        matched = bool(np.isfinite(there[index]).all())
        good = None if right is None else bool(right[index]) and matched
        colour = PLAIN if good is None else RIGHT if good else WRONG
        if wanted is not None and not good:
            _ring(canvas, wanted[index], colour)
        if matched:
            cv2.line(canvas, _pixel(here[index]), _pixel(there[index]), colour, 2, cv2.LINE_AA)
            _dot(canvas, there[index], colour)
        _dot(canvas, here[index], colour)
    return canvas


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


def _dot(canvas: NDArray[np.uint8], point: NDArray[np.floating], colour: tuple[int, int, int]) -> None:
    cv2.circle(canvas, _pixel(point), 5, INK, -1, cv2.LINE_AA)
    cv2.circle(canvas, _pixel(point), 4, colour, -1, cv2.LINE_AA)


def _ring(canvas: NDArray[np.uint8], point: NDArray[np.floating], colour: tuple[int, int, int]) -> None:
    cv2.circle(canvas, _pixel(point), 7, INK, 4, cv2.LINE_AA)
    cv2.circle(canvas, _pixel(point), 7, colour, 2, cv2.LINE_AA)
