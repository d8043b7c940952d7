"""Videos made on the spot, and data sets of them in their official layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gate_lightning.data.video.scene_videos import SceneVideosDataModule
from gate_lightning.visualization.overlay import write_mask
from gate_lightning.visualization.palette import voc_palette


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


def write_davis(root: Path, videos: int = 2, frames: int = 5, size: int = 32) -> Path:
    """Generated scenes in the layout of DAVIS-2017: lists val and test-dev, the latter with first masks only."""
    data = SceneVideosDataModule(size=size, frames=frames, val=videos, test=1)
    for split, name in (("val", "val"), ("test", "test-dev")):
        read = data.read(split)
        (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
        names = [one.video.name for one in read]
        (root / f"ImageSets/2017/{name}.txt").write_text("".join(f"{one}\n" for one in names))
        for one in read:
            write_frames(root / "JPEGImages/480p" / one.video.name, list(one.frames), "{:05d}.jpg")
            for index in range(frames if split == "val" else 1):
                assert one.video.mask is not None
                mask = one.video.mask(index)
                assert mask is not None
                write_mask(root / f"Annotations/480p/{one.video.name}/{index:05d}.png", mask, voc_palette(256))
    return root
