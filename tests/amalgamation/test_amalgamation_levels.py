"""A level is a stride; every amalgamation keeps to it."""

from __future__ import annotations

import pytest
import torch

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.amalgamation.levels import plan_levels
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.errors import ConfigError
from gate_lightning.structures import FeatureInfo

LAYERS = {"coarse": FeatureInfo(6, 16), "fine-b": FeatureInfo(4, 8), "fine-a": FeatureInfo(2, 8)}
BRANCHES = {"plain": LAYERS, "steered": LAYERS, "edges": {"edges-8": FeatureInfo(3, 8), "edges-4": FeatureInfo(5, 4)}}
MEMBERS = [ConcatAmalgamation, WeightedAmalgamation]


def random_features(branches=BRANCHES, batch=2, height=64, width=48):
    generator = torch.Generator().manual_seed(1)
    return {
        branch: {
            layer: torch.randn(batch, info.channels, height // info.stride, width // info.stride, generator=generator)
            for layer, info in layers.items()
        }
        for branch, layers in branches.items()
    }


def test_levels_are_strides_finest_first_and_layers_keep_their_order():
    levels = plan_levels(BRANCHES, ["edges"])
    assert [level.stride for level in levels] == [4, 8, 16]
    assert levels[1].fused == {"plain": ("fine-b", "fine-a"), "steered": ("fine-b", "fine-a")}
    assert levels[1].appended == {"edges": ("edges-8",)}
    assert [level.appended_channels for level in levels] == [5, 3, 0]
    assert levels[0].fused == {}


@pytest.mark.parametrize("cls", MEMBERS)
def test_outputs_are_what_out_channels_and_strides_say(cls):
    amalgamation = cls(BRANCHES, {"edges"})
    pyramid = amalgamation(random_features())
    assert amalgamation.strides == (4, 8, 16)
    assert tuple(level.shape[1] for level in pyramid.levels) == amalgamation.out_channels
    assert [tuple(level.shape[2:]) for level in pyramid.levels] == [(16, 12), (8, 6), (4, 3)]


@pytest.mark.parametrize("cls", MEMBERS)
def test_concatenated_branches_come_unchanged_behind_the_fused_channels(cls):
    features = random_features()
    pyramid = cls(BRANCHES, {"edges"})(features)
    assert torch.equal(pyramid.levels[0], features["edges"]["edges-4"])
    assert torch.equal(pyramid.levels[1][:, -3:], features["edges"]["edges-8"])


@pytest.mark.parametrize("cls", MEMBERS)
def test_a_single_branch_passes_unchanged(cls):
    features = random_features({"plain": LAYERS})
    pyramid = cls({"plain": LAYERS})(features)
    assert torch.equal(pyramid.levels[0], torch.cat([features["plain"]["fine-b"], features["plain"]["fine-a"]], dim=1))
    assert torch.equal(pyramid.levels[1], features["plain"]["coarse"])


@pytest.mark.parametrize("cls", MEMBERS)
def test_a_image_does_not_feel_its_batch(cls):
    torch.manual_seed(0)
    amalgamation = cls(BRANCHES, {"edges"}).double().eval()
    features = {b: {k: v.double() for k, v in maps.items()} for b, maps in random_features(batch=3).items()}
    alone = {branch: {layer: x[1:2] for layer, x in maps.items()} for branch, maps in features.items()}
    for together, single in zip(amalgamation(features).levels, amalgamation(alone).levels, strict=True):
        torch.testing.assert_close(together[1:2], single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cls", MEMBERS)
def test_amalgamations_of_concatenated_branches_alone_have_nothing_to_fuse(cls):
    features = random_features()
    pyramid = cls({"edges": BRANCHES["edges"]}, {"edges"})(features)
    assert pyramid.weights == ()
    assert torch.equal(pyramid.levels[1], features["edges"]["edges-8"])


@pytest.mark.parametrize(
    ("info", "concatenated", "words"),
    [
        ({}, (), "no branch"),
        ({"plain": {}}, (), "without layers: plain"),
        ({"plain": LAYERS}, ("edges",), "concatenated names edges; the branches are plain"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(info, concatenated, words):
    with pytest.raises(ConfigError, match=words):
        plan_levels(info, concatenated)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f["steered"].pop("coarse"), "branch 'steered' lack coarse"),
        (lambda f: f.pop("plain"), "branch 'plain' lack"),
        (lambda f: f["plain"].update(coarse=torch.zeros(2, 7, 4, 3)), "gave 7 channels at stride 16"),
        (
            lambda f: f["steered"].update(coarse=torch.zeros(2, 6, 4, 4)),
            r"stride 16 have different sizes.*\(4, 3\), \(4, 4\)",
        ),
    ],
)
def test_features_that_do_not_fit_are_refused(change, words):
    features = random_features()
    change(features)
    with pytest.raises(ConfigError, match=words):
        ConcatAmalgamation(BRANCHES)(features)


@pytest.mark.parametrize("cls", MEMBERS)
def test_what_is_no_map_is_refused_when_it_is_built(cls):
    weights = {"a": {"up-level1-cross-map": FeatureInfo(8, 0), "fine": FeatureInfo(4, 8)}}
    with pytest.raises(ConfigError, match=r"branch 'a' reads up-level1-cross-map, attention weights .*attn-up-cross"):
        cls(weights)
    with pytest.raises(ConfigError, match="attn-up-self, whose number of channels depends on the image's size"):
        cls({"a": {"attn-up-self": FeatureInfo(0, 8)}})


@pytest.mark.parametrize(("stride", "size"), [(None, (16, 12)), (2, (32, 24)), (16, (4, 3)), (4, (16, 12))])
def test_layers_are_joined_at_the_stride_asked_for(stride, size):
    made = WeightedAmalgamation(BRANCHES, ["edges"], joined=True, stride=stride)
    features = random_features()
    (level,) = made(features).levels
    assert made.strides == (stride or 4,) and level.shape == (2, *made.out_channels, *size)
    resized = torch.nn.functional.interpolate(features["edges"]["edges-8"], size=size, mode="bilinear")
    torch.testing.assert_close(level[:, -8:-5], resized)


def test_layers_of_one_stride_are_resized_too():
    (level,) = plan_levels({"plain": {"fine": FeatureInfo(3, 8)}}, joined=True, stride=4)
    map_ = torch.randn(1, 3, 2, 5)
    assert level.branch_map({"plain": {"fine": map_}}, "plain").shape == (1, 3, 4, 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"stride": 8}, "unless amalgamation.joined"), ({"joined": True, "stride": 0}, "amalgamation.stride=0")],
)
def test_a_stride_that_cannot_be_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        plan_levels(BRANCHES, **options)
