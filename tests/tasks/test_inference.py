from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions
from gate_lightning.tasks.inference import Inference


class Recorder:
    """Logits are the picture's first channel; remembers what belonged to each window."""

    def __init__(self) -> None:
        self.conditions: list[Conditions] = []

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        self.conditions.append(conditions)
        return images[:, :1]


def test_whole_is_one_call() -> None:
    images, predict = torch.randn(2, 3, 20, 30), Recorder()
    result = Inference()(predict, images, Conditions(("a", "b")), native_size=8)
    assert torch.equal(result, images[:, :1])
    assert len(predict.conditions) == 1


def test_windows_carry_their_offsets_and_their_part_of_the_controls() -> None:
    images, predict = torch.randn(1, 3, 6, 9), Recorder()
    conditions = Conditions(("a",), windows=((100, 200),), control_images={"canny": images})
    result = Inference("slide", crop_size=6, stride=[6, 3])(predict, images, conditions, native_size=64)
    assert torch.equal(result, images[:, :1])
    assert [c.windows for c in predict.conditions] == [((100, 200),), ((100, 203),)]
    assert torch.equal(predict.conditions[1].control_images["canny"], images[..., 3:9])


def test_controls_of_small_pictures_are_padded_like_the_pictures() -> None:
    images, predict = torch.randn(1, 3, 3, 4), Recorder()
    conditions = Conditions(("a",), control_images={"canny": images})
    Inference("slide", crop_size=5)(predict, images, conditions, native_size=64)
    assert predict.conditions[0].control_images["canny"].shape == (1, 3, 5, 5)


def test_window_is_by_default_the_native_size_and_the_stride_two_thirds() -> None:
    assert Inference("slide").window(512) == ((512, 512), (341, 341))
    assert Inference("slide", crop_size=(300, 60)).window(512) == ((300, 60), (200, 40))
    assert Inference("slide", stride=100).window(512) == ((512, 512), (100, 100))


@pytest.mark.parametrize(
    "settings",
    [
        {"mode": "tiles"},
        {"mode": "whole", "crop_size": 64},
        {"mode": "slide", "crop_size": 64, "stride": 65},
        {"mode": "slide", "crop_size": 0},
        {"mode": "slide", "crop_size": (1, 2, 3)},
        {"mode": "slide", "stride": -1},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Inference(**settings)


def test_stride_beyond_the_native_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="native size"):
        Inference("slide", stride=65).window(64)


def test_explicit_noise_does_not_fit_windows() -> None:
    conditions = Conditions(("a",), noise=torch.zeros(1, 4, 2, 2))
    with pytest.raises(ConfigError, match="explicit noise"):
        Inference("slide", crop_size=4)(Recorder(), torch.zeros(1, 3, 8, 8), conditions, native_size=4)
