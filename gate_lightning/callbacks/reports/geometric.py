"""Reports on matched views: tables of groups and pairs, the curve of the matching accuracy, and figures of matches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import Trainer

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image, publish_table
from gate_lightning.metrics.homography import MeasuredViews, ViewMetrics, matching_accuracy, matching_key
from gate_lightning.ops.correspondence.homographies import Numbers, corners_of, project
from gate_lightning.tasks.correspondence.geometric import GeometricResults
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import write_csv
from gate_lightning.visualization.charts import curve_image
from gate_lightning.visualization.matches import PLAIN, RIGHT, WRONG, height_of, match_image, match_page

__all__ = ["ViewImages", "ViewTables"]

log = logging.getLogger(__name__)

ALL = "all"
#: lines of a figure: more would hide each other
LINES = 60


class ViewTables(SplitReport[GeometricResults, Any]):
    """Writes ``groups_<split>.csv``, ``view_pairs_<split>.csv`` and, of homographies, ``matching_accuracy_<split>.csv``
    and its curves as ``images/matching_accuracy_<split>.png``; logs why estimates failed.

    Groups: number of pairs and everything that was measured; the last row is of all of them. Pairs: keypoints of both
    images, matches, inliers, error of the corners in pixels (or of rotation and translation in degrees), matching
    accuracy, and why the estimate failed.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    reads: ClassVar[type] = GeometricResults

    def on_split_end(self, trainer: Trainer, task: GeometricResults, split: str, rows: list[Any]) -> None:
        """Write the tables and the curves."""
        measured, metrics = task.measured_views[split], task.view_metrics
        parts = _parts(measured)
        scores = {name: metrics.compute(some) for name, some in parts.items()}
        keys = [key for key in scores[ALL] if all(key in found for found in scores.values())]
        lines = [[name, len(parts[name]), *(found[key] for key in keys)] for name, found in scores.items()]
        publish_table(trainer, f"groups_{split}", ["group", "pairs", *keys], lines)
        _write_pairs(Path(trainer.default_root_dir) / f"view_pairs_{split}.csv", measured, metrics)
        if measured[0].pair.homography is not None:
            self._write_curves(trainer, split, parts, metrics.match_thresholds)
        failed = [one for one in measured if one.estimate.reason]
        if failed:
            reasons = [one.estimate.reason for one in failed]
            told = ", ".join(f"{reasons.count(name)} {name.replace('_', ' ')}" for name in dict.fromkeys(reasons))
            first = f"{failed[0].pair.source} → {failed[0].pair.target}"
            log.warning("%d of %d pairs have no estimate: %s; the first: %s", len(failed), len(measured), told, first)

    def _write_curves(
        self, trainer: Trainer, split: str, parts: dict[str, list[MeasuredViews]], limits: Sequence[float]
    ) -> None:
        curves = {name: matching_accuracy(some, limits) for name, some in parts.items()}
        rows = [[limit, *(curve[place] for curve in curves.values())] for place, limit in enumerate(limits)]
        publish_table(trainer, f"matching_accuracy_{split}", ["pixels", *curves], rows)
        image = curve_image(list(limits), curves, ("pixels from the true place", "mean matching accuracy"))
        publish_image(trainer, f"matching_accuracy_{split}", image)


class ViewImages(SplitReport[GeometricResults, Any]):
    """Draws matches of pairs: ``images/views_first_<split>.png`` and ``images/views_worst_<split>.png``.

    Green lines are inliers of the estimate, red ones are not; at most 60 lines, evenly spread over the matches. Where a
    homography is known the target shows the frame of the source, true (white) and estimated (blue).

    Args:
        count: pairs of each, at least 1; the first ones are spread over the groups.

    Raises:
        ConfigError: ``count`` is out of range.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    reads: ClassVar[type] = GeometricResults

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.shown = whole_number(count, "count", 1)

    def on_split_end(self, trainer: Trainer, task: GeometricResults, split: str, rows: list[Any]) -> None:
        """Draw the first and the worst pairs."""
        measured = task.measured_views[split]
        chosen = {"first": _spread(measured, self.shown), "worst": sorted(measured, key=_badness)[: self.shown]}
        source: Any = trainer.datamodule.source(split)  # type: ignore[attr-defined]
        places = {source.sample_id(index): index for index in range(len(source))}
        for name, pairs in chosen.items():
            page = []
            for one in pairs:
                here, there = (source.load(places[image]).image for image in (one.pair.source, one.pair.target))
                some = np.unique(np.linspace(0, max(len(one.points) - 1, 0), LINES).round().astype(int))
                some = some[: len(one.points)]
                image = match_image(
                    here,
                    there,
                    one.points[some],
                    one.matches[some],
                    one.estimate.inliers[some],
                    height=height_of(here, there),
                    frames=_frames(one),
                    thin=True,
                )
                page.append((image, (_text(one), WRONG if one.estimate.reason else RIGHT)))
            legend = [("inlier", RIGHT), ("no inlier", WRONG)]
            if measured[0].pair.homography is not None:
                legend += [("frame of the source: estimated", PLAIN), ("true", (255, 255, 255))]
            publish_image(trainer, f"views_{name}_{split}", match_page(page, legend))


def _write_pairs(path: Path, measured: Sequence[MeasuredViews], metrics: ViewMetrics) -> None:
    planar = measured[0].pair.homography is not None
    limits = metrics.match_thresholds if planar else ()
    errors = ["corner_error"] if planar else ["rotation_error", "translation_error"]
    columns = ["pair", "source", "target", "group", "source_keypoints", "target_keypoints", "matches", "inliers"]
    lines = []
    for one in measured:
        values = [one.corner_error] if planar else list(one.angles)
        accuracy = matching_accuracy([one], limits) if limits else ()
        shown = ["" if np.isinf(value) else f"{value:.4f}" for value in values]
        row = [one.number, one.pair.source, one.pair.target, one.pair.group, *one.keypoints, len(one.points)]
        lines.append([*row, int(one.estimate.inliers.sum()), *shown, *accuracy, one.estimate.reason])
    write_csv(path, [*columns, *errors, *map(matching_key, limits), "failed"], lines)


def _parts(measured: Sequence[MeasuredViews]) -> dict[str, list[MeasuredViews]]:
    """Pairs by group, and all of them last."""
    groups = sorted({one.pair.group for one in measured})
    found = {name: [one for one in measured if one.pair.group == name] for name in groups} if len(groups) > 1 else {}
    return {name or "(without group)": some for name, some in found.items()} | {ALL: list(measured)}


def _frames(one: MeasuredViews) -> list[tuple[Numbers, tuple[int, int, int]]]:
    """Frame of the source on the target, true and estimated."""
    if one.pair.homography is None:
        return []
    corners = corners_of(one.pair.source_size)
    found = [(project(corners, one.pair.homography.numpy()), (255, 255, 255))]
    if one.estimate.matrix is not None:
        found.append((project(corners, one.estimate.matrix), PLAIN))
    return found


def _badness(one: MeasuredViews) -> tuple[float, int]:
    error = one.corner_error if one.pair.homography is not None else max(one.angles)
    return -error, one.number


def _text(one: MeasuredViews) -> str:
    pair, inliers = one.pair, int(one.estimate.inliers.sum())
    if one.estimate.reason:
        told = one.estimate.reason.replace("_", " ")
    elif pair.homography is not None:
        told = f"corners {one.corner_error:.1f} px off"
    else:
        told = "rotation {:.1f}°, translation {:.1f}° off".format(*one.angles)
    return f"{pair.source} → {pair.target}: {inliers} of {len(one.points)} matches are inliers, {told}"


def _spread(measured: Sequence[MeasuredViews], count: int) -> list[MeasuredViews]:
    """Pairs of every group in turn, spread over its pairs."""
    parts = [some for name, some in _parts(measured).items() if name != ALL] or [list(measured)]
    each = [-(-count // len(parts))] * len(parts)
    found = [
        some[place * len(some) // share] for some, share in zip(parts, each, strict=True) for place in range(share)
    ]
    return sorted({one.number: one for one in found}.values(), key=lambda one: one.number)[:count]
