"""Prompt embeddings, encoded once per prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from gate_lightning.backbones.base import Adapters, Backbone, PromptEmbeds

__all__ = ["TextCache"]


class TextCache:
    """Embeddings of the prompts seen last, by prompt and the adapters that change the text encoder.

    Args:
        capacity: prompts kept; an SD 1.5 prompt takes 236 kB.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[tuple[object, ...], PromptEmbeds] = OrderedDict()

    def encode(self, backbone: Backbone, prompts: Sequence[str], adapters: Adapters = ()) -> PromptEmbeds:
        """Embeddings of B prompts; only prompts not seen yet are encoded, in one batch."""
        adapters = backbone.text_adapters(adapters)
        # a moved or converted backbone must not be answered with embeddings of its former self
        where = (adapters, backbone.device, backbone.dtype)
        known = {prompt: self._kept.get((prompt, *where)) for prompt in prompts}
        missing = [prompt for prompt, embeds in known.items() if embeds is None]
        if missing:
            encoded = backbone.encode_text(missing, adapters)
            for index, prompt in enumerate(missing):
                self._kept[(prompt, *where)] = known[prompt] = encoded[index : index + 1]
        for prompt in known:
            self._kept.move_to_end((prompt, *where))
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return PromptEmbeds.cat([embeds for prompt in prompts if (embeds := known[prompt]) is not None])
