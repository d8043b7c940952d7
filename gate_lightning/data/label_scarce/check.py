"""What a check says about few labelled images: the split, and which classes which splits can learn."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gate_lightning.data.files.checks import DataReport, SplitReport
from gate_lightning.data.label_scarce.class_presence import ClassPresence, over_splits, rare_classes
from gate_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule

__all__ = ["CHECKED_SPLITS", "check_label_scarce"]

#: random splits that are looked at: those of a whole protocol
CHECKED_SPLITS = 5


def check_label_scarce(data: LabelScarceDataModule, level: str) -> DataReport:
    """The data set's own report, and if nothing is broken the two parts of the split and presence over the splits.

    Args:
        data: whose images.
        level: of the data set's own check.

    Raises:
        DataError: a folder is missing.
    """
    report = data.dataset.check(level)
    if report.errors:
        return report
    try:
        here, over = data.presence("train", "test"), _presence_over_splits(data)
    except (ConfigError, DataError) as error:
        ignored = np.zeros(len(report.classes) + 1, dtype=np.int64)
        return replace(report, splits=(*report.splits, SplitReport("labelled", 0, 0, (str(error),), (), ignored)))
    parts = []
    for name, split, warnings in (("labelled", "train", rare_classes(over)), ("measured", "test", ())):
        pixels = here.pixels[split]
        parts.append(SplitReport(name, len(pixels), len(pixels), (), warnings, pixels.sum(axis=0)))
    return replace(report, splits=(*report.splits, *parts), notes=(*report.notes, str(over)))


def _presence_over_splits(data: LabelScarceDataModule) -> ClassPresence:
    splits = {"split": data.split.train}
    if data.split_file is None and data.split_seed is not None:
        seeds = range(data.split_seed, data.split_seed + CHECKED_SPLITS)
        splits = {f"split {seed}": data.split_of(seed).train for seed in seeds}
    return over_splits(data.labels.classes, data.learnable(), splits)
