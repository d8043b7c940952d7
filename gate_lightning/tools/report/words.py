"""Metrics in words, and as people read their numbers."""

from __future__ import annotations

import math

__all__ = ["explained", "is_share", "shown", "tail_of"]

#: metric without its split → sentence; these are shares, shown in percent
SHARES = {
    "mIoU": "Mean over the classes of intersection over union, from the pixels of all images of the split together.",
    "mIoU_ddpm": "Mean IoU as the published label-scarce tables count it: predictions at unlabelled pixels count "
    "against a class, and a class that is nowhere counts as 0.",
    "boundary_mIoU": "Mean IoU of the bands along the classes' boundaries.",
    "aAcc": "Share of the labelled pixels that are called right.",
    "mAcc": "Mean over the classes of the share of their pixels that is called right.",
    "kind": "Share of images whose kind of object is recognised.",
    "color": "Share of images whose colour is recognised.",
    "both": "Share of images whose kind and colour are recognised.",
}
OTHERS = {
    "loss": "What training minimises, on this split.",
    "uncertainty": "Mean disagreement of the ensemble's members on an image, in nats.",
}
SPLITS = {"val": "validation images", "test": "test images", "train": "training images"}


def tail_of(metric: str) -> str:
    """Name without split and without ``_std``."""
    return metric.rpartition("/")[2].removesuffix("_std")


def is_share(metric: str) -> bool:
    """Whether a metric is a share, shown in percent."""
    return tail_of(metric) in SHARES


def explained(metric: str) -> str:
    """A sentence on what a metric is; empty of one that is unknown here."""
    return {**SHARES, **OTHERS}.get(tail_of(metric), "")


def shown(metric: str, value: float | None, spread: float | None = None, signed: bool = False) -> str:
    """A value as text, with a standard deviation where there is one.

    Args:
        metric: name; shares become percent.
        value: number; None or NaN is a dash.
        spread: standard deviation.
        signed: whether it is a difference: a value from 0 up has a plus sign, and percent are points.
    """
    if value is None or math.isnan(value):
        return "–"
    plus = "+" if signed else ""
    if is_share(metric):
        text = f"{100 * value:{plus}.1f}"
        unit = "" if signed else " %"  # differences are in points
        return f"{text}{unit}" if spread is None else f"{text} ± {100 * spread:.1f}{unit}"
    text = f"{value:{plus}.4g}"
    return text if spread is None else f"{text} ± {spread:.2g}"
