"""Every configuration of a learned part builds, and what it builds runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gate_lightning.engine.command.configuration import composed
from gate_lightning.structures import FeatureInfo
from tests.support.paths import CONF

#: what works on single pixels, and what reads the image itself
PIXELS = {
    "amalgamation": ("concat_pixels", "released_pixels", "weighted_pixels"),
    "head": ("nearest_pixels", "pixel_ensemble"),
}
IMAGES = ("deeplab",)
LAYERS = {"fine": FeatureInfo(16, 4), "middle": FeatureInfo(24, 8), "coarse": FeatureInfo(32, 16)}
KEYPOINTS = ("contrastive", "geoaware")
#: what makes no logits at the pyramid's resolution
DESCRIPTORS = ("descriptors", "conv_descriptors", "nearest_images")


def names(group: str, *, without: tuple[str, ...] = ()) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem not in without)


def load(group: str, name: str):
    """The node as Hydra composes it, below its key so that interpolations are tried as well."""
    return composed("+seed=0", name=f"{group}/{name}")[group]


def build(node, **given):
    made = instantiate(node, _convert_="all")
    assert isinstance(made, partial)
    return made(**given)


@pytest.mark.parametrize("name", names("amalgamation", without=(*PIXELS["amalgamation"], "joint_pca")))
def test_amalgamations(name):
    amalgamation = build(load("amalgamation", name), feature_info={"a": LAYERS, "b": LAYERS}, concatenated=())
    features = {
        branch: {layer: torch.randn(1, i.channels, 32 // i.stride, 32 // i.stride) for layer, i in LAYERS.items()}
        for branch in "ab"
    }
    assert tuple(level.shape[1] for level in amalgamation(features).levels) == amalgamation.out_channels


def test_the_amalgamation_of_pairs():
    node = OmegaConf.merge(load("amalgamation", "joint_pca"), {"components": 8, "weights": {"b": 0.5}})
    joint = build(node, feature_info={"a": LAYERS, "b": LAYERS})
    pair = [
        {
            branch: {layer: torch.randn(1, i.channels, 32 // i.stride, 64 // i.stride) for layer, i in LAYERS.items()}
            for branch in "ab"
        }
        for _ in range(2)
    ]
    assert {part.shape for part in joint(*pair)} == {(1, *joint.out_channels, 8, 16)}


@pytest.mark.parametrize("name", PIXELS["amalgamation"])
def test_amalgamations_of_pixels(name):
    amalgamation = build(load("amalgamation", name), backbone_groups={"a": (2, 16), "b": (1, 24)})
    fused = amalgamation({"a": torch.randn(10, 3, 2, 16), "b": torch.randn(10, 3, 1, 24)}).features
    assert fused.shape == (10, 3, amalgamation.out_channels)


@pytest.mark.parametrize("name", PIXELS["head"])
def test_heads_of_pixels(name):
    head = build(load("head", name).decode, in_channels=16, num_classes=3)
    if name == "nearest_pixels":
        head.add(torch.randn(1, 30, 16), torch.randint(3, (1, 30)))
    assert head(torch.randn(1, 5, 16)).shape[-2:] == (5, 3)
    assert load("head", name).auxiliary is None


@pytest.mark.parametrize("name", IMAGES)
def test_networks_on_images(name):
    node = OmegaConf.merge(load("head", name).decode, {"depth": 18, "width": 8, "decoder": {"channels": 8}})
    head = build(node, in_channels=(3,), strides=(1,), num_classes=3)
    assert head([torch.randn(2, 3, 64, 64)]).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("name", "channels"), [("descriptors", 72), ("conv_descriptors", 72)])
def test_heads_of_descriptors(name, channels):
    head = build(load("head", name).decode, in_channels=(16, 24, 32))
    levels = [torch.randn(2, info.channels, 32 // info.stride, 32 // info.stride) for info in LAYERS.values()]
    assert head(levels).shape == (2, channels, 8, 8)
    assert load("head", name).auxiliary is None


@pytest.mark.parametrize("name", KEYPOINTS)
def test_losses_of_descriptors(name):
    loss, places = build(load("loss", name)), torch.zeros(1, 1, 2)
    found = loss(torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), places, places, torch.tensor([2.0]))
    assert found.item() > 0


@pytest.mark.parametrize("part", ["decode", "auxiliary"])
@pytest.mark.parametrize("name", names("head", without=(*PIXELS["head"], *IMAGES, *DESCRIPTORS)))
def test_heads(name, part):
    node = load("head", name)[part]
    if node is None:
        assert part == "auxiliary"
        return
    head = build(node, in_channels=(16, 24, 32), strides=(4, 8, 16), num_classes=3)
    levels = [torch.randn(2, info.channels, 32 // info.stride, 32 // info.stride) for info in LAYERS.values()]
    assert head(levels).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("name", names("loss", without=KEYPOINTS))
def test_losses(name):
    loss = build(load("loss", name), ignore_index=2)
    assert loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64)).item() > 0
    assert loss(torch.zeros(1, 2, 4, 4), torch.full((1, 4, 4), 2)).item() == 0


@pytest.mark.parametrize("name", names("optimizer"))
def test_optimizers(name):
    optimizer = build(load("optimizer", name), params=[torch.nn.Parameter(torch.zeros(1))])
    assert optimizer.param_groups[0]["lr"] > 0


@pytest.mark.parametrize("name", names("scheduler"))
def test_schedulers(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(load("scheduler", name), optimizer=optimizer, total_steps=10)
    assert scheduler.get_last_lr() == pytest.approx([1.0 / 25 if name == "one_cycle" else 1.0])
    assert "per optimiser step" in (CONF / "scheduler" / f"{name}.yaml").read_text()
