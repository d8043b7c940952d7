from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.ops.edges import canny
from tests.support.small_networks import build, conditions, random_images

LAYERS = ("up-level0-upsampler-out", "up-level1-upsampler-out", "up-level2-repeat0-res-out")  # strides 16, 8, 8


@pytest.fixture(scope="module")
def extractor() -> EdgeChannels:
    return EdgeChannels(FeatureExtractor(build("tiny"), [Branch("none", 50, LAYERS)]), low=20, high=60)


@pytest.mark.parametrize("size", [(64, 96), (36, 60)])
def test_every_stride_gets_the_edges_of_its_patches(extractor: EdgeChannels, size: tuple[int, int]) -> None:
    images = random_images(2, *size)
    features = extractor(images, conditions(2))
    assert list(features) == ["none", "edges"]
    assert list(features["edges"]) == ["edges-stride16", "edges-stride8"]
    image = ((images[1].permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    expected = (canny(image, 20, 60) > 0).astype(np.float32)
    assert expected.any()
    for layer, feature in features["edges"].items():
        info = extractor.feature_info["edges"][layer]
        assert feature.shape[1:] == (info.channels, -(-size[0] // info.stride), -(-size[1] // info.stride))
        top, left = info.stride, 2 * info.stride
        patch = expected[top : top + info.stride, left : left + info.stride]
        assert feature[1, :, 1, 2].sum() == patch.sum()
    same_stride = features["none"]["up-level1-upsampler-out"].shape[2:]
    assert features["edges"]["edges-stride8"].shape[2:] == same_stride


def test_edges_are_concatenated_and_the_rest_is_unchanged(extractor: EdgeChannels) -> None:
    images = random_images(1)
    assert extractor.concatenated == ("edges",)
    assert extractor.description["edges"]["low"] == 20
    with_edges, without = extractor(images, conditions(1)), extractor.extractor(images, conditions(1))
    assert torch.equal(with_edges["none"][LAYERS[0]], without["none"][LAYERS[0]])
    assert extractor.state_dict() == {}


def test_a_branch_of_that_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="rename yours"):
        EdgeChannels(FeatureExtractor(build("tiny"), [Branch("edges", 50, LAYERS)]))
