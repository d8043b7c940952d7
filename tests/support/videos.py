"""Videos made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def write_video_file(path: Path, frames: Sequence[np.ndarray], rate: float = 10.0, code: str = "FFV1") -> Path:
    """A video file of uint8 (H, W, 3) frames; FFV1 in .mkv or .avi keeps them nearly as they are."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def write_frames(folder: Path, frames: Sequence[np.ndarray], pattern: str = "{:05d}.png") -> Path:
    """A folder of frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(index))
    return folder
