"""Reports on what was carried through videos: tables, overlays and strips."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import Trainer
from numpy.typing import NDArray

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image, publish_table
from gate_lightning.data.files.mask_values import read_mask_values
from gate_lightning.data.files.palette import default_palette
from gate_lightning.metrics.video_points import point_rows, point_summary
from gate_lightning.metrics.video_segmentation import object_rows, summary
from gate_lightning.structures import Video
from gate_lightning.tasks.correspondence.temporal import VideoResults, mask_path
from gate_lightning.tasks.correspondence.tracks import VideoResult
from gate_lightning.utils.checks import check_choice, whole_number
from gate_lightning.utils.files import write_csv
from gate_lightning.utils.videos import VIDEO_SUFFIXES, write_video
from gate_lightning.visualization.palette import Palette, voc_palette
from gate_lightning.visualization.videos import draw_points, shrunk, strip, tinted

__all__ = ["VideoOverlays", "VideoTables"]

log = logging.getLogger(__name__)

#: frames of a strip
_COLUMNS = 6


class VideoTables(SplitReport[VideoResults, Any]):
    """Writes tables of a split.

    Masks: ``global_results-<split>.csv`` and ``per-sequence_results-<split>.csv``, as DAVIS's official evaluation does
    (a row per object, three decimals). Points: ``points_<split>.csv``, and the points themselves in
    ``points/<split>/<video>.csv``.
    """

    reads: ClassVar[type] = VideoResults

    def on_split_end(self, trainer: Trainer, task: VideoResults, split: str, rows: list[Any]) -> None:
        """Write the tables of a split: J and F of objects, or distances and places of points."""
        results, folder = task.results[split], Path(trainer.default_root_dir)
        scores = {name: one.scores for name, one in results.items() if one.scores is not None}
        if scores:
            means = summary(scores)
            publish_table(
                trainer, f"global_results-{split}", list(means), [[f"{value:.3f}" for value in means.values()]]
            )
            lines = [[name, f"{region:.3f}", f"{outline:.3f}"] for name, region, outline in object_rows(scores)]
            publish_table(trainer, f"per-sequence_results-{split}", ["Sequence", "J-Mean", "F-Mean"], lines)
            log.info("%d objects of %s: %s", len(lines), split, _percent(means))
        distances = {name: one.distances for name, one in results.items() if one.distances is not None}
        if distances:
            publish_table(trainer, f"points_{split}", ["video", "points", "PCK_0.10_box"], point_rows(distances))
            log.info("points of %d videos of %s: %s", len(distances), split, _percent(point_summary(distances)))
        videos: Any = trainer.datamodule.videos_of(split)  # type: ignore[attr-defined]
        for video in videos:
            one = results.get(video.name)
            if one is not None and one.points is not None:
                write_csv(
                    folder / "points" / split / f"{video.name}.csv", ["frame", "name", "x", "y"], _rows(video, one)
                )


@dataclass(frozen=True)
class _Shown:
    """A video as it is drawn: frames one by one, at the size of overlays."""

    trainer: Trainer
    split: str
    video: Video
    result: VideoResult
    first: int

    def frame(self, index: int) -> NDArray[np.uint8]:
        source: Any = self.trainer.datamodule.source(self.split)  # type: ignore[attr-defined]
        image: NDArray[np.uint8] = source.load(self.first + index).image
        return shrunk(image)

    def found(self, index: int) -> NDArray[np.uint8]:
        """Frame with what was carried to it."""
        image = self.frame(index)
        if self.result.points is not None:
            return self._points(image, self.result.points[index])
        path = mask_path(Path(self.trainer.default_root_dir), self.split, self.video, index)
        return tinted(image, shrunk(read_mask_values(path).astype(np.uint8)), voc_palette(256))

    def true(self, index: int) -> NDArray[np.uint8] | None:
        """Frame with its annotation, None where it has none."""
        image = self.frame(index)
        if self.video.points is not None:
            known = np.isfinite(self.video.points[index]).any()
            return self._points(image, self.video.points[index]) if known else None
        assert self.video.mask is not None
        mask = self.video.mask(index)
        if mask is None:
            return None
        return tinted(image, shrunk(np.where(mask > self.video.objects, 0, mask).astype(np.uint8)), voc_palette(256))

    def _points(self, image: NDArray[np.uint8], points: NDArray[np.float32]) -> NDArray[np.uint8]:
        palette: Palette = default_palette(len(points))
        return draw_points(image, points, palette, image.shape[0] / self.video.size[0])


class VideoOverlays(SplitReport[VideoResults, Any]):
    """Draws every video: ``overlays/<split>/<video>.gif``, and ``images/video_<video>_<split>.png`` with six frames.

    The rows of the latter are the frames, what was carried to them, and the annotation where there is any.

    Args:
        suffix: of the videos: ``.gif``, ``.mp4``, ``.webm`` … ; browsers play the first and the last.
        rate: frames a second.
        most: videos that are drawn, the first ones; None for all.

    Raises:
        ConfigError: a setting out of range.
    """

    reads: ClassVar[type] = VideoResults

    def __init__(self, suffix: str = ".gif", rate: float = 10.0, most: int | None = None) -> None:
        super().__init__()
        check_choice(suffix, "callbacks.video_overlays.suffix", VIDEO_SUFFIXES)
        if most is not None:
            whole_number(most, "callbacks.video_overlays.most", 1, optional="all")
        self.suffix, self.rate, self.most = suffix, rate, most

    def on_split_end(self, trainer: Trainer, task: VideoResults, split: str, rows: list[Any]) -> None:
        """Draw what was found over the frames of every video, and strips of some frames."""
        folder = Path(trainer.default_root_dir) / "overlays" / split
        videos: Any = trainer.datamodule.videos_of(split)  # type: ignore[attr-defined]
        first = 0
        drawn = 0
        for video in videos:
            result = task.results[split].get(video.name)
            if result is not None and (self.most is None or drawn < self.most):
                shown = _Shown(trainer, split, video, result, first)
                write_video(
                    folder / f"{video.name}{self.suffix}",
                    (shown.found(index) for index in range(len(video))),
                    self.rate,
                )
                publish_image(trainer, f"video_{video.name.replace('/', '-')}_{split}", _strip(shown))
                drawn += 1
            first += len(video)
        log.info("overlays of %d videos: %s", drawn, folder)


def _strip(shown: _Shown) -> NDArray[np.uint8]:
    count = len(shown.video)
    chosen = sorted({round(place) for place in np.linspace(0, count - 1, min(_COLUMNS, count))})
    true = [shown.true(index) for index in chosen]
    rows = [[shown.frame(index) for index in chosen], [shown.found(index) for index in chosen]]
    titles = ["frames", "carried through"]
    if any(one is not None for one in true[1:]):
        rows.append([np.full_like(rows[0][0], 255) if one is None else one for one in true])
        titles.append("annotation")
    return strip(rows, [f"{shown.video.name}: {title}" for title in titles], [f"frame {index}" for index in chosen])


def _rows(video: Video, one: VideoResult) -> Iterator[tuple[int, str, str, str]]:
    assert one.points is not None
    for index, frame in enumerate(one.points):
        for name, (x, y) in zip(video.point_names, frame, strict=True):
            known = np.isfinite([x, y]).all()
            yield index, name, f"{x:.2f}" if known else "", f"{y:.2f}" if known else ""


def _percent(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in values.items())
