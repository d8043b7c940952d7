"""Raw-pixel baseline: image patches and their coordinates as features, without any diffusion model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.noise_schedule import CleanSchedule
from gate_lightning.backbones.specs import Adapters, LayerSpec, PromptEmbeds, Residuals
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Identity

__all__ = ["PixelBackbone", "space_to_depth"]


class PixelBackbone(Backbone):
    """Pixel patches and their normalised coordinates, one layer per stride.

    Timesteps and prompts have no effect; techniques are refused.

    Args:
        strides: patch sizes in pixels, coarse to fine. The default is that of the tiny backbone's upsamplers.
        native_size: side in pixels of sliding windows; set it to that of the backbone compared with.
        position: add two channels, the patch centre's x and y in [-1, 1]. Off where a network reads the image itself
            (stride 1).
    """

    family = "pixels"
    _place: Tensor

    def __init__(self, strides: Sequence[int] = (16, 8, 4), native_size: int = 64, position: bool = True) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides), reverse=True) or strides[-1] < 1:
            raise ConfigError(f"strides={list(strides)}: expected different positive patch sizes, coarse to fine")
        self.identity = Identity("pixels", "", "")
        self.patches = _Patches(strides, position)
        self.position = position
        self.layers = {
            f"pixels-stride{stride}": LayerSpec(f"stride{stride}", "output", 3 * stride * stride + 2 * position, stride)
            for stride in strides
        }
        self.size_multiple = 1
        self.minimum_size = max(strides)
        if native_size < self.minimum_size:
            raise ConfigError(f"native_size={native_size}: expected at least the largest patch, {self.minimum_size}")
        self.native_size = native_size
        self.schedule = CleanSchedule()
        # carries dtype and device, in place of weights
        self.register_buffer("_place", torch.zeros(1), persistent=False)
        self.freeze()

    @property
    def denoiser(self) -> nn.Module:
        """Module that computes the patches."""
        return self.patches

    @property
    def description(self) -> dict[str, object]:
        """See Backbone; ``position`` where it is off."""
        return super().description if self.position else {**super().description, "position": False}

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the features."""
        return self._place.dtype

    @property
    def device(self) -> torch.device:
        """Device of the features."""
        return self._place.device

    def forward(
        self,
        latents: Tensor,
        timestep: int,
        prompt_embeds: PromptEmbeds,
        residuals: Residuals | None,
        adapters: Sequence[Adapters] | None,
    ) -> Tensor:
        """Compute the patches of images (B, 3, H, W) at every stride; returns the images."""
        self.patches(latents)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Refused: there is no decoder."""
        raise ConfigError(
            f"{self.identity.name} makes no images; use a diffusion backbone: tiny, sd15, adm_lsun_horse …"
        )


class _Patches(nn.Module):
    def __init__(self, strides: Sequence[int], position: bool) -> None:
        super().__init__()
        for stride in strides:
            self.add_module(f"stride{stride}", _Patch(stride, position))

    def forward(self, images: Tensor) -> None:
        for patch in self.children():
            patch(images)


class _Patch(nn.Module):
    def __init__(self, stride: int, position: bool) -> None:
        super().__init__()
        self.stride, self.position = stride, position

    def forward(self, images: Tensor) -> Tensor:
        patches = space_to_depth(images, self.stride)
        if not self.position:
            return patches
        batch, _, height, width = patches.shape
        rows, columns = (
            (torch.arange(count, device=images.device, dtype=images.dtype) + 0.5) / count * 2 - 1
            for count in (height, width)
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        position = torch.stack([x, y]).expand(batch, -1, -1, -1)
        return torch.cat([patches, position], dim=1)


def space_to_depth(images: Tensor, stride: int) -> Tensor:
    """Patches (B, C·stride², ⌈H/stride⌉, ⌈W/stride⌉) of images (B, C, H, W).

    Patches that overhang the image repeat its border.
    """
    height, width = images.shape[-2:]
    overhang = (0, -width % stride, 0, -height % stride)
    return F.pixel_unshuffle(F.pad(images, overhang, mode="replicate"), stride)
