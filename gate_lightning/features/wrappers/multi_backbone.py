"""Several backbones in one extraction: Stable Diffusion beside ADM, SD 1.5 beside SDXL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch, check_branches
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions, FeatureInfo, Features

__all__ = ["MultiBackboneExtractor"]


class MultiBackboneExtractor(nn.Module):
    """The branches of several extractors, each with a backbone of its own, as one extractor.

    A backbone may read the images at another size than they have: ``scales``. Sides are multiplied by its scale and
    rounded to the nearest multiple of its ``size_multiple`` (up to ``minimum_size`` at least); images and control
    images are resized bilinearly, antialiased. A size that comes out as it was is not touched.

    Strides of ``feature_info`` are pixels of the *given* images: the backbone's stride / scale, rounded to the
    nearest integer of 1 or more. A map of stride s has ⌈H/s⌉ × ⌈W/s⌉ positions; where rounding makes the backbone's
    own map another size, it is resized to that bilinearly, antialiased, so that maps of one stride fit together.

    Args:
        extractors: name → extractor; branch names differ across all of them.
        scales: name → factor on the sides of images, > 0; 1 for those not named.
        order: names of all branches in the order wanted; None for one extractor after the other.

    Raises:
        ConfigError: no extractors, branches of one name, a scale that is not positive, or unknown names.
    """

    def __init__(
        self,
        extractors: Mapping[str, FeatureExtractor],
        scales: Mapping[str, float] | None = None,
        order: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        branches = [branch for extractor in extractors.values() for branch in extractor.branches]
        check_branches(branches)
        scales = dict(scales or {})
        _check_scales(scales, extractors)
        by_name = {branch.name: branch for branch in branches}
        names = list(by_name) if order is None else list(order)
        if sorted(names) != sorted(by_name):
            raise ConfigError(f"order={names}: expected each of the branches {', '.join(by_name)} once")
        self.names = tuple(extractors)
        self.extractors = nn.ModuleList(extractors.values())
        self.scales = {name: float(scales.get(name, 1.0)) for name in extractors}
        self.branches: tuple[Branch, ...] = tuple(by_name[name] for name in names)
        info = {
            branch: {layer: _rescaled(one, self.scales[name]) for layer, one in layers.items()}
            for name, extractor in extractors.items()
            for branch, layers in extractor.feature_info.items()
        }
        #: branch → layer id → FeatureInfo, in the order of branches and layers
        self.feature_info: dict[str, dict[str, FeatureInfo]] = {name: info[name] for name in names}

    @property
    def backbone(self) -> Backbone:
        """The first one, which decides what sizes of images are given."""
        return self._by_name()[self.names[0]].backbone

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""
        return tuple(branch.name for branch in self.branches if branch.concatenated)

    @property
    def description(self) -> dict[str, Any]:
        """All that the features depend on besides the images, JSON-able."""
        described = {name: extractor.description for name, extractor in self._by_name().items()}
        return {
            "backbones": {name: {**one, "scale": self.scales[name]} for name, one in described.items()},
            "order": [branch.name for branch in self.branches],
        }

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of images, see FeatureExtractor.forward.

        Args:
            images: (B, 3, H, W) in [-1, 1]; sides a multiple of the first backbone's ``size_multiple``.
            conditions: of the batch. Explicit noise is given to all backbones and so must fit the latents of each.

        Returns:
            Branch name → layer id → (B, C, ⌈H/stride⌉, ⌈W/stride⌉); layers without stride as the backbone gives them.
        """
        self.backbone.check_images(images)
        height, width = images.shape[-2:]
        features: Features = {}
        for name, extractor in self._by_name().items():
            size = [_side(side, self.scales[name], extractor.backbone) for side in (height, width)]
            controls = {key: _resized(control, size) for key, control in conditions.control_images.items()}
            seen = extractor(_resized(images, size), replace(conditions, control_images=controls))
            for branch, maps in seen.items():
                features[branch] = {
                    layer: _on_grid(value, self.feature_info[branch][layer].stride, height, width)
                    for layer, value in maps.items()
                }
        return {branch.name: features[branch.name] for branch in self.branches}

    def _by_name(self) -> dict[str, FeatureExtractor]:
        found = {}
        for name, extractor in zip(self.names, self.extractors, strict=True):
            assert isinstance(extractor, FeatureExtractor)
            found[name] = extractor
        return found


def _check_scales(scales: Mapping[str, float], extractors: Mapping[str, FeatureExtractor]) -> None:
    unknown = [name for name in scales if name not in extractors]
    if unknown:
        raise ConfigError(f"scales name {', '.join(unknown)}; the backbones are {', '.join(extractors)}")
    for name, scale in scales.items():
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise ConfigError(f"the scale of the backbone {name} is {scale!r}; expected a factor above 0, e.g. 0.5")


def _rescaled(info: FeatureInfo, scale: float) -> FeatureInfo:
    """Channels and stride in pixels of the given images; stride 0 is no map and stays."""
    return replace(info, stride=max(1, round(info.stride / scale))) if info.stride else info


def _side(side: int, scale: float, backbone: Backbone) -> int:
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
