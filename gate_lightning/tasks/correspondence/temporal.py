"""Temporal correspondence: labels of a video's first frame are carried through it by frozen features."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from gate_lightning.amalgamation.base import Amalgamation
from gate_lightning.errors import DataError, ResumeError
from gate_lightning.heads.descriptors import PlainDescriptors
from gate_lightning.metrics.video_points import point_summary
from gate_lightning.metrics.video_segmentation import summary
from gate_lightning.ops.frame_cells import FrameCells
from gate_lightning.ops.propagation import Propagation
from gate_lightning.structures import Extractor, ImageBatch, Video
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.correspondence.tracks import Track, VideoResult, track_of
from gate_lightning.utils.files import write_atomically
from gate_lightning.utils.processes import gathered
from gate_lightning.utils.text import read_json
from gate_lightning.visualization.overlay import write_mask
from gate_lightning.visualization.palette import voc_palette

__all__ = ["TemporalCorrespondence", "VideoResults", "mask_path"]

log = logging.getLogger(__name__)


class VideoResults(Protocol):
    """Results of a task that carries labels through videos, read by reports after the evaluation of a split.

    Attributes:
        results: split → video → result.
    """

    results: dict[str, dict[str, VideoResult]]


class TemporalCorrespondence(BaseTask):
    """Carries masks or points of a video's first frame through it, by the similarity of frozen features.

    Frames come in order and pass the backbone once; features of a frame are dropped when it leaves the queue of the
    last ones. Of every video that is done the run folder has ``masks/<split>/<video>/<frame>.png`` (numbers of objects,
    with a palette) or its points, and ``videos/<split>/<video>.json``, written last: a run that was stopped goes on
    behind these.

    Args:
        extractor: frozen backbone and branches.
        amalgamation: features → pyramid; without weights.
        propagation: rule by which labels are carried.
        head: levels of the pyramid → descriptors; None for the levels themselves, resized to the finest one.

    Raises:
        ConfigError: there are weights, which nobody has trained.
    """

    continues_evaluation = True
    final_splits = ("val", "test")
    training_free = True
    amalgamation: Amalgamation
    head: nn.Module

    def __init__(
        self,
        extractor: Extractor,
        amalgamation: Amalgamation,
        propagation: Propagation,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.extractor, self.amalgamation, self.propagation = extractor, amalgamation, propagation
        self.head = PlainDescriptors(amalgamation.out_channels) if head is None else head
        self.results: dict[str, dict[str, VideoResult]] = {}
        self._before: dict[str, dict[str, VideoResult]] = {}
        self._places: dict[str, tuple[Video, int]] = {}
        self._own: dict[str, VideoResult] = {}
        self._track: Track | None = None

    def frozen_description(self) -> dict[str, Any]:
        """Description of the extractor: all that features depend on."""
        return dict(self.extractor.description)

    def go_on(self, folder: Path, split: str, data: Any) -> None:
        """Take over the videos of a split that a former run has finished, so that their frames are not read.

        Args:
            folder: the run's.
            split: ``val`` or ``test``.
            data: the data module, before its loaders are made.

        Raises:
            ResumeError: a result is damaged.
        """
        found: dict[str, VideoResult] = {}
        for video in data.videos_of(split):
            path = _result_path(folder, split, video.name)
            if path.is_file():
                try:
                    found[video.name] = VideoResult.of_json(read_json(path, ResumeError), video)
                except (KeyError, TypeError, ValueError) as error:
                    raise ResumeError(f"{path} is damaged ({error}); delete it: its video is measured again") from error
        if len(found) == len(data.videos_of(split)):
            found.popitem()  # there have to be batches
        self._before[split] = found
        data.leave_out(found)
        log.info("%d of %d videos of %s were finished before", len(found), len(data.videos_of(split)), split)

    # evaluation -------------------------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Find the videos of the test split."""
        self._begin("test")

    def on_validation_start(self) -> None:
        """Find the videos of the validation split."""
        self._begin("val")

    def test_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Carry the labels on through the frames of a batch."""
        self._follow(batch, "test")

    def validation_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Carry the labels on through the frames of a batch."""
        self._follow(batch, "val")

    def on_test_epoch_end(self) -> None:
        """Log the measures of the test split."""
        self._end("test")

    def on_validation_epoch_end(self) -> None:
        """Log the measures of the validation split."""
        self._end("val")

    def _begin(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        before = self._before.get(split, {})
        if self.global_rank == 0:  # files of another evaluation are not those of this one
            for video in data.videos_of(split):
                if video.name not in before:
                    _result_path(self._folder, split, video.name).unlink(missing_ok=True)
        self._own, self._track = {}, None
        self._places = {
            name: (video, index) for video in data.share_of(split) for index, name in enumerate(video.frames)
        }

    def _follow(self, batch: ImageBatch, split: str) -> None:
        names = batch.conditions.sample_ids
        rows = [row for row, name in enumerate(names) if self._awaited(name)]
        if not rows:  # repeated frames, which give all processes equally many batches
            return
        described = self.head(self.amalgamation(self.extractor(batch.images, batch.conditions)).levels).float()
        grid = FrameCells((batch.images.shape[2], batch.images.shape[3]), self.amalgamation.strides[0])
        for row in rows:
            video, index = self._places[names[row]]
            if self._track is None:
                write = partial(_write, self._folder, split, video)
                self._track = track_of(self.propagation, video, grid, write)
            if self._track.video is not video or self._track.next != index:
                raise DataError(f"{names[row]} comes after frame {self._track.next} of {self._track.video.name}")
            self._track.follow(described[row])
            if index == len(video) - 1:
                self._finish(split)

    def _awaited(self, name: str) -> bool:
        return name in self._places and self._places[name][0].name not in self._own

    def _finish(self, split: str) -> None:
        assert self._track is not None
        result, self._track = self._track.result(), None
        self._own[result.name] = result
        text = json.dumps(result.as_json(), allow_nan=False)
        write_atomically(_result_path(self._folder, split, result.name), f"{text}\n".encode())

    def _end(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        found = dict(self._before.pop(split, {}))
        for part in gathered(self._own):
            found |= part
        videos = data.videos_of(split)
        missing = [video.name for video in videos if video.name not in found]
        if len(missing) == len(videos):
            raise DataError(f"no video of {split} was read to its end (limit_{split}_batches)")
        if missing:
            log.warning("%d videos of %s were not read to their end, first %s", len(missing), split, missing[0])
        self._places, self._own, self._track = {}, {}, None
        self.results[split] = {video.name: found[video.name] for video in videos if video.name in found}
        measures = measures_of(self.results[split])
        if not measures:
            log.info("%s has no annotation but the first frames': nothing is measured", split)
        self.log_dict({f"{split}/{name}": value for name, value in measures.items()})

    @property
    def _folder(self) -> Path:
        return Path(self.trainer.default_root_dir)


def measures_of(results: dict[str, VideoResult]) -> dict[str, float]:
    """Measures of a split; {} where only first frames are annotated."""
    scores = {name: one.scores for name, one in results.items() if one.scores is not None}
    distances = {name: one.distances for name, one in results.items() if one.distances is not None}
    return {**(summary(scores) if scores else {}), **(point_summary(distances) if distances else {})}


def mask_path(folder: Path, split: str, video: Video, index: int) -> Path:
    """File of the mask of a frame in a run folder."""
    return folder / "masks" / split / video.name / f"{Path(video.frames[index]).stem}.png"


def _write(folder: Path, split: str, video: Video, index: int, mask: NDArray[np.uint8]) -> None:
    write_mask(mask_path(folder, split, video, index), mask, voc_palette(256))


def _result_path(folder: Path, split: str, name: str) -> Path:
    return folder / "videos" / split / f"{name}.json"
