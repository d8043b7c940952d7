"""Store of feature maps at native resolution, from which single pixels are interpolated for training.

The upsampled maps of 30 images of 256² take 66 GB (DDPM features, float32; GATE's five branches: 138 GB). At native
resolution in half precision they take 1.9 GB, and interpolating only the pixels of a step gives the same numbers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.structures import Features, FeaturesInfo
from gate_lightning.utils.checks import check_choice
from gate_lightning.utils.dtypes import DTYPES, storable

__all__ = ["MapShape", "PixelStore", "bilinear_taps", "group_maps", "group_widths", "map_shapes"]


@dataclass(frozen=True)
class MapShape:
    """Shape (C, h, w) of the feature map of a branch's layer.

    Attributes:
        branch, layer: names.
        channels: C.
        height, width: h and w, positions of the map.
    """

    branch: str
    layer: str
    channels: int
    height: int
    width: int

    @property
    def values(self) -> int:
        """C · h · w."""
        return self.channels * self.height * self.width


def map_shapes(info: FeaturesInfo, size: tuple[int, int]) -> list[MapShape]:
    """Shapes of the maps of an image of ``size`` (height, width) pixels, in the order of branches and layers.

    Raises:
        ConfigError: attention weights instead of a map, or channels that depend on the image's size.
    """
    shapes = []
    for branch, layers in info.items():
        for layer, one in layers.items():
            if not one.stride or not one.channels:
                kind = "has no map of features" if not one.stride else "has as many channels as the image has pixels"
                raise ConfigError(
                    f"{layer} of branch {branch!r} {kind}, so pixels cannot be read from it; leave it out of layers"
                )
            height, width = (-(-side // one.stride) for side in size)
            shapes.append(MapShape(branch, layer, one.channels, height, width))
    return shapes


def group_widths(info: FeaturesInfo, backbone_groups: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, int]]:
    """Group → (number of branches, channels of each branch).

    Raises:
        ConfigError: branches of a group differ in width, an unknown branch, or an empty group.
    """
    widths = {}
    for group, branches in backbone_groups.items():
        unknown = [branch for branch in branches if branch not in info]
        if unknown or not branches:
            raise ConfigError(f"group {group!r} of branches {list(branches)}: the branches are {', '.join(info)}")
        found = {branch: sum(one.channels for one in info[branch].values()) for branch in branches}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{branch}: {count}" for branch, count in found.items())
            raise ConfigError(
                f"branches that are weighed against each other need equally many channels; {group} has {listed}. "
                "Give them layers of equal width, mark one as concatenated: true, or use amalgamation=concat_pixels"
            )
        widths[group] = (len(branches), next(iter(found.values())))
    return widths


def group_maps(
    features: Features, backbone_groups: Mapping[str, Sequence[str]], row: int, dtype: torch.dtype
) -> dict[str, list[list[Tensor]]]:
    """Maps (C, h, w) of image ``row`` by group, branch and layer (`amalgamation.GroupMaps`), rounded to ``dtype``."""
    return {
        group: [[value[row].to(dtype) for value in features[branch].values()] for branch in branches]
        for group, branches in backbone_groups.items()
    }


@lru_cache(maxsize=64)
def bilinear_taps(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and weights of ``interpolate(mode="bilinear", align_corners=False)`` along one side.

    Args:
        source: positions of the map.
        target: pixels after resizing.

    Returns:
        Lower and upper position int64 (target,), and the weight of the upper one float32 (target,).
    """
    centre = (torch.arange(target, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    centre = centre.clamp_(min=0.0)
    lower = centre.floor().long().clamp_(max=source - 1)
    return lower, (lower + 1).clamp_(max=source - 1), (centre - lower).clamp_(0.0, 1.0)


class PixelStore:
    """Feature maps of several images, stored channels last, with bilinear interpolation of single pixels.

    A pixel's features are those of upsampling every map to the size of the masks (bilinear, ``align_corners=False``)
    and indexing, within rounding, but the upsampled maps are never made. The layers of a branch are concatenated, the
    branches of a group stacked.

    Maps are stored in ``dtype``, in the host's or a GPU's memory, or in a file that exists only as long as this object;
    interpolated values are float32. Images are added one by one with ``put``.

    Args:
        info: branch → layer → channels and stride (the extractor's ``feature_info``).
        backbone_groups: group → its branches, which must have equal numbers of channels.
        size: (height, width) of the masks, in pixels.
        images: number of images.
        image_size: (height, width) of the images that the extractor read; None for ``size``.
        dtype: "float16", "bfloat16" or "float32".
        folder: folder of a memory-mapped file for the maps; None for memory.
        device: of the memory, and of what is interpolated; the CPU where there is a folder, or for None.

    Attributes:
        widths: group → (number of branches, D), D the channels of a branch, all layers together.

    Raises:
        ConfigError: branches of a group differ in channels, an unknown branch or dtype, a layer without a map.
        CacheError: the file cannot be made.
    """

    def __init__(
        self,
        info: FeaturesInfo,
        backbone_groups: Mapping[str, Sequence[str]],
        size: tuple[int, int],
        images: int,
        dtype: str = "float16",
        folder: Path | None = None,
        image_size: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_choice(dtype, "store_dtype", DTYPES)
        self.device = torch.device("cpu") if device is None or folder is not None else device
        self.size, self.images, self.dtype = size, images, DTYPES[dtype]
        self.backbone_groups = {group: tuple(branches) for group, branches in backbone_groups.items()}
        self.shapes = map_shapes(info, image_size or size)
        self.widths = group_widths(info, self.backbone_groups)
        self._taps: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        self._maps = _allocated([images * shape.values for shape in self.shapes], self.dtype, folder, self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of the maps."""
        return sum(values.nbytes for values in self._maps)

    def put(self, image: int, features: Features, row: int = 0) -> None:
        """Store the maps of an image.

        Args:
            image: number of the image in the store, from 0.
            features: branch → layer → (B, C, h, w).
            row: index of the image in the batch of B.

        Raises:
            CacheError: a map of another shape than ``info`` says, or values outside the range of the dtype.
        """
        for shape, values in zip(self.shapes, self._maps, strict=True):
            found = features[shape.branch][shape.layer][row]
            expected = (shape.channels, shape.height, shape.width)
            if tuple(found.shape) != expected:
                raise CacheError(
                    f"{shape.layer} of branch {shape.branch!r} has the shape {tuple(found.shape)}, the store expects "
                    f"{expected}: are these the features of another branch, of images of another size or (attention) "
                    "of a longer prompt?"
                )
            kept = storable(found, self.dtype, f"{shape.branch}/{shape.layer} of image {image}", self.device)
            values.view(self.images, -1, shape.channels)[image] = kept.flatten(1).T

    def sample(self, images: Tensor, positions: Tensor) -> dict[str, Tensor]:
        """Interpolated features of pixels.

        Args:
            images: int64 (…), numbers of the images.
            positions: int64 (…), row · width + column of each pixel in the mask.

        Returns:
            Group → float32 (…, branches, D) on the store's device.
        """
        lead = images.shape
        images, positions = images.flatten().to(self.device), positions.flatten().to(self.device)
        rows, columns = positions // self.size[1], positions % self.size[1]
        found = {
            group: torch.empty(len(images), *width, dtype=torch.float32, device=self.device)
            for group, width in self.widths.items()
        }
        for group, branches in self.backbone_groups.items():
            for entry, branch in enumerate(branches):
                maps = [pair for pair in zip(self.shapes, self._maps, strict=True) if pair[0].branch == branch]
                places = found[group][:, entry].split([shape.channels for shape, _ in maps], dim=1)
                for (shape, values), place in zip(maps, places, strict=True):
                    self._interpolate(shape, values, images, rows, columns, place)
        return {group: values.unflatten(0, lead) for group, values in found.items()}

    def _taps_of(self, source: int, target: int) -> tuple[Tensor, ...]:
        """`bilinear_taps` on the store's device."""
        if (source, target) not in self._taps:
            self._taps[source, target] = tuple(part.to(self.device) for part in bilinear_taps(source, target))
        return self._taps[source, target]

    def _interpolate(
        self, shape: MapShape, values: Tensor, images: Tensor, rows: Tensor, columns: Tensor, place: Tensor
    ) -> None:
        """Write the four taps' weighted sum of one map into ``place`` (pixels, C)."""
        table = values.view(-1, shape.channels)
        top, bottom, down = (taps[rows] for taps in self._taps_of(shape.height, self.size[0]))
        left, right, across = (taps[columns] for taps in self._taps_of(shape.width, self.size[1]))
        first = images * (shape.height * shape.width)
        if (shape.height, shape.width) == self.size:  # every pixel has its own position
            place.copy_(table.index_select(0, first + top * shape.width + left))
            return
        taps = (
            (top, left, (1 - down) * (1 - across)),
            (top, right, (1 - down) * across),
            (bottom, left, down * (1 - across)),
            (bottom, right, down * across),
        )
        for number, (y, x, weight) in enumerate(taps):
            read = table.index_select(0, first + y * shape.width + x).float()
            if number == 0:
                torch.mul(read, weight[:, None], out=place)
            else:
                place.addcmul_(read, weight[:, None])


def _allocated(counts: Sequence[int], dtype: torch.dtype, folder: Path | None, device: torch.device) -> list[Tensor]:
    """Uninitialised tensors of ``counts`` values each, in memory or in one mapped file."""
    if folder is None:
        return [torch.empty(count, dtype=dtype, device=device) for count in counts]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".pixel_store.") as file:
            if hasattr(os, "posix_fallocate"):  # a full disk says so now, not by SIGBUS when a page is written
                os.posix_fallocate(file.fileno(), 0, max(sum(counts) * dtype.itemsize, 1))
            # mapped, then unlinked: the file does not outlive this process, even if it is killed
            whole = torch.from_file(file.name, shared=True, size=sum(counts), dtype=dtype)
    except (OSError, RuntimeError) as error:
        raise CacheError(f"no file for features could be made in {folder} ({error}); choose another folder") from error
    return list(whole.split(list(counts)))
