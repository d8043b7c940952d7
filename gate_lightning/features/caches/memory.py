"""Features of images that come again unchanged, kept in memory.

Frozen features of an image without augmentation are the same in every epoch: noise is keyed by the sample, not drawn.
So the backbone, most of a training step, is needed once per image.
"""

from __future__ import annotations

import hashlib
import logging

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.augmented_views import AugmentedFeatureCache
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.base import WrappedExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.structures import Conditions, Features

__all__ = ["MemoryCache"]

log = logging.getLogger(__name__)

_Key = tuple[object, ...]
_GIGABYTE = 1 << 30


class MemoryCache(WrappedExtractor):
    """A feature extractor that remembers.

    Only plain images are kept (``Conditions.views`` empty): an augmented view does not come again. A batch with a
    image that is not known is extracted whole, so that every feature comes from a batch of the usual size:
    convolutions choose their kernels by it, and a resumed run, whose cache is empty, must get the same numbers.

    Args:
        extractor: gives the features.
        gigabytes: largest amount of memory used, > 0. When it is full, further images are extracted every time.

    Raises:
        ConfigError: if ``gigabytes`` is not positive.
    """

    def __init__(
        self,
        extractor: FeatureExtractor
        | MultiBackboneExtractor
        | EdgeChannels
        | PooledExtractor
        | DiskCache
        | AugmentedFeatureCache,
        gigabytes: float,
    ) -> None:
        super().__init__(extractor)
        if not gigabytes > 0:
            raise ConfigError(f"cache.memory_gib={gigabytes}: expected gigabytes of memory above 0, or 0 for no cache")
        self.limit = int(gigabytes * _GIGABYTE)
        self.bytes_used = 0
        self._known: dict[_Key, dict[str, dict[str, Tensor]]] = {}
        self._full = False

    def __len__(self) -> int:
        """Images remembered."""
        return len(self._known)

    def keeps(self, images: float) -> bool:
        """Whether so many are remembered at once, judged by the size of those that are, or kept below."""
        room = not self._full and 0 < self.bytes_used * images <= self.limit * len(self)
        return room or super().keeps(images)

    @torch.no_grad()
    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        """Features as the extractor gives them; see there."""
        fixed = conditions.noise is not None or conditions.posterior_noise is not None
        if fixed or any(conditions.views):
            return self.extractor(images, conditions)  # type: ignore[no-any-return]
        keys = [self._key(images[index], conditions, index) for index in range(len(images))]
        known = [self._known.get(key) for key in keys]
        if all(entry is not None for entry in known):
            return self._joined([entry for entry in known if entry is not None], images.device)
        features: Features = self.extractor(images, conditions)
        for index, key in enumerate(keys):
            if key not in self._known:
                self._remember(key, features, index)
        return features

    def _remember(self, key: _Key, features: Features, index: int) -> None:
        entry = {
            branch: {layer: value[index].detach().clone() for layer, value in layers.items()}
            for branch, layers in features.items()
        }
        size = sum(value.nbytes for layers in entry.values() for value in layers.values())
        if self.bytes_used + size > self.limit:
            if not self._full:
                log.info("feature cache full: %d images in %.2f GB", len(self), self.bytes_used / _GIGABYTE)
            self._full = True
            return
        self._known[key] = entry
        self.bytes_used += size

    @staticmethod
    def _joined(entries: list[dict[str, dict[str, Tensor]]], device: torch.device) -> Features:
        return {
            branch: {layer: torch.stack([entry[branch][layer] for entry in entries]).to(device) for layer in layers}
            for branch, layers in entries[0].items()
        }

    @staticmethod
    def _key(image: Tensor, conditions: Conditions, index: int) -> _Key:
        # the content counts too: two arrays may be given to Run.predict under one name
        content = _digest(image)
        controls = tuple((name, _digest(given[index])) for name, given in sorted(conditions.control_images.items()))
        caption = None if conditions.captions is None else conditions.captions[index]
        category = None if conditions.categories is None else conditions.categories[index]
        shape = (*image.shape, str(image.dtype))
        own = (conditions.sample_ids[index], conditions.windows[index], caption, category, conditions.training)
        return (content, controls, shape, *own)


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.float().contiguous().cpu().numpy().tobytes(), digest_size=16).digest()
