"""Content shift: generation techniques ranked on a sample of images, without training and without labels."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol

from gate_lightning.backbones.base import Backbone
from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.recorded import PassKind
from gate_lightning.metrics.content_shift.statistic import Bootstrap
from gate_lightning.metrics.content_shift.table import Compared, figures, overall
from gate_lightning.structures import ImageBatch
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.content_shift.candidates import Candidates
from gate_lightning.tasks.content_shift.measure import Measure
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.study import ShiftResults, compared_rows, measure_content_shift

__all__ = ["ContentShift", "ContentShiftResults", "metric_names"]

log = logging.getLogger(__name__)

#: what names of metrics do not hold
UNNAMED = re.compile(r"[^A-Za-z0-9_+.=-]+")


class ContentShiftResults(Protocol):
    """Results of a task that ranks candidates by content shift, read by reports after the evaluation of a split.

    Attributes:
        reader: backbones and candidates.
        shift_results: split → what was measured.
        shift_table: split → lines of the ranking table.
    """

    reader: ShiftReader
    shift_results: dict[str, ShiftResults]
    shift_table: dict[str, tuple[Compared, ...]]


class ContentShift(BaseTask):
    """Ranks candidates (branches) by how far their features have drifted from the image; nothing is trained.

    Args:
        candidates: what is compared, and what could not be built.
        backbones: frozen networks by the names that branches give.
        measures: name → measure; None leaves one out.
        timesteps: at which features are compared; None for those of the branches.
        noises: numbers of noises of plain features that are averaged, as controls of equal passes and equal time.
        fused: lists of timesteps whose plain features are concatenated: a candidate each.
        resamples: draws of the images behind every interval.
        level: share of draws inside an interval.
        seed: of noise and draws.
        posterior: latents that the backbone sees: ``mean`` or ``sample``.
        max_samples: most images × candidates × noises in one pass of the denoiser; None for no limit.
        memory_gib: features of a batch that are kept for the next measure.
        passes: how the backbone is run, see FeatureExtractor.
        pooling: 1: features are compared as they are.

    Raises:
        ConfigError: no measure, or a number out of range.
    """

    frozen_parts = ("reader",)
    batch_type = ImageBatch
    final_splits = ("val", "test")
    training_free = True

    def __init__(
        self,
        candidates: Candidates,
        backbones: Mapping[str, Backbone],
        measures: Mapping[str, Any],
        timesteps: Sequence[int] | None = (50, 150, 400),
        noises: Sequence[int] = (2,),
        fused: Sequence[Sequence[int]] = (),
        resamples: int = 2000,
        level: float = 0.95,
        seed: int = 0,
        posterior: Literal["mean", "sample"] = "mean",
        max_samples: int | None = 64,
        memory_gib: float = 2.0,
        passes: PassKind = "auto",
        pooling: int = 1,
    ) -> None:
        super().__init__()
        if pooling != 1:
            raise ConfigError(f"features.pooling={pooling}: content shift compares features as they are; leave it out")
        self._measures: dict[str, Measure] = {name: one for name, one in measures.items() if one is not None}
        if not self._measures:
            raise ConfigError("task.measures names no measure; leave at least one in")
        for name, one in self._measures.items():
            lacking = [method for method in ("missing", "update", "result") if not hasattr(one, method)]
            if lacking:
                raise ConfigError(
                    f"task.measures.{name} is a {type(one).__name__}, which has no {' and no '.join(lacking)}; a "
                    "measure has all three (gate_lightning/tasks/content_shift/measure.py)"
                )
        self.reader = ShiftReader(
            *(backbones, candidates.branches, timesteps, noises, fused),
            seed=seed,
            posterior=posterior,
            max_samples=max_samples,
            memory_gib=memory_gib,
            passes=passes,
        )
        self._left_out = dict(candidates.left_out)
        self._bootstrap = partial(Bootstrap, resamples=resamples, level=level, seed=seed)
        self._bootstrap(2)  # wrong settings are told of before anything is read
        self._sample: list[ImageBatch] = []
        self.shift_results: dict[str, ShiftResults] = {}
        self.shift_table: dict[str, tuple[Compared, ...]] = {}

    def frozen_description(self) -> dict[str, Any]:
        """Backbones, branches and timesteps: all that features depend on."""
        return self.reader.description

    def on_test_start(self) -> None:
        """Begin a new sample; several processes are refused."""
        if self.trainer.world_size > 1:
            raise ConfigError(
                f"content shift is measured by one process, which sees the whole sample; there are "
                f"{self.trainer.world_size}: use trainer.devices=1"
            )
        self._sample = []

    on_validation_start = on_test_start

    def test_step(self, batch: ImageBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep a batch: an image is also read with the caption of the next one."""
        self._sample.append(batch)

    validation_step = test_step

    def on_test_epoch_end(self) -> None:
        """Measure and rank on the test split."""
        self._rank("test")

    def on_validation_epoch_end(self) -> None:
        """Measure and rank on the validation split."""
        self._rank("val")

    def headline(self) -> str | None:
        """Candidate that is ranked first, by measure: ``ranked first: lora by drift_moves; prompt by …``."""
        first: dict[str, list[str]] = {}
        for lines in self.shift_table.values():
            for one in overall(lines):
                if one.rank == 1:
                    first.setdefault(one.candidate, []).append(one.measure)
        named = "; ".join(f"{candidate} by {', '.join(measures)}" for candidate, measures in first.items())
        return f"ranked first: {named}" if named else None

    def _rank(self, split: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        labels: ClassLabels | None = getattr(data, "labels", None)
        sample, self._sample = self._sample, []
        measures = copy.deepcopy(self._measures)  # counted anew
        results = measure_content_shift(self.reader, sample, measures, labels, self._left_out)
        for name, reason in results.left_out.items():
            log.warning("not measured: %s: %s", name, reason)
        bootstrap = self._bootstrap(len(results.images))
        self.shift_results[split] = results
        self.shift_table[split] = tuple(figures(results.statistics, compared_rows(results), bootstrap))
        named = metric_names(self.shift_table[split])
        self.log_dict({f"{split}/{name}": value for name, value in named.items()})


def metric_names(lines: Sequence[Compared]) -> dict[str, float]:
    """``<measure>/<candidate>`` → figure of all timesteps and layers; undefined ones are left out."""
    named = {f"{one.measure}/{UNNAMED.sub('_', one.candidate).strip('_')}": one.figure.value for one in overall(lines)}
    return {name: value for name, value in named.items() if value == value}
