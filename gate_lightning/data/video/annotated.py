"""Videos as the files of a data set have them: reading of masks, and the checks of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gate_lightning.data.card import IGNORE_INDEX
from gate_lightning.data.files.frames import Frames
from gate_lightning.data.files.mask_values import mask_header, read_mask_values
from gate_lightning.data.files.report import SplitReport
from gate_lightning.errors import DataError
from gate_lightning.structures import Video

__all__ = ["AnnotatedVideo", "MaskFiles", "check_videos", "declared_objects"]


@dataclass(frozen=True, eq=False)
class AnnotatedVideo:
    """A video with its frames.

    Attributes:
        video: what is known of it.
        frames: reader of its frames.
        masks: files of its masks by frame, None for a frame that has none; () where they are no files.
        notes: facts for the report of the check.
    """

    video: Video
    frames: Frames
    masks: tuple[Path | None, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaskFiles:
    """Masks in files, read when they are asked for.

    Attributes:
        paths: by frame; None for a frame without annotation.
        size: (H, W) that they must have.
    """

    paths: tuple[Path | None, ...]
    size: tuple[int, int]

    def __call__(self, index: int) -> NDArray[np.uint8] | None:
        """Mask of frame ``index``.

        Raises:
            DataError: no index mask of 8 bits that can be read, or of another size than the frames.
        """
        path = self.paths[index]
        return None if path is None else read_labels(path, self.size)


def read_labels(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Numbers of objects, uint8 (H, W), as they are stored in a mask file.

    Raises:
        DataError: it cannot be read, has colours or more than 8 bits, or another size than the frames.
    """
    values = read_mask_values(path)
    if values.ndim == 3:
        raise DataError(
            f"{path} is an RGB image; expected the numbers of objects, one channel: an index PNG, 0 for background"
        )
    if values.shape != size:
        raise DataError(
            f"{path} has {values.shape[1]}×{values.shape[0]} pixels (width × height), the frames {size[1]}×{size[0]}"
        )
    if values.max(initial=0) > IGNORE_INDEX:
        raise DataError(f"{path} holds {values.max()}; expected numbers of objects up to 254, and 255 for unlabelled")
    return values.astype(np.uint8)


def declared_objects(mask: NDArray[np.uint8], where: object) -> int:
    """Number of objects that the first mask of a video declares: its highest number, unlabelled pixels aside.

    Raises:
        DataError: it has no object.
    """
    numbers = np.unique(mask)
    numbers = numbers[(numbers > 0) & (numbers < IGNORE_INDEX)]
    if not len(numbers):
        ignored = (
            " but unlabelled pixels (255); where these are the object, save it as 1"
            if (mask == IGNORE_INDEX).any()
            else ""
        )
        raise DataError(f"{where}: the first mask is empty, there is no object to follow in it{ignored}")
    return int(numbers[-1])


def check_videos(split: str, videos: Sequence[AnnotatedVideo], level: str = "quick") -> SplitReport:
    """Check one split: number and size of frames, masks and their sizes, points in the first frame.

    Args:
        split: name.
        videos: what its files say.
        level: ``quick`` (first and last frame decoded, headers of masks) or ``full`` (all decoded).
    """
    errors: list[str] = []
    warnings: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    inspected = 0
    twice = [name for name, count in Counter(one.video.name for one in videos).items() if count > 1]
    errors += [f"{split}: two videos are called {twice[0]}"] if twice else []
    for one in videos:
        sizes[one.video.size] += len(one.video)
        warnings += one.notes
        if len(one.video) < 2:
            errors.append(f"{one.frames.path}: a video of one frame; there is no other to carry the annotation to")
        try:
            inspected += _decode(one, level)
            _check_masks(one, level, warnings)
            _check_points(one.video)
        except DataError as error:
            errors.append(str(error))
    count = sum(len(one.video) for one in videos)
    nothing = np.zeros(1, dtype=np.int64)
    return SplitReport(split, count, inspected, tuple(errors), tuple(warnings), nothing, dict(sizes))


def _decode(one: AnnotatedVideo, level: str) -> int:
    """Decode frames, all or the first one; their number."""
    if level == "full":
        return sum(1 for _ in one.frames)
    one.frames.check_sizes()
    one.frames.read(0)
    return 1


def _check_masks(one: AnnotatedVideo, level: str, warnings: list[str]) -> None:
    video = one.video
    later: dict[int, Path] = {}
    for index, path in enumerate(one.masks):
        if path is None:
            continue
        if level == "full" and video.mask is not None:
            mask = video.mask(index)
            assert mask is not None
            numbers = np.unique(mask)
            for number in numbers[(numbers > video.objects) & (numbers < IGNORE_INDEX)].tolist():
                later.setdefault(number, path)
        elif mask_header(path).size != video.size:
            height, width = mask_header(path).size
            raise DataError(
                f"{path} has {width}×{height} pixels (width × height), the frames {video.size[1]}×{video.size[0]}"
            )
    if later:
        number, path = next(iter(later.items()))
        warnings.append(
            f"{path}: object {number} is not in the first mask, which declares {video.objects}; it counts as background"
        )


def _check_points(video: Video) -> None:
    if video.points is None:
        return
    known = np.isfinite(video.points[0]).all(axis=1)
    if not known.any():
        raise DataError(f"{video.name}: no point is annotated in the first frame, there is nothing to follow")
