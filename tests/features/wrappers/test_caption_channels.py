from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gate_lightning.backbones.raw_pixels import PixelBackbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.caption_channels import CaptionChannels
from tests.support.small_networks import build, conditions, random_images

LAYERS = ("up-level0-upsampler-out", "up-level1-upsampler-out")  # strides 16, 8
CAPTIONS = ("a red house", "a small tree on the left and a red car")


@pytest.fixture(scope="module")
def extractor() -> CaptionChannels:
    backbone = build("tiny")
    return CaptionChannels(FeatureExtractor(backbone, [Branch("none", 50, LAYERS)]), backbone)


def test_every_position_has_the_mean_embedding_of_its_images_caption(extractor: CaptionChannels) -> None:
    features = extractor(random_images(2, 36, 60), replace(conditions(2), captions=CAPTIONS))
    assert list(features) == ["none", "caption"]
    backbone = extractor._backbones[0]
    for stride in (16, 8):
        maps = features["caption"][f"caption-stride{stride}"]
        assert maps.shape[1] == extractor.feature_info["caption"][f"caption-stride{stride}"].channels
        assert maps.shape[2:] == features["none"][LAYERS[stride == 8]].shape[2:]
        for row, caption in enumerate(CAPTIONS):
            expected = backbone.encode_text([caption]).hidden[0].mean(0)
            torch.testing.assert_close(maps[row], expected[:, None, None].expand_as(maps[row]))


def test_captions_are_concatenated_and_the_rest_is_unchanged(extractor: CaptionChannels) -> None:
    images, told = random_images(1), replace(conditions(1), captions=CAPTIONS[:1])
    assert extractor.concatenated == ("caption",)
    assert extractor.description != extractor.extractor.description
    assert torch.equal(extractor(images, told)["none"][LAYERS[0]], extractor.extractor(images, told)["none"][LAYERS[0]])
    assert extractor.state_dict() == {}


def test_images_without_captions_are_refused(extractor: CaptionChannels) -> None:
    with pytest.raises(DataError, match="the images have none"):
        extractor(random_images(1), replace(conditions(1), captions=None))


def test_a_backbone_without_text_and_a_branch_of_that_name_are_refused() -> None:
    pixels, backbone = PixelBackbone(), build("tiny")
    with pytest.raises(ConfigError, match="no text encoder"):
        CaptionChannels(FeatureExtractor(pixels, [Branch("none", 0, ("pixels",))]), pixels)
    with pytest.raises(ConfigError, match="rename yours"):
        CaptionChannels(FeatureExtractor(backbone, [Branch("caption", 50, LAYERS)]), backbone)
