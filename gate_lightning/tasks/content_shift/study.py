"""Content shift of candidates on a sample of images: a function of backbones, branches and images, no trainer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError, DataError, GateError
from gate_lightning.metrics.content_shift.statistic import Statistic
from gate_lightning.metrics.content_shift.table import Row
from gate_lightning.structures import ImageBatch
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.candidates import Candidate
from gate_lightning.tasks.content_shift.measure import Key, Measure
from gate_lightning.tasks.content_shift.reading import Cost, ShiftReader
from gate_lightning.techniques.base import Trajectory
from gate_lightning.utils.progress import Progress

__all__ = ["ShiftResults", "compared_rows", "measure_content_shift", "require_images"]


@dataclass(frozen=True)
class ShiftResults:
    """Statistics of every measure, candidate, timestep and layer, and what they cost.

    Attributes:
        images: sample ids, in the order of the statistics' rows.
        timesteps: at which features were compared.
        candidates: rows, by name.
        statistics: measure → candidate, timestep, layer → statistic.
        costs: candidate, timestep → cost of its features; one timestep where all cost the same.
        left_out: measure, candidate, or candidate and timestep → why it was not measured.
        seconds: that measuring took.
    """

    images: tuple[str, ...]
    timesteps: tuple[int, ...]
    candidates: Mapping[str, Candidate]
    statistics: Mapping[str, Mapping[Key, Statistic]]
    costs: Mapping[tuple[str, int], Cost] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def plain(self, candidate: str) -> str:
        """The plain candidate of the same backbone."""
        backbone = self.candidates[candidate].branch.backbone
        return next(n for n, one in self.candidates.items() if one.kind == "plain" and one.branch.backbone == backbone)

    def cost(self, candidate: str) -> Cost | None:
        """Mean cost over the timesteps; None of what was not read. A row of shuffled captions costs what its candidate
        does."""
        name = self.candidates[candidate].of or candidate
        found = [cost for (other, _), cost in self.costs.items() if other == name]
        if not found:
            return None
        return Cost(*(sum(getattr(one, key) for one in found) / len(found) for key in ("passes", "seconds")))


def require_images(count: int) -> None:
    """Raise DataError of fewer than two images."""
    if count < 2:
        raise DataError(
            f"{count} image{'s' * (count != 1)}: content shift is ranked over a sample of at least 2 images"
        )


@torch.no_grad()
def measure_content_shift(
    reader: ShiftReader,
    batches: Sequence[ImageBatch],
    measures: Mapping[str, Measure],
    labels: ClassLabels | None = None,
    left_out: Mapping[str, str] | None = None,
) -> ShiftResults:
    """Measure every candidate on a sample of images.

    A measure that has nothing to go by here, or that meets an error of this package, is left out with the reason.

    Args:
        reader: backbones and candidates, new: rows of shuffled captions are added to it.
        batches: the sample, on the device of the backbones.
        measures: by name; new ones.
        labels: classes of the batches' masks.
        left_out: candidates that are missing already → why.

    Raises:
        DataError: fewer than two images.
        ConfigError: no measure at all could be taken.
    """
    images = tuple(name for batch in batches for name in batch.conditions.sample_ids)
    require_images(len(images))
    if len(set(images)) < len(images):
        raise DataError("an image is twice in the sample; intervals take images for different ones")
    began = time.monotonic()
    reasons, pending = dict(left_out or {}), dict(measures)
    others = reader.shuffle_captions(batches)
    shown = [ShiftBatch(reader, batch, other, labels) for batch, other in zip(batches, others, strict=True)]
    costs = _costs(reader, batches[0])
    progress = Progress(len(images), 0, 1, "content shift")
    for number, batch in enumerate(shown):
        for name, measure in list(pending.items()):
            reason = _looked(measure, batch, first=number == 0)
            if reason is not None:
                reasons[name] = reason
                del pending[name]
        batch.forget()
        progress.step(len(batch), 0)
    statistics: dict[str, Mapping[Key, Statistic]] = {}
    for name, measure in pending.items():
        try:
            found = dict(measure.result())
        except GateError as error:
            reasons[name] = str(error)
            continue
        statistics |= {name: found} if found else {}
        reasons |= {} if found else {name: "no candidate could be measured"}
    if not statistics:
        listed = "\n  ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"nothing could be measured:\n  {listed or 'task.measures names no measure'}")
    reasons |= reader.left_out | reader.repainter.left_out
    rows = reader.candidates | reader.repainter.ceilings
    seconds = time.monotonic() - began
    return ShiftResults(images, reader.timesteps, rows, statistics, costs, reasons, seconds)


def _looked(measure: Measure, batch: ShiftBatch, first: bool) -> str | None:
    """Show a measure a batch; why it cannot be measured, or None."""
    try:
        reason = measure.missing(batch) if first else None
        if reason is None:
            measure.update(batch)
    except GateError as error:
        return str(error)
    return reason


def _costs(reader: ShiftReader, batch: ImageBatch) -> dict[tuple[str, int], Cost]:
    """Cost of every candidate at the timesteps at which it may differ."""
    found = {}
    for name, one in reader.candidates.items():
        moving = any(isinstance(technique, Trajectory) for technique in one.branch.techniques)
        for timestep in reader.timesteps if moving else reader.timesteps[:1]:
            cost = None if one.kind == "shuffled" else reader.cost(batch, name, timestep)
            if cost is not None:
                found[name, timestep] = cost
    return found


def compared_rows(results: ShiftResults) -> dict[str, Row]:
    """Rows that every candidate is compared with: plain features, and as many noises of them as cost as much.

    Of the plain rows the cheapest that takes at least as many passes (as much time, less a tenth, which no clock
    tells apart), else the dearest.
    """
    return {
        name: Row(
            results.plain(name),
            one.kind in ("plain", "candidate"),
            {kept: row for kept in ("passes", "seconds") if (row := _as_dear(results, name, kept)) is not None},
        )
        for name, one in results.candidates.items()
    }


def _as_dear(results: ShiftResults, candidate: str, kept: str) -> str | None:
    own, plain = results.cost(candidate), results.plain(candidate)
    if own is None or results.candidates[candidate].kind in ("plain", "noises"):
        return None
    backbone = results.candidates[candidate].branch.backbone
    rows = [plain, *(n for n, c in results.candidates.items() if c.kind == "noises" and c.branch.backbone == backbone)]
    costs = {name: getattr(cost, kept) for name in rows if (cost := results.cost(name)) is not None}
    enough = {name: cost for name, cost in costs.items() if cost >= 0.9 * getattr(own, kept)}
    return min(enough, key=enough.__getitem__) if enough else max(costs, key=costs.__getitem__, default=None)
