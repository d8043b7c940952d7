"""Grounding of prompts as a measure: words that are not in an image have nowhere to gather."""

from __future__ import annotations

from dataclasses import replace

import torch

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.metrics.content_shift.grounding import (
    attention_concentration,
    attention_peak,
    content_words,
    word_maps,
)
from gate_lightning.metrics.content_shift.statistic import Statistic, ratio
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.measure import ImageMeasure, Key
from gate_lightning.utils.checks import check_choice

__all__ = ["PromptGrounding"]


class PromptGrounding(ImageMeasure):
    """Concentration of the cross-attention on the content words of the prompt, mean over all words of all images.

    Ours: no paper that we know measures prompts so. A word that is not in the image is expected to spread; but
    attention can gather anywhere, so compare a candidate with its row of shuffled captions before believing a figure.

    Args:
        reading: ``concentration`` (1 - relative entropy over positions) or ``peak`` (largest share of a position).
        layer: averaged cross-attention to read.

    Raises:
        ConfigError: an unknown reading.
    """

    reduce = staticmethod(ratio)

    def __init__(self, reading: str = "concentration", layer: str = "attn-up-cross") -> None:
        super().__init__()
        check_choice(reading, "reading", ("concentration", "peak"))
        self.reading, self.layer = reading, layer
        self._extractors: dict[tuple[str, int], FeatureExtractor] = {}

    def missing(self, batch: ShiftBatch) -> str | None:
        """Reason why it cannot be measured here, or None; see `Measure`."""
        backbones = {batch.reader.backbone(name) for name in batch.candidates}
        if any(self._has_words(backbone) for backbone in backbones):
            return None
        names = ", ".join(sorted(backbone.identity.name for backbone in backbones))
        return f"{names}: no words of a prompt, or no cross-attention {self.layer}"

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        for timestep in batch.timesteps:
            for name in batch.candidates:
                noises = batch.reader.candidates[name].kind == "noises"
                if noises or not self._has_words(batch.reader.backbone(name)) or not batch.reads(name, timestep):
                    continue
                self._read(batch, name, timestep)

    def result(self) -> dict[Key, Statistic]:
        """See `Measure`; of candidates whose prompts name something.

        Raises:
            ConfigError: none does.
        """
        found = {key: one for key, one in super().result().items() if bool(one.values[:, 1].any())}
        if not found:
            raise ConfigError("no prompt has a word that names something in an image; give captions, or a fine prompt")
        return found

    def _read(self, batch: ShiftBatch, name: str, timestep: int) -> None:
        backbone, padded = batch.reader.backbone(name), batch.padded(name)
        key = (name, timestep)
        if key not in self._extractors:
            branch = replace(batch.reader.candidates[name].branch, name=name, timestep=timestep, layers=(self.layer,))
            self._extractors[key] = FeatureExtractor(
                backbone, [branch], batch.reader.seed, max_samples=batch.reader.max_samples, passes=batch.reader.passes
            )
        features = self._extractors[key].read(*batch.moments(name), padded.images, padded.conditions)
        conditioning = batch.reader.conditioning(name, padded.images, padded.conditions)
        sums: list[tuple[float, int]] = []
        for maps, prompt in zip(features[name][self.layer], conditioning.prompts, strict=True):
            words = content_words(backbone.words_of(prompt, conditioning.adapters))
            tokens = backbone.text_length(prompt, conditioning.adapters)
            of_words = word_maps(maps, words, tokens)
            if self.reading == "concentration":
                values = attention_concentration(of_words)
            else:
                values = attention_peak(of_words, word_maps(maps, [(0,)], tokens)[0])
            sums.append((float(values.sum()), len(words)))
        totals, counts = (torch.tensor(column) for column in zip(*sums, strict=True))
        self.add(name, timestep, self.layer, totals, counts)

    def _has_words(self, backbone: Backbone) -> bool:
        return self.layer in backbone.derived and bool(backbone.words_of("word"))
