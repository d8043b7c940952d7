"""Percentage of correct keypoints of a split, by many definitions at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.metrics.pck_variants import THRESHOLDS, PCKVariant
from gate_lightning.structures import Pair
from gate_lightning.utils.processes import gathered

__all__ = ["PCK", "KeypointGroups", "MeasuredPair"]

Numbers = NDArray[np.float64]
#: category → groups of keypoints that look alike, such as left and right paws
KeypointGroups = Mapping[str, Sequence[Collection[str]]]


@dataclass(frozen=True, eq=False)
class MeasuredPair:
    """A pair with the matches of its keypoints.

    Attributes:
        number: position of the pair in its split.
        pair: the pair.
        matches: (N, 2) float64 x, y in pixels of the target's file; NaN where there is none.
    """

    number: int
    pair: Pair
    matches: Numbers

    @property
    def errors(self) -> Numbers:
        """From the keypoints to the matches (N, 2), in pixels; NaN where there is no match."""
        errors: Numbers = self.matches - self.pair.target_points.double().numpy()
        return errors


class PCK:
    """Every asked-for PCK of a split, over all processes.

    Args:
        variants: what is computed.
        groups: category → groups of keypoint names that look alike, for the ``geometry-aware`` subset.

    Raises:
        ConfigError: a ``geometry-aware`` variant without groups.
    """

    def __init__(self, variants: Sequence[PCKVariant], groups: KeypointGroups | None = None) -> None:
        self.variants, self.groups = tuple(variants), groups or {}
        if not self.groups and any(one.subset != "all" for one in self.variants):
            raise ConfigError(
                "subsets has geometry-aware ones, which need the groups of keypoints that look alike: "
                "keypoint_groups={cat: [[2, 3], [9, 10, 11, 12]], …}"
            )
        self._measured: dict[int, MeasuredPair] = {}

    def update(self, number: int, pair: Pair, matches: Tensor) -> MeasuredPair:
        """Add the matches (N, 2) of pair ``number`` of the split.

        Raises:
            DataError: the pair has no keypoints.
        """
        if not len(pair):
            raise DataError(f"{pair.source} → {pair.target} has no keypoints in common: leave such pairs out")
        found = MeasuredPair(number, pair, matches.double().cpu().numpy())
        self._measured[number] = found
        return found

    def measured(self) -> tuple[MeasuredPair, ...]:
        """The pairs of all processes in the order of the split, each once; every process has to call it."""
        every = {pair.number: pair for part in gathered(list(self._measured.values())) for pair in part}
        return tuple(every[index] for index in sorted(every))

    def reset(self) -> None:
        """Forget all pairs that were measured."""
        self._measured = {}

    def check(self, pairs: Sequence[Pair]) -> None:
        """Raise, before anything is matched, unless all variants can be computed on these pairs.

        Raises:
            ConfigError: a variant needs boxes, groups or names that the pairs do not have.
            DataError: a length is zero, or pairs have no keypoints.
        """
        without = [pair for pair in pairs if not len(pair)]
        if without:
            raise DataError(
                f"{len(without)} of {len(pairs)} pairs have no keypoints, so that nothing can be measured on them; the "
                f"first is {without[0].source} → {without[0].target}"
            )
        for variant in self.variants:
            lengths_of(pairs, variant)
            if variant.average.endswith("_by_group") and not any(pair.group for pair in pairs):
                raise ConfigError(f"averages has {variant.average}, and these pairs are in no groups; leave it out")
            unknown = [pair for pair in pairs if variant.subset == "geometry-aware" and pair.target_visible is None]
            if unknown:
                raise ConfigError(
                    f"subsets has geometry-aware, and of {len(unknown)} of {len(pairs)} pairs it is not known which "
                    f"keypoints are visible in the target, the first is {unknown[0].source} → {unknown[0].target} "
                    "(SPair-71k tells in ImageAnnotation/); count those of the pair alone: geometry-aware-common"
                )
            if variant.subset != "all" and not any(_counted(pair, self.groups, variant.subset).any() for pair in pairs):
                raise ConfigError(
                    "no pair has two keypoints of one group of keypoint_groups; its names are those of the data set: "
                    f"{', '.join(pairs[0].keypoint_ids) or 'none'} in {pairs[0].category or 'the first pair'}"
                )

    def compute(self, measured: Sequence[MeasuredPair]) -> dict[str, float]:
        """`PCKVariant.key` → fraction in [0, 1]; NaN where no keypoint is in the subset.

        Args:
            measured: of `measured`.
        """
        keypoints = _Keypoints(measured, self.groups)
        return {variant.key: keypoints.score(variant) for variant in self.variants}

    def right(self, one: MeasuredPair, variant: PCKVariant) -> NDArray[np.bool_]:
        """Matches (N,) of a pair that are close enough, for a variant that counts all keypoints."""
        return _Keypoints([one], self.groups).right(variant)

    def per_category(self, measured: Sequence[MeasuredPair]) -> dict[str, dict[str, float]]:
        """Category → `PCKVariant.key` → fraction, of the variants that are no means over categories or groups."""
        keypoints = _Keypoints(measured, self.groups)
        found: dict[str, dict[str, float]] = {}
        for variant in self.variants:
            if "_by_" not in variant.average:
                for category, score in keypoints.by_category(variant).items():
                    found.setdefault(category, {})[variant.key] = score
        return found


def lengths_of(pairs: Sequence[Pair], variant: PCKVariant) -> Numbers:
    """The length (P,) that the threshold of each pair is a share of.

    Raises:
        ConfigError: pairs without box.
        DataError: a length of zero.
    """
    if variant.threshold.endswith("px"):
        return np.full(len(pairs), float(variant.threshold[:-2]))
    if variant.threshold == "square":
        return np.ones(len(pairs))
    source = variant.reference == "source"
    if variant.threshold == "img":
        return np.array([max(pair.source_size if source else pair.target_size) for pair in pairs], dtype=np.float64)
    if variant.threshold == "bbox-kp":
        points = (pair.source_points if source else pair.target_points for pair in pairs)
        found = [float((one.amax(dim=0) - one.amin(dim=0)).max()) for one in points]
    else:
        boxes = [pair.source_box if source else pair.target_box for pair in pairs]
        missing = [pair for pair, box in zip(pairs, boxes, strict=True) if box is None]
        if missing:
            raise ConfigError(
                f"{variant.name}: {len(missing)} of {len(pairs)} pairs have no box of the {variant.reference}, the "
                f"first is {missing[0].source} → {missing[0].target}; choose others: {', '.join(THRESHOLDS[1:])}"
            )
        found = [max(box[2] - box[0], box[3] - box[1]) for box in boxes if box is not None]
    empty = [pair for pair, length in zip(pairs, found, strict=True) if not length > 0]
    if empty:
        what = "a box of no area" if variant.threshold == "bbox" else "keypoints of no extent"
        raise DataError(
            f"{variant.name}: {len(empty)} of {len(pairs)} pairs have {what} in the {variant.reference}, the first is "
            f"{empty[0].source} → {empty[0].target}; leave them out, or choose another threshold"
        )
    return np.array(found, dtype=np.float64)


def _counted(pair: Pair, groups: KeypointGroups, subset: str) -> NDArray[np.bool_]:
    """Keypoints (N,) of a pair that have another one in their group; see `PCKVariant`."""
    own = [{str(name) for name in group} for group in groups.get(pair.category, ())]
    there = set(pair.keypoint_ids)
    if subset == "geometry-aware":
        there |= pair.target_visible or set()
    found = [any(name in group and len(group & there) > 1 for group in own) for name in pair.keypoint_ids]
    return np.array(found or [False] * len(pair), dtype=bool)


class _Keypoints:
    """The keypoints of all pairs one behind the other."""

    def __init__(self, measured: Sequence[MeasuredPair], groups: KeypointGroups) -> None:
        self.pairs = [one.pair for one in measured]
        self.owner = np.repeat(np.arange(len(self.pairs)), [len(pair) for pair in self.pairs])
        errors = np.concatenate([one.errors for one in measured])
        sides = np.array([pair.target_size[::-1] for pair in self.pairs], dtype=np.float64)
        self.distances = np.hypot(*errors.T)
        self.relative = np.hypot(*(errors / sides[self.owner]).T)
        self.labels = {
            "category": np.array([pair.category for pair in self.pairs]),
            "group": np.array([pair.group for pair in self.pairs]),
        }
        self._groups = groups
        self._lengths: dict[tuple[str, str], Numbers] = {}
        self._subsets: dict[str, NDArray[np.bool_]] = {}

    def score(self, variant: PCKVariant) -> float:
        right, count = self._per_pair(variant)
        kind, *by = variant.average.split("_by_")
        if not by:
            return _MEANS[kind](right, count)
        return _mean_of([_MEANS[kind](right[rows], count[rows]) for rows in self._parts(by[0])])

    def by_category(self, variant: PCKVariant) -> dict[str, float]:
        right, count = self._per_pair(variant)
        names = np.unique(self.labels["category"])
        scores = (_MEANS[variant.average](right[rows], count[rows]) for rows in self._parts("category"))
        return dict(zip(map(str, names), scores, strict=True))

    def _parts(self, label: str) -> list[NDArray[np.bool_]]:
        return [self.labels[label] == name for name in np.unique(self.labels[label])]

    def _per_pair(self, variant: PCKVariant) -> tuple[Numbers, Numbers]:
        """Right keypoints and counted keypoints of every pair."""
        right = self.right(variant)
        if variant.subset == "all":
            counted = np.ones(len(right), dtype=bool)
        else:
            if variant.subset not in self._subsets:
                found = [_counted(pair, self._groups, variant.subset) for pair in self.pairs]
                self._subsets[variant.subset] = np.concatenate(found)
            counted = self._subsets[variant.subset]
        return self._sums(right & counted), self._sums(counted)

    def right(self, variant: PCKVariant) -> NDArray[np.bool_]:
        """Matches (N,) that are close enough."""
        key = (variant.threshold, variant.reference)
        if key not in self._lengths:
            self._lengths[key] = lengths_of(self.pairs, variant)
        distances = self.relative if variant.threshold == "square" else self.distances
        shares = distances / self._lengths[key][self.owner]
        right: NDArray[np.bool_] = shares <= variant.alpha if variant.comparison == "le" else shares < variant.alpha
        return right

    def _sums(self, chosen: NDArray[np.bool_]) -> Numbers:
        sums: Numbers = np.bincount(self.owner, chosen, len(self.pairs)).astype(np.float64)
        return sums


def _per_image(right: Numbers, count: Numbers) -> float:
    there = count > 0
    return _mean_of(right[there] / count[there])


def _per_point(right: Numbers, count: Numbers) -> float:
    return float(right.sum() / count.sum()) if count.sum() else float("nan")


def _mean_of(values: Sequence[float] | Numbers) -> float:
    """Mean of the values that are there; NaN where there is none."""
    there = [value for value in values if not np.isnan(value)]
    return float(np.mean(there)) if there else float("nan")


_MEANS: Mapping[str, Callable[[Numbers, Numbers], float]] = {"image": _per_image, "point": _per_point}
