"""Definitions of the percentage of correct keypoints, each with a name that says all of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice, number

__all__ = ["AVERAGES", "COMPARISONS", "THRESHOLDS", "PCKVariant", "main_variant", "pck_variants"]

#: lengths that a threshold is a share of, besides ``<pixels>px``
THRESHOLDS = ("bbox", "img", "bbox-kp", "square")
AVERAGES = ("image", "point", "image_by_category", "point_by_category", "image_by_group", "point_by_group")
COMPARISONS = {"le": "≤", "lt": "<"}
SUBSETS = ("all", "geometry-aware", "geometry-aware-common")


@dataclass(frozen=True)
class PCKVariant:
    """One definition of PCK: the share of keypoints whose match is at most ``alpha`` times a length away.

    Args:
        alpha: share of the length.
        threshold: the length: larger side of the object's box (``bbox``), of the image (``img``), of the extent of the
            pair's keypoints (``bbox-kp``: PF-PASCAL, PF-WILLOW), or a number of pixels (``256px``). ``square``: 1, for
            distances in units of the image's width and height (images resized to a square: SCNet).
        average: mean over pairs of the share in each (``image``), or share of all keypoints (``point``); of each
            category or group, and their plain mean, with ``_by_category`` or ``_by_group``.
        comparison: ``le`` (≤) or ``lt`` (<).
        reference: image whose box, size or keypoints give the length: ``target`` or ``source``.
        subset: ``all`` keypoints; the ``geometry-aware`` ones: those with another keypoint of their group, of keypoints
            that look alike, visible in the target, whether in the source or not (GeoAware-SC); or
            ``geometry-aware-common``: those with another one of the pair in their group, for data that do not tell what
            else is visible.

    Raises:
        ConfigError: unknown or out of range.
    """

    alpha: float = 0.1
    threshold: str = "bbox"
    average: str = "image"
    comparison: str = "le"
    reference: str = "target"
    subset: str = "all"

    def __post_init__(self) -> None:
        number(self.alpha, "alphas", 1e-9)
        if not re.fullmatch(r"[1-9]\d*px", str(self.threshold)):
            check_choice(self.threshold, "thresholds", THRESHOLDS)
        check_choice(self.average, "averages", AVERAGES)
        check_choice(self.comparison, "comparisons", COMPARISONS)
        check_choice(self.reference, "reference", ("target", "source"))
        check_choice(self.subset, "subsets", SUBSETS)

    @property
    def name(self) -> str:
        """Its definition for people, e.g. ``PCK@0.10 bbox per-image ≤``."""
        text = " ".join([f"PCK@{self._alpha}", *self._words, COMPARISONS[self.comparison]])
        return text if self.subset == "all" else f"{text} {self.subset}"

    @property
    def key(self) -> str:
        """The same of letters, digits and ``. _ -``, e.g. ``PCK_0.10_bbox_per-image_le``: for logs and options."""
        text = "_".join([f"PCK_{self._alpha}", *self._words, self.comparison])
        return text if self.subset == "all" else f"{text}_{self.subset}"

    @property
    def _alpha(self) -> str:
        return max(f"{self.alpha:.2f}", f"{self.alpha:g}", key=len)

    @property
    def _words(self) -> tuple[str, ...]:
        kind, *by = self.average.split("_by_")
        length = self.threshold if self.reference == "target" else f"source-{self.threshold}"
        return (length, f"per-{kind}", *(f"by-{part}" for part in by))


def pck_variants(
    alphas: Iterable[float],
    thresholds: Iterable[str],
    averages: Iterable[str],
    comparisons: Iterable[str],
    reference: str = "target",
    subsets: Iterable[str] = ("all",),
) -> tuple[PCKVariant, ...]:
    """All combinations; see `PCKVariant`.

    Raises:
        ConfigError: unknown, out of range, or none.
    """
    found = [
        PCKVariant(alpha, threshold, average, comparison, reference, subset)
        for subset, threshold, comparison, average, alpha in product(subsets, thresholds, comparisons, averages, alphas)
    ]
    if not found:
        raise ConfigError("no variant of PCK: alphas, thresholds, averages, comparisons and subsets each need one")
    return tuple(dict.fromkeys(found))


def main_variant(variants: Iterable[PCKVariant]) -> PCKVariant:
    """The variant by which pairs are told apart in tables and figures: of the alpha nearest to 0.1 the first one."""
    return min((one for one in variants if one.subset == "all"), key=lambda one: abs(one.alpha - 0.1))
