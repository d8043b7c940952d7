"""A data set of one's own: bright discs on dark noise, without any file."""

import numpy as np

from gate_lightning.data.card import ClassLabels, DatasetCard
from gate_lightning.data.samples import SegmentationSample
from gate_lightning.data.segmentation.base import SegmentationDataModule


class Discs(SegmentationDataModule):
    def __init__(self, images=8, size=64, **loading):
        super().__init__(**loading)
        self.images, self.size = images, size
        self.card = DatasetCard("discs", prompt_fine="a bright disc", branches=({"techniques": ["prompt"]},))
        self.labels = ClassLabels(("ground", "disc"), ((0, 0, 0), (255, 255, 0)))

    def make_source(self, split):
        return DiscSource(split, self.images, self.size)


class DiscSource:
    def __init__(self, split, count, size):
        self.split, self.count, self.size = split, count, size

    def __len__(self):
        return self.count

    def sample_id(self, index):
        return f"{self.split}/{index}"

    def sizes(self, index):
        return (self.size, self.size), (self.size, self.size)

    def load(self, index):
        draw = np.random.default_rng([index, *self.split.encode()])
        y, x = np.mgrid[: self.size, : self.size] - draw.integers(16, self.size - 16, (2, 1, 1))
        disc = (y**2 + x**2 < draw.integers(36, 200)).astype(np.uint8)
        image = draw.integers(0, 80, (*disc.shape, 3), np.uint8) + 150 * disc[..., None]
        return SegmentationSample(self.sample_id(index), image, mask=disc)
