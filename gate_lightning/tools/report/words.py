"""Metrics in words, and as people read their numbers."""

from __future__ import annotations

import math

__all__ = ["explained", "is_pck", "is_share", "of_split", "shown", "tail_of"]

#: metric without its split (of PCK without its definition) → sentence; these are shares, shown in percent
SHARES = {
    "mIoU": "Mean over the classes of intersection over union, from the pixels of all images of the split together.",
    "mIoU_ddpm": "Mean IoU as the published label-scarce tables count it: predictions at unlabelled pixels count "
    "against a class, and a class that is nowhere counts as 0.",
    "boundary_mIoU": "Mean IoU of the bands along the classes' boundaries.",
    "aAcc": "Share of the labelled pixels that are called right.",
    "Acc": "Share of the images that are called right (top-1 accuracy).",
    "mAcc": "Mean over the classes of the share of their pixels (images, where an image has one class) that is called "
    "right.",
    "kind": "Share of images whose kind of object is recognised.",
    "color": "Share of images whose colour is recognised.",
    "both": "Share of images whose kind and colour are recognised.",
    "PCK": "Percentage of correct keypoints: those whose match is at most a share (the number in the name) of a length "
    "(of the object's box, the image, …) away from the true place; the name also says how they are averaged.",
}
OTHERS = {
    "loss": "What training minimises, on this split.",
    "uncertainty": "Mean disagreement of the ensemble's members on an image, in nats.",
}
SPLITS = {"val": "validation", "test": "test", "train": "training"}


def tail_of(metric: str) -> str:
    """Name without split and without ``_std``."""
    return metric.rpartition("/")[2].removesuffix("_std")


def is_pck(metric: str) -> bool:
    """True if a metric is one of the percentages of correct keypoints, which are of pairs of images."""
    return tail_of(metric).startswith("PCK_")


def is_share(metric: str) -> bool:
    """True if a metric is a share, shown in percent."""
    return _kind(metric) in SHARES


def of_split(metric: str) -> str:
    """Images that a metric was measured on, e.g. "test images"; empty of a name without a split."""
    split = SPLITS.get(metric.partition("/")[0])
    return f"{split} {'pairs' if is_pck(metric) else 'images'}" if split else ""


def explained(metric: str) -> str:
    """A sentence on what a metric is; empty of one that is unknown here."""
    return {**SHARES, **OTHERS}.get(_kind(metric), "")


def _kind(metric: str) -> str:
    return "PCK" if is_pck(metric) else tail_of(metric)


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
