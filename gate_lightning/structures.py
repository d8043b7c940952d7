"""Plain data that travels between the floors of the house, and the protocol of what makes features of it.

Shape letters: B images, C channels, H × W pixels, h × w positions of a feature map, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

__all__ = [
    "BackboneInfo",
    "BranchFeatures",
    "Conditions",
    "Extractor",
    "FeatureInfo",
    "Features",
    "FeaturesInfo",
    "Identity",
    "ImageBatch",
    "PixelBatch",
    "Pyramid",
    "SegmentationBatch",
]


@dataclass(frozen=True)
class FeatureInfo:
    """What one layer id yields on a backbone.

    Attributes:
        channels: channels of the feature map; 0 where they depend on the image's size.
        stride: pixels of the image per position of the map (8 for SD's latents, 16 one level down); 0 for what is no
            map: attention weights (B, heads, queries, keys).
        module: path of the hooked module inside the denoiser, for tables and errors.
    """

    channels: int
    stride: int
    module: str = ""


#: layer id → feature map (B, C, h, w), of one branch.
BranchFeatures = dict[str, Tensor]
#: branch name → layer id → feature map.
Features = dict[str, BranchFeatures]
#: branch name → layer id → FeatureInfo. Order of branches and layers is the order asked for.
FeaturesInfo = Mapping[str, Mapping[str, FeatureInfo]]


@dataclass(frozen=True)
class Identity:
    """Which frozen weights were used; saved in checkpoints and caches instead of the weights.

    Attributes:
        name: hub id, folder name or family name.
        revision: commit or tag of the hub id, empty for local folders.
        digest: hash of the weights' content (hex).
    """

    name: str
    revision: str
    digest: str


#: noise of a batch: one tensor for all branches, or branch name → tensor
Noise = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True)
class Conditions:
    """What belongs to the images of a batch besides their pixels.

    A tuple or tensor has one entry per image, a mapping has such values; anything else holds for all images. Caches
    and ``conditions[rows]`` rely on it for every field.

    Attributes:
        sample_ids: B names that identify the images (path relative to the data set's root). Noise is keyed by them.
        views: B names of the augmentation draw or "" for the plain image; part of the noise key.
        windows: B (top, left) pixel offsets of the sliding window or crop, (0, 0) for the whole; part of the key.
        captions: B descriptions (what the ``prompt`` technique reads), or None if the data set has none.
        categories: B category names, or None.
        control_images: control name → (B, 3, H, W) in [0, 1], cropped and flipped with the image. A control that is
            a function of the image (Canny) need not be given.
        noise: explicit standard normal noise (B, c, h, w) that replaces the keyed draw, or None. For branches that
            read an ensemble of E draws (B, E, c, h, w). As a mapping, each branch named gets its own noise and the
            others their keyed draw.
        posterior_noise: the same for the sample of the autoencoder's posterior.
        training: whether a head is being trained on these images. What is done in training only (ControlNet dropout)
            asks here, as the extractor itself is always in evaluation mode.
    """

    sample_ids: tuple[str, ...]
    views: tuple[str, ...] = ()
    windows: tuple[tuple[int, int], ...] = ()
    captions: tuple[str, ...] | None = None
    categories: tuple[str, ...] | None = None
    control_images: Mapping[str, Tensor] = field(default_factory=dict)
    noise: Noise | None = None
    training: bool = False
    posterior_noise: Noise | None = None

    def __post_init__(self) -> None:
        count = len(self.sample_ids)
        object.__setattr__(self, "views", self.views or ("",) * count)
        object.__setattr__(self, "windows", self.windows or ((0, 0),) * count)
        for name in ("views", "windows", "captions", "categories"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name} has {len(value)} entries for {count} images; give one per image")

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, rows: int | slice | Sequence[int]) -> Self:
        """The conditions of some of the images; of one image, still as a batch, for an int."""
        every = range(len(self))
        chosen = [every[rows]] if isinstance(rows, int) else list(every[rows] if isinstance(rows, slice) else rows)
        return self._mapped(lambda tensor: tensor[chosen], lambda entries: tuple(entries[row] for row in chosen))

    @property
    def has_explicit_noise(self) -> bool:
        """Whether the caller fixed some noise; such features are not kept by caches."""
        return self.noise is not None or self.posterior_noise is not None

    def at_window(self, top: int, left: int) -> Self:
        """The same images, read through a window whose corner is (top, left) pixels further."""
        moved = tuple((row + top, column + left) for row, column in self.windows)
        return replace(self, windows=moved)

    def map_controls(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with ``function`` applied to every control image (B, 3, H, W)."""
        return replace(self, control_images={name: function(image) for name, image in self.control_images.items()})

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """A copy with its tensors on ``device`` (Lightning moves batches through this method)."""
        return self._mapped(lambda tensor: tensor.to(device, **kwargs))

    def _mapped(
        self, tensors: Callable[[Tensor], Tensor], tuples: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple
    ) -> Self:
        """A copy of which every tensor and every tuple, also inside mappings, is replaced."""

        def mapped(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: mapped(entry) for name, entry in value.items()}
            if isinstance(value, Tensor):
                return tensors(value)
            return tuples(value) if isinstance(value, tuple) else value

        return replace(self, **{one.name: mapped(getattr(self, one.name)) for one in fields(self)})


class BackboneInfo(Protocol):
    """What users of features may know of the backbone behind them.

    Attributes:
        native_size: side in pixels of the images it was trained on.
        size_multiple: images are padded to multiples of this, so feature maps cover the padded image.
        minimum_size: smallest side in pixels that it reads.
    """

    native_size: int
    size_multiple: int
    minimum_size: int

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def check_images(self, images: Tensor) -> None:
        """Raise DataError unless images (B, 3, H, W), padded already, can be read."""


class Extractor(Protocol):
    """Images → features of every branch: the plain extractor, and every cache and wrapper around one.

    Frozen, and in evaluation mode for good.
    """

    @property
    def backbone(self) -> BackboneInfo:
        """The frozen network; the first one where there are several."""

    @property
    def feature_info(self) -> FeaturesInfo:
        """Branch → layer id → FeatureInfo, in the order of branches and layers."""

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""

    @property
    def description(self) -> Mapping[str, Any]:
        """All that the features depend on besides the images and their conditions, JSON-able."""

    def check_room(self, images: int, values: int) -> None:
        """Check the disk of a cache, before features are computed.

        Args:
            images: number of images, not augmented, whose features will be asked for.
            values: numbers in the features of one image.

        Raises:
            ConfigError: the disk has no room for them.
        """

    def __call__(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of images (B, 3, H, W) in [-1, 1] of any size from the backbone's ``minimum_size``.

        Images and control images are padded at the bottom and the right to multiples of the backbone's
        ``size_multiple`` (`ops.padding.pad_batch`).

        Returns:
            Branch → layer id → (B, C, ⌈H'/stride⌉, ⌈W'/stride⌉) of the padded H' × W', in the dtype of ``images``.

        Raises:
            DataError: images that are too small, or conditions that do not fit them.
        """


@dataclass(frozen=True)
class ImageBatch:
    """A batch of images. Subclasses add what comes with them; ``to`` moves their tensors, too.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1], RGB.
        conditions: see Conditions.
    """

    images: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """A copy on ``device`` (Lightning moves batches through this method)."""
        parts = {part.name: _moved(getattr(self, part.name), device, **kwargs) for part in fields(self)}
        return replace(self, **parts)


@dataclass(frozen=True)
class SegmentationBatch(ImageBatch):
    """A batch of images with masks.

    Attributes:
        masks: (B, H, W) int64 class indices, ``ignore_index`` where unlabelled.
    """

    masks: Tensor


@dataclass(frozen=True)
class PixelBatch:
    """Labelled pixels for members of an ensemble that are trained together, each on pixels of its own (M × P).

    Attributes:
        images: (M, P) int64 position of the image in the training split.
        positions: (M, P) int64 row · W + column of the pixel in the image's mask.
        labels: (M, P) int64 class indices; no ignored ones.
    """

    images: Tensor
    positions: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, **kwargs: Any) -> PixelBatch:
        """A copy on ``device``."""
        return PixelBatch(*(part.to(device, **kwargs) for part in (self.images, self.positions, self.labels)))


@dataclass(frozen=True)
class Pyramid:
    """Fused features, finest level first.

    Attributes:
        levels: (B, C_l, h_l, w_l) per level, stride growing.
        weights: per level (B or 1, assigners, branches) branch weights that sum to 1 over branches (last axis;
            further axes C where weights are per channel, and h, w where they vary over the image), or () where the
            amalgamation has none.
    """

    levels: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] = ()


def _moved(value: Any, device: torch.device | str, **kwargs: Any) -> Any:
    """Tensors, and whatever holds some, on ``device``; anything else as it is."""
    if isinstance(value, Mapping):
        return {key: _moved(item, device, **kwargs) for key, item in value.items()}
    return value.to(device, **kwargs) if hasattr(value, "to") else value
