"""Memory cache of features.

Frozen features of an image without augmentation are equal in every epoch, as noise is keyed by the sample: the
backbone, most of the cost of a training step, is needed once per image.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.keys import batch, image_key, row
from gate_lightning.features.wrappers.base import StoringExtractor
from gate_lightning.structures import Conditions, Extractor, Features
from gate_lightning.utils.checks import number
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

    Raises:
        ConfigError: if ``memory_gib`` is not positive.
    """

    def __init__(self, extractor: Extractor, memory_gib: float) -> None:
        super().__init__(extractor)
        if not number(memory_gib, "cache.memory_gib") > 0:
            raise ConfigError(f"cache.memory_gib={memory_gib}: expected GiB of memory above 0, or 0 for no cache")
        self.limit = int(memory_gib * GIB)
        self.bytes_used = 0
        self._known: dict[str, Features] = {}
        self._full = False

    def __len__(self) -> int:
        """Number of images in the cache."""
        return len(self._known)

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features of the extractor."""
        if conditions.has_explicit_noise or conditions.has_random_views:
            return self.extractor(images, conditions)
        keys = [image_key(image, conditions, index) for index, image in enumerate(images)]
        known = [self._known.get(key) for key in keys]
        if all(entry is not None for entry in known):
            return batch([entry for entry in known if entry is not None], images)
        features = self.extractor(images, conditions)
        for index, key in enumerate(keys):
            if key not in self._known:
                self._remember(key, row(features, index))
        return features

    def _remember(self, key: str, features: Features) -> None:
        entry = {
            branch: {layer: value.clone() for layer, value in layers.items()} for branch, layers in features.items()
        }
        size = sum(value.nbytes for layers in entry.values() for value in layers.values())
        if self.bytes_used + size > self.limit:
            if not self._full:
                log.info("feature cache full: %d images in %s", len(self), human_size(self.bytes_used))
            self._full = True
            return
        self._known[key] = entry
        self.bytes_used += size
