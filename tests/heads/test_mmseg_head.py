"""Heads of mmsegmentation behind our contract."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.mmseg import WORKING_TYPES, MMSegHead, quiet

CHANNELS, STRIDES, CLASSES = [24, 40, 56], [4, 8, 16], 5
#: options without which mmsegmentation does not build a type
NEEDED = {"EMAHead": {"ema_channels": 16, "num_bases": 8, "num_stages": 2}}


def build(type_="UPerHead", channels=32, **options) -> MMSegHead:
    torch.manual_seed(0)
    return MMSegHead(CHANNELS, STRIDES, CLASSES, type=type_, channels=channels, **NEEDED.get(type_, {}), **options)


def pyramid(batch=2, height=64, width=48) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, c, height // s, width // s, generator=generator)
        for c, s in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("levels", ["all", "coarsest"])
@pytest.mark.parametrize("type_", WORKING_TYPES)
def test_logits_come_at_the_finest_level(type_, levels):
    assert build(type_, levels=levels).eval()(pyramid()).shape == (2, CLASSES, 16, 12)


@pytest.mark.parametrize("type_", ["UPerHead", "FCNHead", "SegformerHead", "FPNHead"])
def test_with_group_norm_a_image_does_not_feel_its_batch(type_):
    head, levels = build(type_, dropout_ratio=0.0).double().train(), [level.double() for level in pyramid()]
    alone = head([level[1:] for level in levels])
    torch.testing.assert_close(head(levels)[1:], alone, rtol=0, atol=1e-12)


def test_upernet_takes_its_width_from_the_finest_level_not_the_coarsest():
    """GATE's released configuration gave the levels coarsest first, so its logits were those of 16×16 maps."""
    head, levels = build().eval(), pyramid(batch=1)
    changed = [levels[0].clone(), *levels[1:]]
    changed[0][..., 7, 5] += 10.0
    moved = (head(changed) - head(levels)).abs().amax(dim=(0, 1))
    assert moved[7, 5] > 10 * moved[0, 11]


def test_in_the_released_order_logits_are_those_of_the_coarsest_level():
    released, levels = build(order="coarse_first").eval(), pyramid(batch=1)
    assert released(levels).shape == (1, CLASSES, 4, 3)
    # mmsegmentation's own head, given the reversed list
    torch.manual_seed(0)
    own = MMSegHead(CHANNELS[::-1], [4, 8, 16], CLASSES, type="UPerHead", channels=32).decode_head.eval()
    own.load_state_dict(released.decode_head.state_dict())
    torch.testing.assert_close(released(levels), own(levels[::-1]))


@pytest.mark.parametrize(("levels", "read"), [("middle", 1), ("finest", 0), ("coarsest", 2)])
def test_in_the_released_order_a_place_is_the_same_level(levels, read):
    head = build("FCNHead", levels=levels, order="coarse_first").eval()
    inputs = [level.requires_grad_() for level in pyramid()]
    head(inputs).sum().backward()
    assert [level.grad is not None for level in inputs].index(True) == read


@pytest.mark.parametrize(
    ("levels", "read"),
    [("all", {0, 1, 2}), ("finest", {0}), ("middle", {1}), ("coarsest", {2}), ([0, 2], {0, 2}), ([-1], {2})],
)
def test_a_head_reads_the_levels_it_is_told(levels, read):
    head = build("FCNHead", levels=levels).eval()
    inputs = [level.requires_grad_() for level in pyramid()]
    head(inputs).sum().backward()
    assert {index for index, level in enumerate(inputs) if level.grad is not None} == read


def test_weights_are_initialised_as_mmsegmentation_means_it():
    assert build(channels=256).decode_head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("norm", "kind"), [("GN", nn.GroupNorm), ("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm)])
def test_norm_is_the_one_asked_for(norm, kind):
    norms = {type(module) for module in build(norm=norm).modules() if "Norm" in type(module).__name__}
    assert norms
    assert all(issubclass(found, kind) for found in norms)


@pytest.mark.parametrize("channels", [5, 30, 48, 96])
def test_group_norm_finds_groups_for_any_width(channels):
    assert build(channels=channels).eval()(pyramid()).shape[1] == CLASSES


def test_pools_may_be_larger_than_a_small_map():
    assert build(pool_scales=(1, 2, 3, 6)).eval()(pyramid(height=16, width=16)).shape == (2, CLASSES, 4, 4)


def test_two_classes_build_without_a_warning(recwarn):
    MMSegHead(CHANNELS, STRIDES, 2, channels=16)
    assert [str(warning.message) for warning in recwarn] == []


def test_the_state_dict_loads_into_a_second_head():
    first, second = build(), build(channels=32)
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(pyramid()), second.eval()(pyramid()))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"type_": "UPerhead"}, r"type='UPerhead': did you mean UPerHead\?.*FCNHead"),
        ({"type_": "Mask2FormerHead"}, r"type='Mask2FormerHead'.*UPerHead.*docs/segmentation\.md says why"),
        ({"norm": "LN"}, "norm='LN': .*expected one of GN, BN, SyncBN"),
        ({"order": "down"}, "order='down': .*fine_first, coarse_first"),
        ({"levels": "third"}, "levels='third'; expected all, finest"),
        ({"levels": [3]}, "levels 0 … 2"),
        ({"levels": [0, -3]}, "at most once"),
        ({"levels": []}, "levels 0 … 2"),
        ({"pool_scale": [1]}, r"no option 'pool_scale' to set; did you mean pool_scales\?"),
        ({"in_index": [0]}, "no option 'in_index' to set"),
        ({"type_": "FPNHead", "feature_strides": [4]}, "no option 'feature_strides' to set"),
        ({"type_": "SegformerHead", "interpolate_mode": "x", "dropout_ratio": "x"}, "SegformerHead cannot be built"),
        ({"type_": "FCNHead", "num_convs": 0}, "FCNHead cannot be built: it refuses these settings"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(arguments, words):
    with pytest.raises(ConfigError, match=words):
        build(**arguments)


def test_every_decode_head_of_mmsegmentation_is_built_or_listed_in_the_docs_with_a_reason():
    from mmseg.models import decode_heads

    parts = {"KernelUpdateHead", "KernelUpdator"}  # of IterativeDecodeHead
    rows = [line for line in Path("docs/segmentation.md").read_text().splitlines() if line.startswith("| not built:")]
    refused = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert not refused & set(WORKING_TYPES)
    assert set(WORKING_TYPES) | refused == set(decode_heads.__all__) - parts


def read_by(head: MMSegHead) -> set[int]:
    inputs = [level.requires_grad_() for level in pyramid()]
    head.eval()(inputs).sum().backward()
    return {index for index, level in enumerate(inputs) if level.grad is not None}


@pytest.mark.parametrize(
    ("type_", "levels", "read"),
    [
        ("DepthwiseSeparableASPPHead", "all", {0, 2}),
        ("DepthwiseSeparableASPPHead", [1, 2], {1, 2}),
        ("UPerHead", [0, 2], {0, 2}),
    ],
)
def test_types_that_read_certain_levels_find_them(type_, levels, read):
    assert read_by(build(type_, levels=levels)) == read


@pytest.mark.filterwarnings("ignore:When align_corners=True")
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_map_of_several_levels_is_the_one_mmsegmentation_concatenates(align_corners):
    from mmseg.models.decode_heads import FCNHead

    ours = build("FCNHead", norm="BN", align_corners=align_corners).eval()
    inputs = {"in_channels": CHANNELS, "in_index": [0, 1, 2], "input_transform": "resize_concat"}
    with quiet():
        theirs = FCNHead(
            **inputs, channels=32, num_classes=CLASSES, norm_cfg={"type": "BN"}, align_corners=align_corners
        ).eval()
    theirs.load_state_dict(ours.decode_head.state_dict())
    assert torch.equal(ours(pyramid()), theirs(pyramid()))


def test_without_mmsegmentation_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmseg", None)
    monkeypatch.delitem(sys.modules, "mmseg.models", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'gate-lightning\[mmseg\]'"):
        build()


@pytest.mark.slow
def test_building_a_head_prints_nothing():
    code = "from gate_lightning.heads.mmseg import MMSegHead; MMSegHead([8], [4], 3, channels=8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert (done.stdout, done.stderr) == ("", "")
