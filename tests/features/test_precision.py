"""Frozen networks compute in the type of their own weights; no cache mixes types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import CacheError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.keys import image_key
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.img2img import ImageToImage, autoencoded
from gate_lightning.features.wrappers.caption_channels import CaptionChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.structures import Extractor, Features
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.utils.precision import allow_tf32
from tests.support.small_networks import MEMBERS, build, conditions, random_images


class Casts(TorchDispatchMode):
    """Counts tensors that are converted from float32 to bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float32:
            self.count += made.dtype == torch.bfloat16
        return made


def mixed() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def first_layer(backbone: Backbone) -> str:
    return next(layer for layer, one in backbone.feature_info(backbone.layers).items() if one.stride and one.channels)


def last_layer(backbone: Backbone) -> str:
    return [layer for layer, one in backbone.feature_info(backbone.layers).items() if one.stride and one.channels][-1]


def plain(backbone: Backbone) -> FeatureExtractor:
    timestep = 50 if backbone.schedule.length > 50 else 0
    return FeatureExtractor(backbone, [Branch("plain", timestep, (last_layer(backbone),))])


def same(one: Features, other: Features) -> bool:
    return all(torch.equal(value, other[branch][layer]) for branch in one for layer, value in one[branch].items())


@pytest.mark.parametrize("member", MEMBERS)
def test_an_autocast_around_it_does_not_reach_a_frozen_network(member: str) -> None:
    backbone = build(member)
    images, known = random_images(2), conditions(2)
    expected = plain(backbone)(images, known)
    with mixed(), Casts() as casts:
        found = plain(backbone)(images, known)  # a new one, which knows no texts yet
    assert casts.count == 0
    assert same(found, expected)


def steered(backbone: Backbone) -> list[Branch]:
    layer = "up-level1-upsampler-out"
    return [
        Branch("plain", 50, (layer,)),
        Branch("steered", 50, (layer,), (Prompt("a red house"), ControlNet())),
    ]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone

    return load_unet_backbone(controlnets={"canny": "asset:tiny/controlnet"})


def multi(backbone: Backbone) -> Extractor:
    second = FeatureExtractor(build("pixels"), [Branch("pixels", 0, (first_layer(build("pixels")),))])
    return MultiBackboneExtractor({"": FeatureExtractor(backbone, steered(backbone)), "second": second}, {"": 0.5})


@pytest.mark.parametrize(
    "make",
    [
        lambda backbone: FeatureExtractor(backbone, steered(backbone)),
        lambda backbone: CaptionChannels(FeatureExtractor(backbone, steered(backbone)[:1]), backbone),
        multi,
        pytest.param(lambda backbone: ImageToImage(backbone, steered(backbone), 300, 2), marks=pytest.mark.thorough),
    ],
    ids=["branches", "captions", "several", "img2img"],
)
def test_nor_what_is_read_through_it(tiny: Backbone, make: Callable[[Backbone], Any]) -> None:
    images, known = random_images(2, 64, 64), conditions(2, captions=("a tree", "a house"))
    expected = make(tiny)(images, known)
    with mixed(), Casts() as casts:
        found = make(tiny)(images, known)
    assert casts.count == 0
    flat = [list(one.values()) if isinstance(one, dict) else [one] for one in (*expected.values(), *found.values())]
    half = len(flat) // 2
    assert all(
        torch.equal(*pair)
        for one, other in zip(flat[:half], flat[half:], strict=True)
        for pair in zip(one, other, strict=True)
    )


def test_the_autoencoder_alone(tiny: Backbone) -> None:
    images = random_images(1, 64, 64)
    with mixed(), Casts() as casts:
        found = autoencoded(tiny, images)
    assert casts.count == 0
    assert torch.equal(found, autoencoded(tiny, images))


@pytest.mark.thorough
def test_weights_in_bfloat16_are_not_cast_either(tiny: Backbone) -> None:
    backbone = build("tiny").finish("bfloat16", False)
    made = FeatureExtractor(backbone, [Branch("plain", 50, ("up-level1-upsampler-out",))])
    images, known = random_images(1, 32, 32), conditions(1)
    expected = made(images, known)
    with mixed():
        assert same(made(images, known), expected)
    weights = {one.data_ptr() for one in backbone.parameters()}

    class Weights(Casts):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                self.count += isinstance(args[0], Tensor) and args[0].data_ptr() in weights
            return func(*args, **(kwargs or {}))

    with mixed(), Weights() as casts:
        made(images, known)
    assert casts.count == 0


@pytest.mark.parametrize(
    "make",
    [pytest.param(lambda made, _: MemoryCache(made, 1.0), marks=pytest.mark.thorough), DiskCache],
    ids=["memory", "disk"],
)
def test_features_of_another_type_are_never_read(tmp_path: Path, make: Callable[[Extractor, Path], Any]) -> None:
    """Lightning and users convert the module that a cache is part of; the folder was claimed in float32."""
    images, known = random_images(1, 32, 32), conditions(1)
    exact = make(plain(build("tiny")), tmp_path / "cache")(images, known)
    cache = make(plain(build("tiny")), tmp_path / "cache")
    with pytest.raises(CacheError, match=r"dtype: 'float32' → 'bfloat16'.*\(backbone\.dtype\)"):
        cache.to(torch.bfloat16)
    cache = make(plain(build("tiny")), tmp_path / "cache")
    assert same(cache(images, known), exact)


def test_keys_know_nothing_of_an_autocast_and_all_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    image, known = random_images(1)[0], conditions(1)
    key = image_key(image, known, 0)
    with mixed():
        assert image_key(image, known, 0) == key
    monkeypatch.setattr("gate_lightning.utils.precision._has_tf32", lambda device: True)
    try:
        allow_tf32(True)
        rounded = image_key(image, known, 0)
        allow_tf32(False)
        assert image_key(image, known, 0) == key != rounded
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch left to itself: convolutions alone
        assert image_key(image, known, 0) == rounded
    finally:
        allow_tf32(True)


def test_tf32_is_switched_for_products_and_convolutions() -> None:
    for on in (False, True):
        allow_tf32(on)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (on, on)
