"""Closeness of images to the images they were made from, by four readings that need not agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from gate_lightning.errors import ConfigError

__all__ = ["cosine_distance", "edge_agreement", "edge_strength", "mean_squared_error", "structural_similarity"]

#: brightness of red, green and blue (ITU-R BT.601)
_BRIGHTNESS = (0.299, 0.587, 0.114)
_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
#: width of the window of `structural_similarity`
_WINDOW = 11


def mean_squared_error(images: Tensor, made: Tensor) -> Tensor:
    """(B,) mean over pixels and colours of the squared difference, on a scale of [0, 1].

    It sees mostly the look of an image, its brightness and colours.

    Args:
        images, made: (B, 3, H, W) in [-1, 1].

    Raises:
        ConfigError: images of different shapes.
    """
    images, made = _shares(images, made)
    return (images - made).square().double().mean(dim=(1, 2, 3))


def structural_similarity(images: Tensor, made: Tensor) -> Tensor:
    """(B,) SSIM (Wang et al. 2004) as torchmetrics computes it on [0, 1]: Gaussian window of 11 × 11, σ = 1.5.

    Args and Raises: as for `mean_squared_error`; also images with a side of less than 11 pixels.
    """
    images, made = _shares(images, made)
    if min(images.shape[-2:]) < _WINDOW:
        raise ConfigError(
            f"images of {tuple(images.shape[-2:])} pixels; SSIM compares windows of {_WINDOW} × {_WINDOW}"
        )
    similarity = structural_similarity_index_measure(made, images, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity.double().reshape(len(images))


def edge_agreement(images: Tensor, made: Tensor) -> Tensor:
    """(B,) correlation in [-1, 1] of the strengths of edges; 0 where one of two images has none.

    It sees contours and hardly the look. A ControlNet for edges is told what is measured here: its figure says that it
    obeys, not that nothing has shifted.

    Args and Raises: as for `mean_squared_error`.
    """
    images, made = _shares(images, made)
    strengths = [edge_strength(one).double().flatten(1) for one in (images, made)]
    first, second = (one - one.mean(dim=1, keepdim=True) for one in strengths)
    norms = first.norm(dim=1) * second.norm(dim=1)
    return torch.where(norms > 0, (first * second).sum(dim=1) / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)


def edge_strength(images: Tensor) -> Tensor:
    """(B, H, W) length of the Sobel gradient of the brightness of images (B, 3, H, W); the border is repeated."""
    brightness = (images * images.new_tensor(_BRIGHTNESS).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    kernel = images.new_tensor(_SOBEL)
    gradients = F.conv2d(F.pad(brightness, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return torch.linalg.vector_norm(gradients, dim=1)


def cosine_distance(first: Tensor, second: Tensor) -> Tensor:
    """(B,) 1 - cosine of vectors (B, C), such as a vision transformer's of two images."""
    return 1.0 - F.cosine_similarity(first.double(), second.double(), dim=1)


def _shares(images: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Both on a scale of [0, 1], in float32."""
    if images.shape != made.shape or images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(
            f"images of {tuple(images.shape)} and of {tuple(made.shape)}; closeness compares two (B, 3, H, W)"
        )
    return images.float() / 2 + 0.5, made.float() / 2 + 0.5
