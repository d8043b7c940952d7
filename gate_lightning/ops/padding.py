"""Padding at the bottom and the right, so that pixel coordinates stay what they were."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from gate_lightning.errors import DataError
from gate_lightning.structures import Conditions

__all__ = ["check_batch", "pad_batch", "pad_to_multiple", "pad_to_size", "padded_size"]


def padded_size(height: int, width: int, multiple: int) -> tuple[int, int]:
    """(height, width) rounded up to multiples of ``multiple``: the size that feature maps cover."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def check_batch(images: Tensor, conditions: Conditions) -> None:
    """Raise DataError unless these are images (B, C, H, W), one or more, with the conditions of as many."""
    if not isinstance(images, Tensor):
        raise DataError(
            f"images are of type {type(images).__name__}; expected a tensor (B, 3, H, W) in [-1, 1], as of read_images"
        )
    if not isinstance(conditions, Conditions):
        raise DataError(
            f"conditions are of type {type(conditions).__name__}; expected Conditions, such as Conditions(('a.jpg',))"
        )
    if images.ndim != 4 or not len(images):
        raise DataError(f"images of shape {tuple(images.shape)}; expected a batch (B, 3, H, W) of at least one")
    if len(conditions) != len(images):
        raise DataError(f"{len(images)} images, but conditions for {len(conditions)}; give one entry per image")


def pad_batch(images: Tensor, conditions: Conditions, multiple: int) -> tuple[Tensor, Conditions]:
    """Images (B, 3, H, W) and their control images, with sides that are multiples of ``multiple`` pixels.

    What is no batch of floating-point images comes back as it is, for the backbone to refuse.

    Raises:
        DataError: images that have to be padded with a control image of another size.
    """
    size = images.shape[-2:]
    if images.ndim != 4 or not images.is_floating_point() or padded_size(size[0], size[1], multiple) == size:
        return images, conditions
    for name, control in conditions.control_images.items():
        if control.shape[-2:] != size:
            found, wanted = (" × ".join(map(str, sides)) for sides in (control.shape[-2:], size))
            raise DataError(f"control image {name!r} has {found} pixels (height × width), its image {wanted}")
    pad = partial(pad_to_multiple, multiple=multiple)
    return pad(images), conditions.map_controls(pad)


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
    return pad_to_size(images, *padded_size(images.shape[-2], images.shape[-1], multiple))


def _pad_axis(images: Tensor, axis: int, amount: int) -> Tensor:
    if amount == 0:
        return images
    padding = (0, amount, 0, 0) if axis == -1 else (0, 0, 0, amount)
    # mirroring needs at least one more pixel than it adds
    mode = "reflect" if amount < images.shape[axis] else "replicate"
    return F.pad(images, padding, mode=mode)
