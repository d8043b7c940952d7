"""Share of high frequencies and clusterability as measures: what they say is that of features read by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.metrics.content_shift.structure import between_clusters, high_frequency_share
from gate_lightning.structures import ImageBatch
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.structure import Clusterability, HighFrequencies
from gate_lightning.tasks.content_shift.study import measure_content_shift
from tests.support.small_networks import build, conditions, random_images

FINE, COARSE = "up-level2-upsampler-out", "mid-vit-out"
NONE = Branch("none", 50, (FINE, COARSE))


def test_measures_are_those_of_features_read_by_hand() -> None:
    backbone, images, known = build("tiny"), random_images(4, 32, 32), conditions(4)
    batches = [ImageBatch(images[at : at + 2], known[slice(at, at + 2)]) for at in (0, 2)]
    measures = {"high": HighFrequencies(0.3), "clusters": Clusterability(4)}
    found = measure_content_shift(ShiftReader({"": backbone}, [NONE], (50, 200)), batches, measures)
    branches = [replace(NONE, name=f"t{t}", timestep=t, noise_seed=0) for t in (50, 200)]
    maps = FeatureExtractor(backbone, branches)(images, known)
    for timestep in (50, 200):
        for layer in (FINE, COARSE):
            own = maps[f"t{timestep}"][layer]
            expected = high_frequency_share(own, 0.3)
            one = found.statistics["high"]["none", timestep, layer]
            torch.testing.assert_close(one.of_images, expected, rtol=1e-4, atol=1e-5)
            assert one.higher_is_better
            key = ("none", timestep, layer)
            if own.shape[2] * own.shape[3] <= 4:  # as many positions as clusters
                assert key not in found.statistics["clusters"]
                continue
            within, total = between_clusters(own, 4)
            share = float(1 - within.mean() / total.mean())
            assert found.statistics["clusters"][key].value == pytest.approx(share, rel=1e-3)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.measures.high_frequencies.cutoff=0.7: expected a number"):
        HighFrequencies(0.7)
    with pytest.raises(ConfigError, match=r"task.measures.clusterability.clusters=1: expected a whole number from 2"):
        Clusterability(1)
