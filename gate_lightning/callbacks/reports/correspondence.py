"""Reports on matched keypoints: tables of categories and pairs, and figures of matches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from lightning import Trainer

from gate_lightning.callbacks.reports.base import SplitReport
from gate_lightning.callbacks.reports.dashboards import publish_image, publish_table
from gate_lightning.metrics.pck import MeasuredPair
from gate_lightning.metrics.pck_variants import PCKVariant, main_variant
from gate_lightning.tasks.correspondence.semantic import CorrespondenceResults
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import write_csv
from gate_lightning.visualization.matches import RIGHT, WRONG, height_of, match_image, match_page

__all__ = ["MatchImages", "PairTables"]

log = logging.getLogger(__name__)

ALL = "all"


class PairTables(SplitReport[CorrespondenceResults, Any]):
    """Writes ``categories_<split>.csv`` and ``pairs_<split>.csv``, and logs the scores of the categories.

    Categories: number of pairs and keypoints, and every PCK that is no mean over categories or groups; the last row is
    of all of them. Pairs: the share of correct keypoints of each by the main variants, distances in pixels and matches,
    in the order of the keypoints; nan where there is no match.
    """

    reads: ClassVar[type] = CorrespondenceResults

    def on_split_end(self, trainer: Trainer, task: CorrespondenceResults, split: str, rows: list[Any]) -> None:
        """Write both tables and log the first."""
        measured = task.measured[split]
        variants = [one for one in task.pck.variants if "_by_" not in one.average]
        scores = {**task.pck.per_category(measured), ALL: task.pck.compute(measured)}
        counts = {name: _counts(measured, None if name == ALL else name) for name in scores}
        lines = [[name, *counts[name], *(values[one.key] for one in variants)] for name, values in scores.items()]
        publish_table(
            trainer, f"categories_{split}", ["category", "pairs", "keypoints", *(one.key for one in variants)], lines
        )
        shown = _shown(variants)
        text = _percent_table(
            ["category", *(one.name for one in shown)],
            [[name, *(values[one.key] for one in shown)] for name, values in scores.items()],
        )
        log.info("%d pairs of %s, in percent\n%s", len(measured), split, text)
        self._write_pairs(Path(trainer.default_root_dir) / f"pairs_{split}.csv", task, measured, shown)

    def _write_pairs(
        self, path: Path, task: CorrespondenceResults, measured: Sequence[MeasuredPair], shown: Sequence[PCKVariant]
    ) -> None:
        by_image = [one for one in shown if one.average == "image"] or list(shown[:1])
        columns = ["pair", "source", "target", "category", "group", "keypoints"]
        columns += [one.key for one in by_image] + ["distances", "matches"]
        lines = []
        for one in measured:
            shares = [float(task.pck.right(one, variant).mean()) for variant in by_image]
            pair = one.pair
            lines.append(
                [
                    *(one.number, pair.source, pair.target, pair.category, pair.group, len(pair), *shares),
                    " ".join("" if np.isnan(value) else f"{value:.2f}" for value in np.hypot(*one.errors.T)),
                    "; ".join(
                        "" if np.isnan(match).any() else f"{match[0]:.2f} {match[1]:.2f}" for match in one.matches
                    ),
                ]
            )
        write_csv(path, columns, lines)


class MatchImages(SplitReport[CorrespondenceResults, Any]):
    """Draws the matches of pairs: ``images/matches_first_<split>.png`` and ``matches_worst_<split>.png``.

    Lines from keypoints to matches are green where these are correct by the main variant, else red; a ring is where
    the keypoint of a wrong match is. Worst: the lowest share of correct keypoints, then the largest error.

    Args:
        count: pairs of each, at least 1; the first ones are spread over the categories.

    Raises:
        ConfigError: ``count`` is out of range.
    """

    reads: ClassVar[type] = CorrespondenceResults

    def __init__(self, count: int = 6) -> None:
        super().__init__()
        self.shown = whole_number(count, "count", 1)

    def on_split_end(self, trainer: Trainer, task: CorrespondenceResults, split: str, rows: list[Any]) -> None:
        """Draw the first and the worst pairs."""
        measured, variant = task.measured[split], main_variant(task.pck.variants)
        shares = {one.number: float(task.pck.right(one, variant).mean()) for one in measured}

        def badness(one: MeasuredPair) -> tuple[float, float, int]:
            errors = np.nan_to_num(np.hypot(*one.errors.T), nan=float(max(one.pair.target_size)))
            return shares[one.number], -float(errors.mean()) / max(one.pair.target_size), one.number

        chosen = {"first": _spread(measured, self.shown), "worst": sorted(measured, key=badness)[: self.shown]}
        source: Any = trainer.datamodule.source(split)  # type: ignore[attr-defined]
        places = {source.sample_id(index): index for index in range(len(source))}
        for name, pairs in chosen.items():
            page = []
            for one in pairs:
                pair, right = one.pair, task.pck.right(one, variant)
                here, there = (source.load(places[image]).image for image in (pair.source, pair.target))
                points, truth = pair.source_points.numpy(), pair.target_points.numpy()
                image = match_image(here, there, points, one.matches, right, truth, height_of(here, there))
                text = f"{pair.source} → {pair.target}: {right.sum()} of {len(pair)} right"
                page.append((image, (text, RIGHT if right.all() else WRONG)))
            legend = [(f"right: {variant.name}", RIGHT), ("wrong: a ring is where the keypoint is", WRONG)]
            grid = match_page(page, legend)
            publish_image(trainer, f"matches_{name}_{split}", grid)


def _percent_table(columns: list[str], rows: list[list[Any]]) -> str:
    """A table in columns of equal width, fractions as percentages."""
    percent = [["–" if np.isnan(value) else f"{100 * value:.1f}" for value in values] for _, *values in rows]
    lines = [columns, *([row[0], *values] for row, values in zip(rows, percent, strict=True))]
    first, *widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(first), *(value.rjust(width) for value, width in zip(values, widths, strict=True))])
        for name, *values in lines
    )


def _counts(measured: Sequence[MeasuredPair], category: str | None) -> tuple[int, int]:
    """Number of pairs and keypoints of a category; None for all."""
    pairs = [one.pair for one in measured if category in (None, one.pair.category)]
    return len(pairs), sum(map(len, pairs))


def _shown(variants: Sequence[PCKVariant]) -> list[PCKVariant]:
    """Variants with the comparison, subset and alpha of the main one."""
    main = main_variant(variants)
    same = (main.alpha, main.comparison, main.subset)
    return [one for one in variants if (one.alpha, one.comparison, one.subset) == same]


def _spread(measured: Sequence[MeasuredPair], count: int) -> list[MeasuredPair]:
    """The first pair of each category, then the second of each …; in the order of the split."""
    seen: dict[str, int] = {}
    turn = {}
    for one in measured:
        turn[one.number] = seen[one.pair.category] = seen.get(one.pair.category, -1) + 1
    return sorted(sorted(measured, key=lambda one: turn[one.number])[:count], key=lambda one: one.number)
