from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.noise import batch_noise
from gate_lightning.structures import Conditions
from gate_lightning.tasks.inference import Inference


class Recorder:
    """Logits are the image's first channel; remembers what belonged to each window."""

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


def test_controls_of_small_images_are_padded_like_the_images() -> None:
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
        {"scales": []},
        {"scales": [1.0, 1]},
        {"scales": [0.0]},
        {"scales": [float("inf")]},
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


class Network:
    """Logits that depend on place, direction and size of what is seen; remembers what that was."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Conditions]] = []

    def __call__(self, images: Tensor, conditions: Conditions) -> Tensor:
        self.seen.append((images, conditions))
        ramp = torch.linspace(0, 1, images.shape[-1]) * images.shape[-2] / 10
        return torch.cat([3 * images, images.mean(1, keepdim=True) + ramp], dim=1)


def test_views_are_averaged_as_probabilities_at_the_size_of_the_result() -> None:
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    conditions, network = Conditions(("a", "b")), Network()
    found = Inference(scales=[0.5, 1, 1.5], flip=True)(network, images, conditions, 8, size=(10, 15))
    expected = torch.zeros(2, 4, 10, 15)
    for height, width in ((4, 6), (8, 12), (12, 18)):
        view = interpolate(images, size=(height, width), mode="bilinear", antialias=True) if height != 8 else images
        for mirrored in (False, True):
            logits = Network()(view.flip(-1) if mirrored else view, conditions)
            chances = interpolate(logits, size=(10, 15), mode="bilinear").softmax(dim=1)
            expected += (chances.flip(-1) if mirrored else chances) / 6
    torch.testing.assert_close(found.softmax(dim=1), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, expected.log(), rtol=1e-4, atol=1e-5)
    assert len(network.seen) == 6


def test_every_view_has_noise_of_its_own_and_the_plain_one_the_usual() -> None:
    images, network = torch.rand(2, 3, 8, 12), Network()
    conditions = Conditions(("a", "b"), views=("", "draw3"), captions=("x", "y"))
    Inference(scales=[1, 0.5], flip=True)(network, images, conditions, native_size=8)
    keys = [c.views for _, c in network.seen]
    assert keys[0] == ("", "draw3")
    assert len(set(keys)) == 4
    assert all(second == f"draw3{first}" for first, second in keys)
    noises = [batch_noise((1, 2, 2), c, seed=0)[0] for _, c in network.seen]
    assert all(not torch.equal(noises[i], noises[j]) for i in range(4) for j in range(i))
    assert all(c.captions == ("x", "y") for _, c in network.seen)
    again = Network()
    Inference(scales=[0.5, 1], flip=True)(again, images, conditions, native_size=8)
    assert {c.views for _, c in again.seen} == set(keys)


def test_controls_are_scaled_and_mirrored_with_the_image() -> None:
    images, network = torch.rand(1, 3, 8, 12), Network()
    conditions = Conditions(("a",), control_images={"canny": images})
    Inference("slide", crop_size=6, stride=3, scales=[0.5, 1.25], flip=True)(
        network, images, conditions, native_size=64
    )
    assert len({c.views[0] for _, c in network.seen}) == 4
    assert len({(c.views[0], c.windows[0]) for _, c in network.seen}) == len(network.seen) > 4
    for seen, at in network.seen:
        assert torch.equal(at.control_images["canny"], seen)


def test_mirroring_makes_the_prediction_of_the_mirrored_image_the_mirrored_one() -> None:
    images = torch.rand(1, 3, 8, 12)
    inference = Inference(flip=True)
    found = inference(Network(), images, Conditions(("a",)), native_size=8)
    mirrored = inference(Network(), images.flip(-1), Conditions(("a",)), native_size=8)
    torch.testing.assert_close(found, mirrored.flip(-1))
    assert not torch.allclose(
        Network()(images, Conditions(("a",))), Network()(images.flip(-1), Conditions(("a",))).flip(-1)
    )


@pytest.mark.parametrize("settings", [{"scales": [0.5]}, {"flip": True}])
def test_explicit_noise_does_not_fit_views(settings: dict[str, Any]) -> None:
    conditions = Conditions(("a",), posterior_noise=torch.zeros(1, 4, 2, 2))
    with pytest.raises(ConfigError, match="explicit noise"):
        Inference(**settings)(Recorder(), torch.zeros(1, 3, 8, 8), conditions, native_size=4)
