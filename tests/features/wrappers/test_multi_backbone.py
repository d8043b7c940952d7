"""Several backbones in one extraction: each sees its own size, and all maps are told in the given images' pixels."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gate_lightning.backbones.raw_pixels import PixelBackbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.structures import Conditions, Features
from gate_lightning.techniques.controlnet import GivenControl
from tests.support.small_networks import build, conditions, random_images, relative

TINY, ONE = "up-level1-upsampler-out", "up-level0-upsampler-out"


@pytest.fixture(scope="module")
def backbones() -> tuple[UNetBackbone, UNetBackbone]:
    tiny, other = build("tiny"), build("one_repeat", seed=3)
    assert isinstance(tiny, UNetBackbone)
    assert isinstance(other, UNetBackbone)
    return tiny, other


def extractors(backbones: tuple[UNetBackbone, UNetBackbone]) -> dict[str, FeatureExtractor]:
    tiny, other = backbones
    return {
        "main": FeatureExtractor(tiny, [Branch("a", 50, (TINY,)), Branch("c", 100, (TINY,), concatenated=True)]),
        "other": FeatureExtractor(other, [Branch("b", 30, (ONE,), noise_seed=1)]),
    }


def test_without_scales_every_branch_is_what_its_own_extractor_gives(
    backbones: tuple[UNetBackbone, UNetBackbone],
) -> None:
    parts, images = extractors(backbones), random_images(2)
    fused = MultiBackboneExtractor(parts, order=["a", "b", "c"])
    features = fused(images, conditions(2))
    assert list(features) == list(fused.feature_info) == ["a", "b", "c"]
    assert fused.concatenated == ("c",)
    assert fused.backbone is backbones[0]
    for part in parts.values():
        for branch, maps in part(images, conditions(2)).items():
            for layer, value in maps.items():
                assert torch.equal(features[branch][layer], value)
                assert fused.feature_info[branch][layer] == part.feature_info[branch][layer]


def test_a_scaled_backbone_sees_the_resized_image_and_its_strides_are_told_in_given_pixels(
    backbones: tuple[UNetBackbone, UNetBackbone],
) -> None:
    parts, images = extractors(backbones), random_images(2, 64, 128)
    fused = MultiBackboneExtractor(parts, {"other": 0.5})
    own = parts["other"].feature_info["b"][ONE]
    assert fused.feature_info["b"][ONE] == replace(own, stride=own.stride * 2)
    half = torch.nn.functional.interpolate(images, (32, 64), mode="bilinear", antialias=True)
    expected = parts["other"](half, conditions(2))["b"][ONE]
    features = fused(images, conditions(2))
    assert torch.equal(features["b"][ONE], expected)
    assert torch.equal(features["a"][TINY], parts["main"](images, conditions(2))["a"][TINY])
    assert fused.description["backbones"]["other"]["scale"] == 0.5
    assert fused.description != MultiBackboneExtractor(parts).description


@pytest.mark.parametrize(
    ("scale", "size", "seen", "strides"),
    [
        (0.5, (40, 72), (20, 36), [32, 16, 8]),
        (2.0, (20, 24), (40, 48), [8, 4, 2]),
        (0.75, (44, 60), (33, 45), [21, 11, 5]),
        (8.0, (20, 20), (160, 160), [2, 1, 1]),
        (0.01, (40, 64), (16, 16), [1600, 800, 400]),  # no smaller than the backbone can read
    ],
)
def test_maps_fit_their_stride_whatever_the_rounding(
    scale: float, size: tuple[int, int], seen: tuple[int, int], strides: list[int]
) -> None:
    first = FeatureExtractor(PixelBackbone((4,)), [Branch("p", 0, ("pixels-stride4",))])
    second = PixelBackbone()
    sizes = []
    second.patches.register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[-2:])))
    fused = MultiBackboneExtractor(
        {"one": first, "two": FeatureExtractor(second, [Branch("q", 0, tuple(second.layers))])}, {"two": scale}
    )
    features = fused(random_images(1, *size), conditions(1))
    assert sizes == [seen]
    assert [info.stride for info in fused.feature_info["q"].values()] == strides
    for layer, info in fused.feature_info["q"].items():
        assert features["q"][layer].shape[1:] == (info.channels, -(-size[0] // info.stride), -(-size[1] // info.stride))


def test_positions_lie_where_the_given_image_has_them() -> None:
    # a bright square in the lower right corner, read at half size with half the patch
    images = -torch.ones(1, 3, 64, 64)
    images[..., 32:, 48:] = 1
    wide, half = (
        FeatureExtractor(PixelBackbone((s,)), [Branch(n, 0, (f"pixels-stride{s}",))]) for n, s in (("w", 16), ("h", 8))
    )
    fused = MultiBackboneExtractor({"w": wide, "h": half}, {"h": 0.5})
    features = fused(images, conditions(1))
    assert [info.stride for layers in fused.feature_info.values() for info in layers.values()] == [16, 16]
    bright = [next(iter(maps.values()))[0, :-2].mean(dim=0) > 0 for maps in features.values()]
    assert torch.equal(bright[0], bright[1])
    assert bright[0].sum() == 2


def test_control_images_are_resized_along() -> None:
    seen: list[torch.Tensor] = []

    class Reads(FeatureExtractor):
        def forward(self, images: torch.Tensor, conditions: Conditions) -> Features:
            seen.append(GivenControl("depth")(images, conditions))
            return super().forward(images, conditions)

    pixels = PixelBackbone((8,))
    parts = {
        "x": FeatureExtractor(pixels, [Branch("x", 0, ("pixels-stride8",))]),
        "y": Reads(pixels, [Branch("y", 0, ("pixels-stride8",))]),
    }
    depth = torch.rand(1, 3, 32, 48)
    MultiBackboneExtractor(parts, {"y": 0.5})(random_images(1, 32, 48), conditions(1, control_images={"depth": depth}))
    assert seen[0].shape == (1, 3, 16, 24)
    assert relative(seen[0].mean(), depth.mean()) < 0.05


def test_edges_and_memory_go_on_top(backbones: tuple[UNetBackbone, UNetBackbone]) -> None:
    fused = MultiBackboneExtractor(extractors(backbones), {"other": 0.5})
    edged = EdgeChannels(fused)
    assert edged.strides == sorted(
        {i.stride for maps in fused.feature_info.values() for i in maps.values()}, reverse=True
    )
    cache, images = MemoryCache(edged, 0.1), random_images(2)
    first, second = cache(images, conditions(2)), cache(images, conditions(2))
    assert len(cache) == 2
    assert cache.concatenated == ("c", "edges")
    for branch, maps in first.items():
        for layer, value in maps.items():
            stride = edged.feature_info[branch][layer].stride
            assert value.shape[-2:] == (-(-64 // stride), -(-96 // stride))
            assert torch.equal(value, second[branch][layer])


def test_checkpoints_hold_none_of_it(backbones: tuple[UNetBackbone, UNetBackbone]) -> None:
    module = torch.nn.ModuleDict(
        {"extractor": MultiBackboneExtractor(extractors(backbones)), "head": torch.nn.Linear(1, 1)}
    )
    assert list(module.state_dict()) == ["head.weight", "head.bias"]
    module.load_state_dict(module.state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.bias"):
        module.load_state_dict({"head.weight": torch.ones(1, 1)}, strict=True)


def test_what_does_not_fit_is_refused(backbones: tuple[UNetBackbone, UNetBackbone]) -> None:
    parts = extractors(backbones)
    with pytest.raises(ConfigError, match=r"scales of backbones: unknown key 'adm'; .*expected of main, other"):
        MultiBackboneExtractor(parts, {"adm": 0.5})
    with pytest.raises(ConfigError, match=r"scale of the backbone other=0.*: expected a factor above 0"):
        MultiBackboneExtractor(parts, {"other": 0})
    with pytest.raises(ConfigError, match="several branches are named a"):
        MultiBackboneExtractor({"one": parts["main"], "two": parts["main"]})
    with pytest.raises(ConfigError, match=r"order=\['a'\]: expected each of the branches a, c, b once"):
        MultiBackboneExtractor(parts, order=["a"])
    with pytest.raises(ConfigError, match="no extractors"):
        MultiBackboneExtractor({})
    with pytest.raises(DataError, match="too small"):
        MultiBackboneExtractor(parts)(random_images(1, 3, 64), conditions(1))
