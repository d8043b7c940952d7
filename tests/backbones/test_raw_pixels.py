from __future__ import annotations

import numpy as np
import pytest
import torch

from gate_lightning.backbones.raw_pixels import PixelBackbone, space_to_depth
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import conditions, random_images


def test_a_patch_holds_its_own_pixels_and_its_position() -> None:
    images = random_images(2, 32, 48)
    extractor = FeatureExtractor(PixelBackbone([16, 8]), [Branch("none", 50, ("pixels-stride8",))])
    feature = extractor(images, conditions(2))["none"]["pixels-stride8"]
    assert feature.shape == (2, 3 * 64 + 2, 4, 6)
    row, column = 2, 5
    patch = images[1, :, 16:24, 40:48].numpy()
    assert sorted(feature[1, :-2, row, column].tolist()) == sorted(patch.ravel().tolist())
    # centre of the patch, from -1 (left, top) to 1
    np.testing.assert_allclose(feature[1, -2:, row, column], [(44 / 48) * 2 - 1, (20 / 32) * 2 - 1], rtol=1e-6)


def test_without_positions_there_are_pixels_alone() -> None:
    images = random_images(1, 16, 24)
    whole = PixelBackbone([1], 16, position=False)
    feature = FeatureExtractor(whole, [Branch("none", 50, ("pixels-stride1",))])(images, conditions(1))
    assert torch.equal(feature["none"]["pixels-stride1"], images)
    assert whole.feature_info(["pixels-stride1"])["pixels-stride1"].channels == 3
    assert whole.description != PixelBackbone([1], 16).description
    with pytest.raises(ConfigError, match="makes no images"):
        whole.decode(images)


def test_timestep_and_prompt_change_nothing() -> None:
    images = random_images(1, 32, 32)
    one, other = (
        FeatureExtractor(PixelBackbone(), [Branch("none", timestep, ("pixels-stride4",), prompt=prompt)])
        for timestep, prompt in ((0, ""), (900, "a house"))
    )
    a, b = (extractor(images, conditions(1))["none"]["pixels-stride4"] for extractor in (one, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize("technique", [Prompt("a"), ControlNet(), LoRA("a", "a.safetensors")])
def test_techniques_are_refused(technique: object) -> None:
    with pytest.raises(ConfigError, match="techniques=none"):
        FeatureExtractor(PixelBackbone(), [Branch("x", 50, ("pixels-stride4",), (technique,))])


@pytest.mark.parametrize("strides", [[], [4, 8], [8, 8], [4, 0]])
def test_impossible_strides_are_refused(strides: list[int]) -> None:
    with pytest.raises(ConfigError, match="coarse to fine"):
        PixelBackbone(strides)


def test_windows_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least the largest patch, 16"):
        PixelBackbone(native_size=8)


def test_the_border_is_repeated_where_a_patch_overhangs() -> None:
    image = torch.arange(15.0).reshape(1, 1, 3, 5)
    blocks = space_to_depth(image, 2)
    assert blocks.shape == (1, 4, 2, 3)
    assert blocks[0, :, 1, 2].tolist() == [14.0] * 4
