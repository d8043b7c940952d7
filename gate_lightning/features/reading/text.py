"""Cache of prompt embeddings."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import Adapters, PromptEmbeds
from gate_lightning.utils.console import taking

__all__ = ["TextCache"]


class TextCache:
    """Least recently used cache of prompt embeddings, by prompt and adapters of the text encoder.

    Args:
        capacity: number of prompts kept; an SD 1.5 prompt takes 236 kB.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[tuple[object, ...], PromptEmbeds] = OrderedDict()

    def encode(self, backbone: Backbone, prompts: Sequence[str], adapters: Adapters = ()) -> list[PromptEmbeds]:
        """Embeddings (1, T, C) of each prompt; T may differ.

        Only new prompts are encoded, those of equal T in one batch.
        """
        adapters = backbone.text_adapters(adapters)
        # a moved or converted backbone must not be answered with embeddings of its former self
        where = (adapters, backbone.device, backbone.dtype)
        known = {prompt: embeds for prompt in prompts if (embeds := self._kept.get((prompt, *where))) is not None}
        missing: dict[int, list[str]] = {}
        for prompt in dict.fromkeys(prompt for prompt in prompts if prompt not in known):
            missing.setdefault(backbone.text_length(prompt, adapters), []).append(prompt)
        for alike in missing.values():
            with taking(f"encoding {len(alike)} prompts"):
                encoded = backbone.encode_text(alike, adapters)
            for index, prompt in enumerate(alike):
                self._kept[(prompt, *where)] = known[prompt] = encoded[index : index + 1]
        for prompt in known:
            self._kept.move_to_end((prompt, *where))
        while len(self._kept) > self.capacity:
            self._kept.popitem(last=False)
        return [known[prompt] for prompt in prompts]
