"""Data exchanged between the packages, and the protocol of feature extractors.

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
    "Pair",
    "PairBatch",
    "PixelBatch",
    "Pyramid",
    "SegmentationBatch",
]


@dataclass(frozen=True)
class FeatureInfo:
    """Channels and stride of a layer's features.

    Attributes:
        channels: channels of the feature map; 0 if they depend on the image's size.
        stride: pixels of the image per position of the map (8 for SD's latents, 16 one level down); 0 for attention
            weights (B, heads, queries, keys), which are no map.
        module: path of the hooked module inside the denoiser, for tables and errors.
    """

    channels: int
    stride: int
    module: str = ""


#: layer id → feature map (B, C, h, w), of one branch.
BranchFeatures = dict[str, Tensor]
#: branch name → layer id → feature map.
Features = dict[str, BranchFeatures]
#: branch name → layer id → FeatureInfo, in the given order of branches and layers.
FeaturesInfo = Mapping[str, Mapping[str, FeatureInfo]]


@dataclass(frozen=True)
class Identity:
    """Identity of frozen weights; saved in checkpoints and caches instead of the weights.

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
class _Movable:
    """Base of dataclasses with tensors that move between devices; Lightning moves batches by ``to``."""

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """A copy with its tensors, also nested ones, on ``device``."""
        return replace(self, **{one.name: _moved(getattr(self, one.name), device, **kwargs) for one in fields(self)})


def _moved(value: Any, device: torch.device | str, **kwargs: Any) -> Any:
    """``value`` with its tensors, also nested ones, on ``device``."""
    if isinstance(value, Mapping):
        return {key: _moved(item, device, **kwargs) for key, item in value.items()}
    return value.to(device, **kwargs) if hasattr(value, "to") else value


@dataclass(frozen=True)
class Conditions(_Movable):
    """Data of the images of a batch besides their pixels.

    A tuple or tensor has one entry per image, a mapping has such values; anything else holds for all images. Caches
    and ``conditions[rows]`` rely on it for every field.

    Attributes:
        sample_ids: B names that identify the images (path relative to the data set's root). Noise is keyed by them.
        views: B names of augmented views, "" for the plain image; part of the noise key.
        windows: B (top, left) pixel offsets of the sliding window or crop, (0, 0) for the whole; part of the key.
        captions: B captions, the default of the ``prompt`` technique, or None if the data set has none.
        categories: B category names, or None.
        control_images: control name → (B, 3, H, W) in [0, 1], cropped and flipped with the image. A control that is
            a function of the image (Canny) need not be given.
        noise: explicit standard normal noise (B, c, h, w) that replaces the keyed draw, or None. For branches that
            average an ensemble of E draws, (B, E, c, h, w). A mapping branch → noise replaces the draws of the named
            branches only.
        posterior_noise: the same for the sample of the autoencoder's posterior.
        training: True for a training step of a head; turns on ControlNet dropout, as the extractor itself is always in
            evaluation mode.
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

        def rows_of(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: rows_of(entry) for name, entry in value.items()}
            if isinstance(value, Tensor):
                return value[chosen]
            return tuple(value[row] for row in chosen) if isinstance(value, tuple) else value

        return replace(self, **{one.name: rows_of(getattr(self, one.name)) for one in fields(self)})

    @property
    def has_explicit_noise(self) -> bool:
        """True if noise was given by the caller; caches do not keep such features."""
        return self.noise is not None or self.posterior_noise is not None

    def at_window(self, top: int, left: int) -> Self:
        """The same images, read through a window whose corner is (top, left) pixels further."""
        moved = tuple((row + top, column + left) for row, column in self.windows)
        return replace(self, windows=moved)

    def map_controls(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with ``function`` applied to every control image (B, 3, H, W)."""
        return replace(self, control_images={name: function(image) for name, image in self.control_images.items()})


class BackboneInfo(Protocol):
    """The part of a backbone that users of an extractor may rely on.

    Attributes:
        native_size: side in pixels of its training images.
        size_multiple: images are padded to multiples of this, so feature maps cover the padded image.
        minimum_size: smallest side in pixels that it reads.
    """

    native_size: int
    size_multiple: int
    minimum_size: int

    @property
    def device(self) -> torch.device:
        """Device of its weights."""

    def check_images(self, images: Tensor) -> None:
        """Raise DataError unless images (B, 3, H, W), padded already, can be read."""


class Extractor(Protocol):
    """Images → features of every branch: the plain extractor, and every cache and wrapper around one.

    Frozen, and in evaluation mode for good.
    """

    @property
    def backbone(self) -> BackboneInfo:
        """Frozen network; the first of several."""

    @property
    def feature_info(self) -> FeaturesInfo:
        """Branch → layer id → FeatureInfo, in the order of branches and layers."""

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything the features depend on besides images and conditions, JSON-able."""

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
class ImageBatch(_Movable):
    """Batch of images; subclasses add masks, keypoints, …

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1], RGB.
        conditions: see Conditions.
    """

    images: Tensor
    conditions: Conditions

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class SegmentationBatch(ImageBatch):
    """A batch of images with masks.

    Attributes:
        masks: (B, H, W) int64 class indices, ``ignore_index`` where unlabelled.
    """

    masks: Tensor


@dataclass(frozen=True)
class Pair:
    """Two images with keypoints that correspond.

    Coordinates are pixels of the image files; the centre of the first pixel is (0, 0), that of the last (W - 1, H - 1).

    Attributes:
        source, target: sample ids of the images.
        source_points, target_points: (N, 2) float32 x, y of the keypoints that are visible in both, in one order.
        source_size, target_size: (H, W) of the files.
        source_box, target_box: x1, y1, x2, y2 of the object, or None.
        category: name of what the source shows.
        target_category: name of what the target shows; "" for the same.
        keypoint_ids: names of the N keypoints, or () where they have none.
        group: subset or part of the protocol that the pair is averaged in; "" for none.
        attributes: further facts, e.g. viewpoint_variation.
    """

    source: str
    target: str
    source_points: Tensor
    target_points: Tensor
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    source_box: tuple[float, float, float, float] | None = None
    target_box: tuple[float, float, float, float] | None = None
    category: str = ""
    target_category: str = ""
    keypoint_ids: tuple[str, ...] = ()
    group: str = ""
    attributes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {tuple(self.source_points.shape), tuple(self.target_points.shape)}
        if len(shapes) > 1 or self.source_points.dim() != 2 or self.source_points.shape[1] != 2:
            raise ValueError(f"{self.source} → {self.target}: points are {sorted(shapes)}; give (N, 2) of both images")
        if self.keypoint_ids and len(self.keypoint_ids) != len(self):
            raise ValueError(
                f"{self.source} → {self.target}: {len(self.keypoint_ids)} keypoint_ids for {len(self)} points"
            )

    def __len__(self) -> int:
        """Number of keypoints."""
        return len(self.source_points)


@dataclass(frozen=True)
class PairBatch(_Movable):
    """A batch of pairs of images, for training.

    Attributes:
        source, target: the B first and the B second images.
        pairs: the B pairs as they are in the files.
        source_points, target_points: (B, N, 2) x, y of their keypoints in pixels of ``source.images`` and
            ``target.images``, NaN where a pair has fewer than N.
    """

    source: ImageBatch
    target: ImageBatch
    pairs: tuple[Pair, ...]
    source_points: Tensor
    target_points: Tensor

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True)
class PixelBatch(_Movable):
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
