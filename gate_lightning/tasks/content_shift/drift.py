"""Drift of features from noise to noise as a measure."""

from __future__ import annotations

from gate_lightning.metrics.content_shift.drift import noise_drift
from gate_lightning.metrics.content_shift.statistic import ratio
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.measure import ImageMeasure
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["NoiseDrift"]

PARTS = ("moves", "flickers", "total")


class NoiseDrift(ImageMeasure):
    """Variance of an image's features over several noises, relative to their contrast; lower is less shift.

    See `metrics.content_shift.drift.noise_drift`. Candidates whose draws are all equal (clean latents, inversion) are
    left out. An ensemble of E noises has 1/E of the drift, whatever the technique: compare at equal passes.

    Args:
        part: ``moves`` (what neighbouring positions share), ``flickers`` (the rest), or ``total``.
        draws: number of noises, at least 2.

    Raises:
        ConfigError: an unknown part, or too few draws.
    """

    higher_is_better = False
    reduce = staticmethod(ratio)

    def __init__(self, part: str = "moves", draws: int = 4) -> None:
        super().__init__()
        check_choice(part, "part", PARTS)
        self.part, self.draws = part, whole_number(draws, "draws", 2)

    def missing(self, batch: ShiftBatch) -> str | None:
        """Reason why it cannot be measured here, or None; see `Measure`."""
        if any(batch.reads(name, t, draws=self.draws) for name in batch.candidates for t in batch.timesteps):
            return None
        return "no candidate draws noise: its features are those of clean latents, or of noise found by inversion"

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        for timestep in batch.timesteps:
            for candidate in batch.candidates:
                if not batch.reads(candidate, timestep, draws=self.draws):
                    continue
                drawn = [batch.features(candidate, timestep, draw) for draw in range(self.draws)]
                for layer in drawn[0]:
                    found = noise_drift([features[layer] for features in drawn])
                    parts = {"moves": found.moves, "flickers": found.flickers, "total": found.moves + found.flickers}
                    self.add(candidate, timestep, layer, parts[self.part], found.contrast)
