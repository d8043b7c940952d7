"""Conditions: data of a batch's images besides their pixels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field, fields
from operator import index
from typing import Any, Self

import torch
from torch import Tensor

from gate_lightning.errors import DataError

__all__ = ["MIRRORED", "Conditions", "Movable", "Noise"]

#: noise of a batch: one tensor for all branches, or branch name → tensor
Noise = Tensor | Mapping[str, Tensor]


#: view of a mirrored image
MIRRORED = "mirrored"


@dataclass(frozen=True)
class Movable:
    """Base of dataclasses with tensors that move between devices.

    Lightning moves batches by ``to``; a DataLoader with ``pin_memory`` calls that of its batches.
    """

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Self:
        """A copy with its tensors, also nested ones, on ``device``; copies of pinned memory are not waited for."""
        # on the host they would be read before they are there
        at_once = non_blocking and torch.device(device).type != "cpu"
        return self._mapped(lambda value: value.to(device, non_blocking=at_once))

    def pin_memory(self) -> Self:
        """A copy with its tensors, also nested ones, in page-locked memory, which a GPU reads by itself."""
        return self._mapped(lambda value: value.pin_memory())

    def _mapped(self, function: Callable[[Any], Any]) -> Self:
        return self._with({one.name: _mapped(getattr(self, one.name), function) for one in fields(self)})

    def read_by(self, source: int) -> Self:
        """A copy whose conditions, also nested ones, name the data set that has read the images."""
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        nested = {name: part.read_by(source) for name, part in parts.items() if isinstance(part, Movable)}
        return self._with(nested)

    def _with(self, changes: Mapping[str, Any]) -> Self:
        """A copy with other values of the same kind; unlike dataclasses.replace it does not check every entry again."""
        made = copy(self)
        vars(made).update(changes)
        return made


def _entries(name: str, value: Any) -> tuple[Any, ...]:
    """One entry per image: texts, or for windows pairs of whole numbers."""
    try:
        if type(value) is tuple or (isinstance(value, Collection) and not isinstance(value, str | Mapping | Set)):
            if name == "windows":
                return tuple([(index(top), index(left)) for top, left in value])
            return tuple(map(str.__str__, value))  # refuses what is no text
    except (TypeError, ValueError):
        pass
    expected = "two whole numbers, (top, left) pixels," if name == "windows" else "a text"
    raise DataError(f"{name}={value!r}: expected a tuple with {expected} for each image")


def _check_tensors(name: str, value: Any) -> None:
    """Raise DataError unless this is a mapping of tensors or, of noise, a tensor."""
    several = type(value) is dict or isinstance(value, Mapping)
    for one in value.values() if several else [value]:
        if not isinstance(one, Tensor):
            hint = ": torch.from_numpy makes one" if type(one).__module__ == "numpy" else ""
            raise DataError(f"{name} is of type {type(one).__name__}; expected a tensor{hint}")
    if name == "control_images" and not several:
        raise DataError(
            f"{name} is of type {type(value).__name__}; expected names and tensors {{'depth': (B, 3, H, W)}}"
        )


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """``value`` with ``function`` applied to its tensors, also nested ones."""
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, Tensor | Movable) else value


@dataclass(frozen=True)
class Conditions(Movable):
    """Data of the images of a batch besides their pixels.

    A tuple or tensor has one entry per image, a mapping has such values; anything else holds for all images. Caches
    and ``conditions[rows]`` rely on it for every field.

    Attributes:
        sample_ids: B names that identify the images (path relative to the data set's root). Noise is keyed by them.
        views: B names of augmented views, "" for the plain image, `MIRRORED` for its mirror image; part of the noise
            key.
        windows: B (top, left) pixel offsets of the sliding window or crop, (0, 0) for the whole; part of the key.
        captions: B captions, the default of the ``prompt`` technique, or None if the data set has none.
        categories: B category names, or None.
        control_images: control name → (B, 3, H, W) in [0, 1], cropped and flipped with the image. A control that is
            a function of the image (Canny) need not be given.
        noise: explicit standard normal noise (B, c, h, w) that replaces the keyed draw, or None. For branches that
            average an ensemble of E draws, (B, E, c, h, w). A mapping branch → noise replaces the draws of the named
            branches only.
        edges: `CannySettings.key` → uint8 (B, H, W) edge maps of exactly these images, made ahead; where there are none
            they are made when they are needed. Caches know images without them.
        posterior_noise: the same for the sample of the autoencoder's posterior.
        source: number of the data set in this process that has read the images. Images of equal source, name, view,
            window and size are equal, and so is all that it gives with them. None where that is not known.
        training: True for a training step of a head; turns on ControlNet dropout, as the extractor itself is always in
            evaluation mode.

    Raises:
        DataError: entries that are none of the kind above, or not one per image.
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
    source: int | None = field(default=None, compare=False, repr=False)
    edges: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = _entries("sample_ids", self.sample_ids)
        count = len(ids)
        object.__setattr__(self, "sample_ids", ids)
        for name, plain in (("views", ""), ("windows", (0, 0)), ("captions", None), ("categories", None)):
            value = getattr(self, name)
            if value is None and plain is None:
                continue
            entries = _entries(name, value)
            if not entries and plain is not None:
                entries = (plain,) * count
            if len(entries) != count:
                raise DataError(f"{name} has {len(entries)} entries for {count} images; give one per image")
            object.__setattr__(self, name, entries)
        for name in ("noise", "posterior_noise", "control_images"):
            value = getattr(self, name)
            if value is not None or name == "control_images":
                _check_tensors(name, value)

    def __len__(self) -> int:
        return len(self.sample_ids)

    def read_by(self, source: int) -> Self:
        """A copy that names the data set that has read the images."""
        return self._with({"source": source})

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

        return self._with({one.name: rows_of(getattr(self, one.name)) for one in fields(self)})

    @property
    def has_random_views(self) -> bool:
        """True if an image is shown in a view of its own draw; plain and mirrored images come again."""
        return any(view not in ("", MIRRORED) for view in self.views)

    @property
    def has_explicit_noise(self) -> bool:
        """True if noise was given by the caller; caches do not keep such features."""
        return self.noise is not None or self.posterior_noise is not None

    def at_window(self, top: int, left: int) -> Self:
        """The same images, read through a window whose corner is (top, left) pixels further."""
        moved = tuple((row + top, column + left) for row, column in self.windows)
        return self._with({"windows": moved})

    def map_controls(self, function: Callable[[Tensor], Tensor]) -> Self:
        """A copy with ``function`` applied to every control image (B, 3, H, W); without edges, which images that were
        changed alike do not have."""
        controls = {name: function(image) for name, image in self.control_images.items()}
        return self._with({"control_images": controls, "edges": {}})
