"""Memory cache of features.

Frozen features of an image without augmentation are equal in every epoch, as noise is keyed by the sample: the
backbone, most of the cost of a training step, is needed once per image.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.keys import ImageKeys, batch, row
from gate_lightning.features.wrappers.base import StoringExtractor
from gate_lightning.ops.padding import check_batch
from gate_lightning.structures import Conditions, Extractor, Features
from gate_lightning.utils.checks import check_choice, number
from gate_lightning.utils.units import GIB, human_size

__all__ = ["MemoryCache"]

log = logging.getLogger(__name__)


class MemoryCache(StoringExtractor):
    """Extractor that keeps features in memory.

    Only plain and mirrored images are kept (see ``Conditions.has_random_views``). A batch with an unknown image is
    extracted whole, so that every feature comes from a batch of the usual size: the choice of convolution kernels
    depends on it, and a resumed run, whose cache is empty, must compute the same numbers.

    Args:
        extractor: source of the features.
        memory_gib: size of the cache in GiB, > 0. Once it is full, further images are extracted every time.
        place: "card": where the features are computed; "host": the host's memory, from where a batch is copied to the
            GPU. On a CPU these are the same.

    Raises:
        ConfigError: if ``memory_gib`` is not positive, or an unknown place.
    """

    def __init__(self, extractor: Extractor, memory_gib: float, place: Literal["card", "host"] = "card") -> None:
        super().__init__(extractor)
        room = "memory_gib (cache.memory_gib)"
        if not 0 < number(memory_gib, room) < math.inf:
            raise ConfigError(
                f"{room}={memory_gib}: expected a number of GiB above 0 (0 on the command line: no cache)"
            )
        check_choice(place, "place (cache.place)", ("card", "host"))
        self.limit, self.place = int(memory_gib * GIB), place
        self.bytes_used = 0
        self._known: dict[str, Features] = {}
        self._keys = ImageKeys()
        self._full = False

    def __len__(self) -> int:
        """Number of images in the cache."""
        return len(self._known)

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of the extractor."""
        check_batch(images, conditions)
        if conditions.has_explicit_noise or conditions.has_random_views:
            return self.extractor(images, conditions)
        keys = self._keys(images, conditions)
        known = [self._known.get(key) for key in keys]
        if all(entry is not None for entry in known):
            return batch([entry for entry in known if entry is not None], images)
        features = self.extractor(images, conditions)
        if not self._full:
            self._remember(keys, features)
        return features

    def _remember(self, keys: list[str], features: Features) -> None:
        """Keep the features of those images of a batch that are new, as far as there is room."""
        placed = features
        if self.place == "host":
            placed = {name: {layer: one.cpu() for layer, one in maps.items()} for name, maps in features.items()}
        for index, key in enumerate(keys):
            if key in self._known:
                continue
            entry = row(placed, index)
            size = sum(value.nbytes for layers in entry.values() for value in layers.values())
            if not self._known:
                self._tell_size(size, placed)
            if self.bytes_used + size > self.limit:
                self._end("")
                return
            try:
                self._known[key] = {
                    name: {layer: value.clone() for layer, value in maps.items()} for name, maps in entry.items()
                }
            except torch.OutOfMemoryError:
                self._end(
                    ", and so is the GPU: lower memory_gib (cache.memory_gib), or keep features on the host "
                    "(cache.place=host)"
                )
                return
            self.bytes_used += size

    def _tell_size(self, size: int, features: Features) -> None:
        device = next(value.device for layers in features.values() for value in layers.values())
        where = "the host" if device.type == "cpu" else str(device)
        log.info(
            "feature cache: %s an image, room for %d in the %s on %s (cache.memory_gib)",
            *(human_size(size), self.limit // max(size, 1), human_size(self.limit), where),
        )

    def _end(self, why: str) -> None:
        self._full = True
        log.info("feature cache full: %d images in %s%s", len(self), human_size(self.bytes_used), why)
