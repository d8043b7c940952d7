"""Features of images that come again unchanged, kept in memory.

Frozen features of an image without augmentation are the same in every epoch: noise is keyed by the sample, not drawn.
So the backbone, most of a training step, is needed once per image.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.keys import image_key
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.structures import Conditions, Extractor, Features
from gate_lightning.utils.units import GIB, human_size

__all__ = ["MemoryCache"]

log = logging.getLogger(__name__)


class MemoryCache(WrappedExtractor):
    """A feature extractor that remembers.

    Only plain images are kept (``Conditions.views`` empty): an augmented view does not come again. A batch with an
    image that is not known is extracted whole, so that every feature comes from a batch of the usual size:
    convolutions choose their kernels by it, and a resumed run, whose cache is empty, must get the same numbers.

    Args:
        extractor: gives the features.
        memory_gib: largest amount of memory used, in GiB, > 0. When it is full, further images are extracted every
            time.

    Raises:
        ConfigError: if ``memory_gib`` is not positive.
    """

    def __init__(self, extractor: Extractor, memory_gib: float) -> None:
        super().__init__(extractor)
        if not memory_gib > 0:
            raise ConfigError(f"cache.memory_gib={memory_gib}: expected GiB of memory above 0, or 0 for no cache")
        self.limit = int(memory_gib * GIB)
        self.bytes_used = 0
        self._known: dict[str, Features] = {}
        self._full = False

    def __len__(self) -> int:
        """Images remembered."""
        return len(self._known)

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features as the extractor gives them; see there."""
        if conditions.has_explicit_noise or any(conditions.views):
            return self.extractor(images, conditions)
        keys = [image_key(image, conditions, index) for index, image in enumerate(images)]
        known = [self._known.get(key) for key in keys]
        if all(entry is not None for entry in known):
            return self._joined([entry for entry in known if entry is not None], images.device)
        features = self.extractor(images, conditions)
        for index, key in enumerate(keys):
            if key not in self._known:
                self._remember(key, features, index)
        return features

    def _remember(self, key: str, features: Features, index: int) -> None:
        entry = {
            branch: {layer: value[index].detach().clone() for layer, value in layers.items()}
            for branch, layers in features.items()
        }
        size = sum(value.nbytes for layers in entry.values() for value in layers.values())
        if self.bytes_used + size > self.limit:
            if not self._full:
                log.info("feature cache full: %d images in %s", len(self), human_size(self.bytes_used))
            self._full = True
            return
        self._known[key] = entry
        self.bytes_used += size

    @staticmethod
    def _joined(entries: list[Features], device: torch.device) -> Features:
        return {
            branch: {layer: torch.stack([entry[branch][layer] for entry in entries]).to(device) for layer in layers}
            for branch, layers in entries[0].items()
        }
