"""Base of data sets of videos: every frame once, in order, video after video."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.samplers import BatchLoader, EvaluationBatches
from gate_lightning.data.files.checks import LEVELS
from gate_lightning.data.files.report import DataReport, SplitReport
from gate_lightning.data.samples import Sample, SampleSource
from gate_lightning.data.transforms.basic import Resize
from gate_lightning.data.video.annotated import AnnotatedVideo, check_videos
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Video
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["FrameResize", "FramesOfVideos", "VideoDataModule"]

log = logging.getLogger(__name__)


class FrameResize(Resize):
    """Resize the shorter side, and the longer one to a multiple; bilinear, as in the released code of DINO and DIFT.

    Args:
        short: length of the shorter side; 0 to leave frames as they are.
        multiple: of the longer side, rounded down; None for a square, aspect not kept.
    """

    def __init__(self, short: int, multiple: int | None = 32) -> None:
        super().__init__(short)
        if multiple is not None:
            whole_number(multiple, "dataset.multiple", 1)
        self.multiple = multiple

    def size(self, height: int, width: int, ratio: float = 1.0) -> tuple[int, int]:
        """(height, width) after resizing."""
        if not self.short:
            return height, width
        if self.multiple is None:
            return self.short, self.short
        long = self.short * max(height, width) // min(height, width) // self.multiple * self.multiple
        long = max(long, self.short)
        return (self.short, long) if height <= width else (long, self.short)

    def _image(self, image: np.ndarray, height: int, width: int) -> np.ndarray:
        return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height))


class FramesOfVideos:
    """Frames of videos as a `SampleSource`, video after video.

    Args:
        videos: with their frames.
    """

    def __init__(self, videos: Sequence[AnnotatedVideo]) -> None:
        self.videos = tuple(videos)
        self._places = [(number, index) for number, one in enumerate(videos) for index in range(len(one.video))]

    def __len__(self) -> int:
        return len(self._places)

    def sample_id(self, index: int) -> str:
        """Name of frame ``index``."""
        number, frame = self._places[index]
        return self.videos[number].video.frames[frame]

    def load(self, index: int) -> Sample:
        """Frame ``index``, not resized.

        Raises:
            DataError: it does not decode, or has another size than the first one of its video.
        """
        number, frame = self._places[index]
        return Sample(self.sample_id(index), self.videos[number].frames.read(frame))

    def sizes(self, index: int) -> tuple[tuple[int, int], ...]:
        """((height, width),) of frame ``index``."""
        return (self.videos[self._places[index][0]].video.size,)


class VideoDataModule(ImageDataModule):
    """Videos whose first frame is annotated; nothing is trained on them.

    Validation and test: every frame once, as `ImageBatch`, in order, the frames of one video in a batch. What is
    measured are ``videos_of(split)``. Several processes divide the videos among them (``share_of``), so that each has
    about as many frames.

    Subclasses set ``card`` and provide ``read`` and ``splits``.

    Args:
        resize: rule for the frames that the backbone sees.
        subset: take at most so many videos of every split, evenly spread over their order; None for all.
        check_level: sanity check at start: ``quick`` or ``full``.
        eval_batch_size: frames of a video that the backbone reads together; None for 1.
        loading: `ImageDataModule`'s arguments.

    Raises:
        ConfigError: a setting out of range.
    """

    #: what the root should hold, for messages
    layout = ""

    def __init__(
        self,
        resize: FrameResize,
        subset: int | None = None,
        check_level: str = "quick",
        eval_batch_size: int | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(batch_size=1, eval_batch_size=eval_batch_size, **loading)
        check_choice(check_level, "dataset.check_level", LEVELS)
        if subset is not None:
            whole_number(subset, "dataset.subset", 1, optional="all")
        self.subset, self.check_level = subset, check_level
        self.eval_resize = resize
        self._read: dict[str, tuple[AnnotatedVideo, ...]] = {}
        self._left_out: frozenset[str] = frozenset()

    @abstractmethod
    def read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        """The videos of a split.

        Raises:
            DataError: a file that tells of them is missing or broken.
        """

    @property
    def has_test(self) -> bool:
        """True if there are test videos."""
        return "test" in self.splits

    def videos_of(self, split: str) -> tuple[Video, ...]:
        """All videos of a split.

        Raises:
            DataError: names the first fault of the split.
        """
        return tuple(one.video for one in self._checked(split))

    def leave_out(self, names: Collection[str]) -> None:
        """Read no frames of these videos, which were measured before; call it before the loaders are made."""
        self._left_out = frozenset(names)

    def share_of(self, split: str) -> tuple[Video, ...]:
        """The videos that this process measures; the loader of the split gives their frames and no others."""
        rank, world_size = self._processes
        return self._shares(split, world_size)[rank]

    def make_source(self, split: str) -> SampleSource:
        """The frames of a split."""
        return FramesOfVideos(self._checked(split))

    def train_dataloader(self) -> BatchLoader:
        """Refused: videos are only measured, and nothing is trained on them.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"{self.card.name} has videos to measure features on, and nothing is trained on them: python eval.py"
        )

    def _evaluation_loader(self, split: str) -> BatchLoader:
        source, (rank, world_size) = self.source(split), self._processes
        place = {source.sample_id(index): index for index in range(len(source))}
        shares = []
        for videos in self._shares(split, world_size):
            several = self.eval_batch_size or 1
            shares.append(
                [
                    [place[name] for name in video.frames[start : start + several]]
                    for video in videos
                    for start in range(0, len(video), several)
                ]
            )
        return self._loader(self.evaluation_views(split), EvaluationBatches.of_shares(shares, rank))

    def _shares(self, split: str, world_size: int) -> list[tuple[Video, ...]]:
        """Videos of each process: the longest first, to the process that has the fewest frames."""
        videos = [video for video in self.videos_of(split) if video.name not in self._left_out]
        shares: list[list[int]] = [[] for _ in range(world_size)]
        frames = [0] * world_size
        for index in sorted(range(len(videos)), key=lambda one: -len(videos[one])):
            least = frames.index(min(frames))
            shares[least].append(index)
            frames[least] += len(videos[index])
        return [tuple(videos[index] for index in sorted(share)) for share in shares]

    def _checked(self, split: str) -> tuple[AnnotatedVideo, ...]:
        if split not in self._read:
            self._require(split)
            videos = self._chosen(self.read(split))
            report = DataReport(self.card.name, (), (check_videos(split, videos, self.check_level),))
            for warning in report.warnings:
                log.warning("%s", warning)
            report.raise_if_broken()
            if not videos:
                raise DataError(f"{self.card.name} has no videos in {split}")
            self._read[split] = videos
        return self._read[split]

    def _chosen(self, videos: tuple[AnnotatedVideo, ...]) -> tuple[AnnotatedVideo, ...]:
        if self.subset is None or len(videos) <= self.subset:
            return videos
        return tuple(videos[index * len(videos) // self.subset] for index in range(self.subset))

    def _require(self, split: str) -> None:
        if split not in self.splits:
            expected = f"; looked for {self.layout}" if self.layout else ""
            there = f", only {' and '.join(self.splits)}" if self.splits else ""
            raise DataError(f"{self.card.name} has no {split} videos here{there}{expected}")

    def check(self, level: str = "full") -> DataReport:
        """Check all splits without a run; errors about frames and masks are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.

        Raises:
            DataError: a file that tells of the videos is missing or broken.
        """
        check_choice(level, "level", LEVELS)
        read = {split: self.read(split) for split in self.splits}
        reports: Iterable[SplitReport] = (check_videos(split, videos, level) for split, videos in read.items())
        return DataReport(self.card.name, (), tuple(reports), _counts(read))


def _counts(read: dict[str, tuple[AnnotatedVideo, ...]]) -> tuple[str, ...]:
    """Table of videos, frames and objects by split."""
    lines = []
    for split, videos in read.items():
        frames = sum(len(one.video) for one in videos)
        objects = sum(one.video.objects or len(one.video.point_names) for one in videos)
        what = "objects" if any(one.video.objects for one in videos) else "points"
        lines.append(f"  {split}: {len(videos)} videos of {frames} frames with {objects} {what}")
    return tuple(lines)
