"""Measures of what features look like by themselves: share of high frequencies, clusters of positions."""

from __future__ import annotations

from gate_lightning.metrics.content_shift.statistic import share_kept
from gate_lightning.metrics.content_shift.structure import between_clusters, high_frequency_share
from gate_lightning.tasks.content_shift.batch import ShiftBatch
from gate_lightning.tasks.content_shift.measure import ImageMeasure
from gate_lightning.utils.checks import number, whole_number

__all__ = ["Clusterability", "HighFrequencies"]


class HighFrequencies(ImageMeasure):
    """Share of the energy of features at high frequencies, after A-SelecT (arXiv 2603.25758), by a definition of ours.

    A-SelecT takes the larger share for the better features; noise is fine, too, and counts alike.

    Args:
        cutoff: cycles per position above which a frequency is high, in (0, 0.5).

    Raises:
        ConfigError: a cutoff out of range.
    """

    def __init__(self, cutoff: float = 0.25) -> None:
        super().__init__()
        self.cutoff = number(cutoff, "task.measures.high_frequencies.cutoff", 1e-6, 0.5 - 1e-6)

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        for timestep in batch.timesteps:
            for candidate in (name for name in batch.candidates if batch.reads(name, timestep)):
                for layer, maps in batch.features(candidate, timestep).items():
                    self.add(candidate, timestep, layer, high_frequency_share(maps, self.cutoff))


class Clusterability(ImageMeasure):
    """Share of the variance of an image's positions that lies between clusters, after DiEC (arXiv 2512.20905), by a
    definition of ours.

    Variances are averaged over the images before they are divided. Layers with no more positions than clusters have
    none.

    Args:
        clusters: per image, at least 2.

    Raises:
        ConfigError: a number out of range.
    """

    reduce = staticmethod(share_kept)

    def __init__(self, clusters: int = 6) -> None:
        super().__init__()
        self.clusters = whole_number(clusters, "task.measures.clusterability.clusters", 2)

    def update(self, batch: ShiftBatch) -> None:
        """Count the images of a batch in; see `Measure`."""
        for timestep in batch.timesteps:
            for candidate in (name for name in batch.candidates if batch.reads(name, timestep)):
                for layer, maps in batch.features(candidate, timestep).items():
                    if maps.shape[2] * maps.shape[3] > self.clusters:
                        self.add(candidate, timestep, layer, *between_clusters(maps, self.clusters))
