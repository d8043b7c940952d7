"""Descriptors of images, computed once per setting and kept within a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from gate_lightning.backbones.base import Backbone
from gate_lightning.features.config.layer_presets import preset_names
from gate_lightning.tools.app.kept_images import KeptImage
from gate_lightning.tools.matching import DescribedImage, Describer, image_file

__all__ = ["ImageFeatures"]

#: bytes of a position's weights, of pixels' norms …, for every pixel of an image that has been matched once
_PER_PIXEL: Final = 8


class ImageFeatures:
    """Descriptors of images by setting; those that were used least recently make room.

    Args:
        describer: makes what describes images from the words of a command line.
        limit: bytes that are kept; at least one image is.
    """

    def __init__(self, describer: Callable[[tuple[str, ...]], Describer], limit: int) -> None:
        self._make, self.limit = describer, limit
        self._known: OrderedDict[tuple[tuple[str, ...], KeptImage], tuple[DescribedImage, int]] = OrderedDict()
        self._describer: tuple[tuple[str, ...], Describer] | None = None
        # tabs share one backbone; who needs none, because all is known, does not wait for it
        self._reading, self._keeping = Lock(), Lock()

    @property
    def bytes_used(self) -> int:
        """Of what is kept, about."""
        return sum(size for _, size in self._known.values())

    def __call__(self, words: tuple[str, ...], image: KeptImage) -> DescribedImage:
        """An image as a command line reads it.

        Raises:
            GateError: that command line, or the image, cannot be read.
        """
        known = self._recalled(words, image)
        if known is None:
            with self._reading:
                known = self._recalled(words, image)
                if known is None:
                    known = self._describer_of(words)(image_file(image.path, "image"))
                    self._keep(words, image, known)
        return known

    @contextmanager
    def describing(self, words: tuple[str, ...]) -> Iterator[Describer]:
        """Context of what describes images as a command line says; nobody else uses the backbone meanwhile.

        Raises:
            GateError: that command line cannot be read.
        """
        with self._reading:
            yield self._describer_of(words)

    def layers(self, words: tuple[str, ...]) -> list[str]:
        """Presets and layers of the backbone of a command line."""
        with self.describing(words) as describer:
            backbone = describer.extractor.backbone
        assert isinstance(backbone, Backbone)
        return [*preset_names(backbone), *backbone.layers]

    def _recalled(self, words: tuple[str, ...], image: KeptImage) -> DescribedImage | None:
        with self._keeping:
            found = self._known.get((words, image))
            if found is None:
                return None
            self._known.move_to_end((words, image))
            return found[0]

    def _keep(self, words: tuple[str, ...], image: KeptImage, described: DescribedImage) -> None:
        pixels = image.size[0] * image.size[1]
        size = described.grid.features.nbytes + described.image.nbytes + _PER_PIXEL * pixels
        with self._keeping:
            self._known[words, image] = described, size
            while self.bytes_used > self.limit and len(self._known) > 1:
                self._known.popitem(last=False)

    def _describer_of(self, words: tuple[str, ...]) -> Describer:
        """Describer of images by these words; only the last one is kept, with its backbone."""
        if self._describer is None or self._describer[0] != words:
            self._describer = None  # its memory is free before the next one is made
            self._describer = words, self._make(words)
        return self._describer[1]
