"""Checks of class index maps."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.errors import DataError

__all__ = ["check_label_range", "in_range"]


def in_range(masks: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Labelled pixels of a mask, and those of them that hold a value that is no class: bool tensors like it."""
    labelled = masks != ignore_index
    return labelled, labelled & ((masks < 0) | (masks >= num_classes))


def check_label_range(masks: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Refuse label values that are neither a class nor ``ignore_index``; return which pixels are labelled.

    Without it such a value is a device-side assertion on a GPU, and in a confusion matrix a pixel booked under another
    class.

    Args:
        masks: integer tensor of any shape.
        num_classes: K; classes are 0 … K - 1.
        ignore_index: value of pixels that do not count. May lie inside the classes: that class is then not counted.

    Returns:
        Bool tensor like ``masks``: True where the pixel counts.

    Raises:
        DataError: naming the values found, if a counted pixel lies outside 0 … K - 1.
    """
    valid, wrong = in_range(masks, num_classes, ignore_index)
    if bool(wrong.any()):
        values = torch.unique(masks[wrong]).tolist()
        shown = ", ".join(str(value) for value in values[:10]) + (", …" if len(values) > 10 else "")
        raise DataError(
            f"masks hold label values {shown}; expected 0 … {num_classes - 1} for {num_classes} classes, or "
            f"ignore_index={ignore_index} for pixels that do not count. Correct the masks, the class list or "
            "dataset.ignore_index"
        )
    return valid
