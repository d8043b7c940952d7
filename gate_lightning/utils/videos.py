"""Writing of video files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.files import publish, writing

__all__ = ["VIDEO_SUFFIXES", "write_video"]

#: suffix → code of OpenCV's encoder; browsers show .gif and .webm, they do not play MPEG-4 of this kind
_CODES = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG", ".mkv": "FFV1"}
VIDEO_SUFFIXES = (".gif", *_CODES)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], rate: float = 10.0) -> None:
    """Write a video; frames are taken one after the other, and the file has its name when it is whole.

    Args:
        path: its suffix says the format: ``.gif`` (256 colours), ``.mp4`` (MPEG-4), ``.webm`` (VP8), ``.avi`` (JPEGs),
            ``.mkv`` (without loss).
        frames: (H, W, 3) uint8 RGB, at least one, of one size. An odd side is continued by a pixel.
        rate: frames a second.

    Raises:
        ConfigError: another suffix, or no frame.
        CacheError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    check_choice(suffix, "the suffix of a video", VIDEO_SUFFIXES)
    several = iter(frames)
    first = next(several, None)
    if first is None:
        raise ConfigError(f"{path} would be a video without a frame")
    temporary = path.with_name(f".{path.stem}.part{suffix}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = chain([first], several)
            if suffix == ".gif":
                _write_gif(temporary, whole, rate)
            else:
                _encode(temporary, whole, first.shape[:2], rate)
            publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_gif(path: Path, frames: Iterator[NDArray[np.uint8]], rate: float) -> None:
    images = (Image.fromarray(frame) for frame in frames)
    next(images).save(path, save_all=True, append_images=images, duration=round(100 / rate) * 10, loop=0)


def _encode(path: Path, frames: Iterator[NDArray[np.uint8]], size: tuple[int, ...], rate: float) -> None:
    height, width = (side + side % 2 for side in size)  # encoders halve the colours' resolution
    code = cv2.VideoWriter.fourcc(*_CODES[path.suffix])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
    if not writer.isOpened():
        raise OSError(f"OpenCV opens no encoder {_CODES[path.suffix]} for {path.suffix}; .gif needs none")
    try:
        for frame in frames:
            missing = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            writer.write(cv2.cvtColor(np.pad(frame, missing, mode="edge"), cv2.COLOR_RGB2BGR))
    finally:
        writer.release()
