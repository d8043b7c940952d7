"""Extraction with several backbones, such as Stable Diffusion and ADM, or SD 1.5 and SDXL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import check_names
from gate_lightning.features.reading.noise import noise_of_branches
from gate_lightning.features.wrappers.base import WrappedExtractor, check_extractor
from gate_lightning.ops.padding import check_batch, pad_batch
from gate_lightning.structures import BackboneInfo, Conditions, Extractor, FeatureInfo, Features, FeaturesInfo
from gate_lightning.utils.checks import check_known, check_type, number

__all__ = ["MultiBackboneExtractor"]


class MultiBackboneExtractor(WrappedExtractor):
    """Union of the branches of several extractors, each with its own backbone.

    Images are padded to multiples of the first backbone's ``size_multiple``. A backbone may read them at another size:
    ``scales``. Sides are multiplied by its scale and rounded to the nearest multiple of its ``size_multiple`` (up to
    ``minimum_size`` at least); images and control images are resized bilinearly, antialiased.

    Strides of ``feature_info`` are pixels of the *given* images: the backbone's stride / scale, rounded to the
    nearest integer of 1 or more. A map of stride s has ⌈H/s⌉ × ⌈W/s⌉ positions; where rounding makes the backbone's
    own map another size, it is resized to that bilinearly, antialiased, so that maps of one stride fit together.

    Args:
        extractors: name → extractor; branch names differ across all of them. ``backbone`` is that of the first.
        scales: name → factor on the sides of images, > 0; 1 for those not named.
        order: names of all branches in the order wanted; None for one extractor after the other.

    Raises:
        ConfigError: no extractors, branches of one name, a scale that is not positive, or unknown names.
    """

    def __init__(
        self,
        extractors: Mapping[str, Extractor],
        scales: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
    ) -> None:
        check_type(extractors, "extractors", Mapping, "names and extractors, such as {'sd15': FeatureExtractor(…)}")
        for name, one in extractors.items():
            check_extractor(one, f"extractors: {name}")
        check_type(scales, "scales", Mapping | None, "names and factors, such as {'dino': 0.5}")
        check_type(order, "order", list | tuple | None, "a list of the branches' names")
        if not extractors:
            raise ConfigError("no extractors; give at least one")
        super().__init__(next(iter(extractors.values())))
        scales = dict(scales or {})
        _check_scales(scales, extractors)
        names = [branch for extractor in extractors.values() for branch in extractor.feature_info]
        check_names(names)
        self.order = names if order is None else list(order)
        if sorted(map(str, self.order)) != sorted(names):
            raise ConfigError(f"order={self.order}: expected each of the branches {', '.join(names)} once")
        self.scales = {name: float(scales.get(name, 1.0)) for name in extractors}
        self.extractors = nn.ModuleList(one for one in extractors.values() if isinstance(one, nn.Module))
        self._by_name = dict(extractors)

    @property
    def feature_info(self) -> FeaturesInfo:
        """See `Extractor`; strides in pixels of the given images."""
        info = {
            branch: {layer: _rescaled(one, self.scales[name]) for layer, one in layers.items()}
            for name, extractor in self._by_name.items()
            for branch, layers in extractor.feature_info.items()
        }
        return {branch: info[branch] for branch in self.order}

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Branches of all backbones to be concatenated after amalgamation, in the order of branches."""
        found = {branch for extractor in self._by_name.values() for branch in extractor.concatenated}
        return tuple(branch for branch in self.order if branch in found)

    @property
    def description(self) -> Mapping[str, Any]:
        """Descriptions of the backbones' extractors, the sizes at which they see images, and the order of branches."""
        described = {name: extractor.description for name, extractor in self._by_name.items()}
        return {
            "backbones": {name: {**one, "scale": self.scales[name]} for name, one in described.items()},
            "order": self.order,
        }

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of images, see `Extractor`.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            conditions: of the batch. Explicit noise for all branches is given to all backbones and so must fit the
                latents of each; noise by branch goes to the backbone of the branch.

        Returns:
            Branch name → layer id → (B, C, ⌈H/stride⌉, ⌈W/stride⌉) of padded images; layers without stride as the
            backbone gives them.
        """
        check_batch(images, conditions)
        images, conditions = pad_batch(images, conditions, self.backbone.size_multiple)
        self.backbone.check_images(images)
        height, width = images.shape[-2:]
        info, features = self.feature_info, Features()
        for name, extractor in self._by_name.items():
            size = [_side(side, self.scales[name], extractor.backbone) for side in (height, width)]
            own = noise_of_branches(conditions, extractor.feature_info, self.order)
            seen = extractor(_resized(images, size), own.map_controls(partial(_resized, size=size)))
            for branch, maps in seen.items():
                features[branch] = {
                    layer: _on_grid(value, info[branch][layer].stride, height, width) for layer, value in maps.items()
                }
        return {branch: features[branch] for branch in self.order}


def _check_scales(scales: Mapping[str, float], extractors: Mapping[str, Extractor]) -> None:
    check_known(scales, extractors, "scales of backbones")
    for name, scale in scales.items():
        if not 0 < number(scale, f"scale of the backbone {name}") < float("inf"):
            raise ConfigError(f"scale of the backbone {name}={scale!r}: expected a factor above 0, such as 0.5")


def _rescaled(info: FeatureInfo, scale: float) -> FeatureInfo:
    """Channels and stride in pixels of the given images; stride 0 is no map and stays."""
    return replace(info, stride=max(1, round(info.stride / scale))) if info.stride else info


def _side(side: int, scale: float, backbone: BackboneInfo) -> int:
    multiple = backbone.size_multiple
    least = -(-backbone.minimum_size // multiple)
    return max(least, round(side * scale / multiple)) * multiple


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if list(images.shape[-2:]) == list(size):
        return images
    # no overshoot: the values stay in their range
    return F.interpolate(images, tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _on_grid(value: Tensor, stride: int, height: int, width: int) -> Tensor:
    return _resized(value, (-(-height // stride), -(-width // stride))) if stride else value
