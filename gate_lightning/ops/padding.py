"""Padding at the bottom and the right, so that pixel coordinates stay what they were."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["pad_to_multiple", "pad_to_size"]


def pad_to_size(images: Tensor, height: int, width: int) -> Tensor:
    """Images of at least (height, width), padded at the bottom and the right.

    The padding mirrors the image, which looks natural to a denoiser; where the image is too small to be mirrored
    that far, its edge is repeated.

    Args:
        images: (B, C, H, W).
        height: rows wanted; no rows are removed where there are more.
        width: columns wanted.

    Returns:
        (B, C, max(H, height), max(W, width)).
    """
    images = _pad_axis(images, -1, max(width - images.shape[-1], 0))
    return _pad_axis(images, -2, max(height - images.shape[-2], 0))


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images whose sides are multiples of ``multiple`` pixels, padded as in `pad_to_size`."""
    height, width = images.shape[-2:]
    return pad_to_size(images, -(-height // multiple) * multiple, -(-width // multiple) * multiple)


def _pad_axis(images: Tensor, axis: int, amount: int) -> Tensor:
    if amount == 0:
        return images
    padding = (0, amount, 0, 0) if axis == -1 else (0, 0, 0, amount)
    # mirroring needs at least one more pixel than it adds
    mode = "reflect" if amount < images.shape[axis] else "replicate"
    return F.pad(images, padding, mode=mode)
