"""Amalgamation of the features of single pixels, for ensembles trained on sampled pixels.

A *group* is a group of branches that is fused together: the branches of one backbone. Its members' features are
(M, P, entries, D): M ensemble members with P pixels each, one entry of D channels per branch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.pixel_classifiers.dense import project_maps, resize_rows, resized_sum, row_bands

__all__ = ["ConcatPixels", "GroupMaps", "PixelAmalgamation", "PixelFusion"]

#: group → entry → maps (C, h, w) of the entry's layers, in the order in which their channels are concatenated
GroupMaps = Mapping[str, Sequence[Sequence[Tensor]]]


@dataclass(frozen=True)
class PixelFusion:
    """Fused features of pixels.

    Attributes:
        features: (M, P, out_channels); M is 1 where neither the pixels nor the amalgamation differ between members.
        weights: group → (M, P, assigners, entries) weights that sum to 1 over entries, with a further channel axis
            where they are per channel; empty where the amalgamation has none.
    """

    features: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=dict)


class PixelAmalgamation(nn.Module, ABC):
    """Fuses the entries of every group and concatenates the groups.

    Parameters and buffers have the members as first axis, see ``pixel_classifiers.members``.

    Args:
        backbone_groups: name → (entries, channels of an entry); the order is the order of the output's channels.
        members: M of the ensemble.
        seed: seed of initial weights and dropout.

    Raises:
        ConfigError: if there is nothing to fuse.
    """

    #: whether branches may differ in channels; each is then a group of its own
    separate_branches = False

    def __init__(self, backbone_groups: Mapping[str, tuple[int, int]], members: int = 10, *, seed: int = 0) -> None:
        super().__init__()
        if not backbone_groups or members < 1 or any(min(shape) < 1 for shape in backbone_groups.values()):
            raise ConfigError(
                f"backbone_groups are {dict(backbone_groups)}, members {members}; expected one or more groups "
                "of (entries, channels), all at least 1"
            )
        self.backbone_groups, self.seed = dict(backbone_groups), seed

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """D of the fused features."""

    @abstractmethod
    def forward(self, backbone_groups: Mapping[str, Tensor]) -> PixelFusion:
        """Fused features of pixels.

        Args:
            backbone_groups: name → (M, P, entries, channels), or (1, P, entries, channels) where all members look at
                the same pixels.

        Raises:
            ConfigError: if a group is missing or has another shape than announced.
        """

    def losses(self, losses: Tensor, fusion: PixelFusion) -> Tensor:
        """The members' losses (M,) with regularisation of ``fusion``, of the same step; call it once per step."""
        del fusion
        return losses

    def dense(self, maps: GroupMaps, weight: Tensor, size: tuple[int, int], rows: int = 32) -> Iterator[Tensor]:
        """A linear layer without bias over the fused features of a whole image, a band of rows at a time.

        Equal to resizing all maps to ``size`` (bilinear, ``align_corners=False``), fusing every pixel and applying the
        layer. For evaluation: call it in evaluation mode, without gradients. This implementation resizes row by row;
        where the fusion allows it, subclasses apply the layer at the maps' own resolutions.

        Args:
            maps: of one image, see ``GroupMaps``.
            weight: (M, hidden, out_channels).
            size: (height, width) of the image in pixels.
            rows: of a band, where the layer is applied first; bounds the memory.

        Yields:
            (M, hidden, R, width) with at most ``rows`` rows, from top to bottom.
        """
        del rows
        for band in row_bands(size[0], 1):
            pixels = {
                name: torch.stack([_pixels(entry, size, band, weight.dtype) for entry in maps[name]], dim=1).unsqueeze(
                    0
                )
                for name in self.backbone_groups
            }
            fused = self(pixels).features
            yield (weight @ fused.transpose(1, 2)).unflatten(2, (-1, size[1]))

    def check(self, found: Mapping[str, Tensor]) -> None:
        """Raise ConfigError for features whose groups or shapes are not those of the constructor."""
        wrong = {
            name: None if name not in found else tuple(found[name].shape)
            for name, shape in self.backbone_groups.items()
            if name not in found or found[name].dim() != 4 or tuple(found[name].shape[2:]) != shape
        }
        if wrong:
            listed = ", ".join(
                f"{name}: {shape}, expected (M, P, *{self.backbone_groups[name]})" for name, shape in wrong.items()
            )
            raise ConfigError(
                f"features of the pixels do not fit: {listed}. Build the amalgamation for these backbone_groups"
            )


class ConcatPixels(PixelAmalgamation):
    """Concatenation of all entries of all groups, without parameters. Branches may differ in channels."""

    separate_branches = True

    @property
    def out_channels(self) -> int:
        """Channels of all entries together."""
        return sum(entries * channels for entries, channels in self.backbone_groups.values())

    def forward(self, backbone_groups: Mapping[str, Tensor]) -> PixelFusion:
        """All entries of all groups concatenated; arguments as in ``PixelAmalgamation.forward``."""
        self.check(backbone_groups)
        flat = [backbone_groups[name].flatten(2) for name in self.backbone_groups]
        return PixelFusion(flat[0] if len(flat) == 1 else torch.cat(flat, dim=2))

    def dense(self, maps: GroupMaps, weight: Tensor, size: tuple[int, int], rows: int = 32) -> Iterator[Tensor]:
        """The layer at the maps' own resolutions, see ``PixelAmalgamation.dense``."""
        flat = [map_ for name in self.backbone_groups for entry in maps[name] for map_ in entry]
        parts = project_maps(flat, weight.flatten(0, 1))
        for band in row_bands(size[0], rows):
            yield resized_sum(parts, size, band).unflatten(0, weight.shape[:2])


def _pixels(maps: Sequence[Tensor], size: tuple[int, int], band: slice, dtype: torch.dtype) -> Tensor:
    """(pixels of the band, channels of all maps)."""
    return torch.cat([resize_rows(map_.to(dtype), size, band).flatten(1) for map_ in maps]).T
