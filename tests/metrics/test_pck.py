"""PCK against a loop over every keypoint, and against the released numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy as np
import pytest
import torch

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.metrics import pck
from gate_lightning.metrics.pck import PCK
from gate_lightning.metrics.pck_variants import AVERAGES, PCKVariant, pck_variants
from gate_lightning.structures import Pair
from tests.support.paths import GOLDEN

GROUPS = {"cat": [["2", "3"], ["9", "10", "11"]], "dog": [["2", "3"]]}


def made_up(count: int = 14) -> list[tuple[Pair, torch.Tensor]]:
    """Pairs with matches; coordinates are whole numbers, so that distances meet thresholds exactly now and then."""
    rng, found = np.random.default_rng(4), []
    for number in range(count):
        length = int(rng.integers(2, 6))
        points = [torch.from_numpy(rng.integers(0, 60, (length, 2))).float() for _ in range(2)]
        points[1][0] += 7  # so that keypoints have an extent
        further = np.random.default_rng(number).permutation([2, 3, 9, 10, 11])[:2]
        names = tuple(str(one) for one in rng.permutation([2, 3, 9, 10, 11])[:length])
        pair = Pair(
            f"{number}a",
            f"{number}b",
            *points,
            (70, 90),
            (80, 60 + number),
            (1.0, 2.0, 31.0, 22.0),
            (0.0, 0.0, 20.0, 30.0 + number),
            category=("cat", "dog")[number % 2],
            keypoint_ids=names,
            group=f"part {number % 3}",
            target_visible=frozenset((*names, *map(str, further))),
        )
        matches = pair.target_points.double() + torch.from_numpy(rng.integers(-6, 7, (length, 2)))
        if number == 5:
            matches[1] = torch.nan  # no match
        found.append((pair, matches))
    return found


def slow(rows: Sequence[tuple[Pair, torch.Tensor]], variant: PCKVariant) -> float:
    """PCK, one keypoint after another."""
    kind, *by = variant.average.split("_by_")
    parts: dict[str, list[list[bool]]] = {}
    for pair, matches in rows:
        source = variant.reference == "source"
        size, box = (pair.source_size, pair.source_box) if source else (pair.target_size, pair.target_box)
        points = pair.source_points if source else pair.target_points
        x, y = points[:, 0].tolist(), points[:, 1].tolist()
        assert box is not None
        length = {
            "img": max(size),
            "bbox": max(box[2] - box[0], box[3] - box[1]),
            "bbox-kp": max(max(x) - min(x), max(y) - min(y)),
            "square": 1,
            "256px": 256,
        }[variant.threshold]
        right = []
        for index, name in enumerate(pair.keypoint_ids):
            seen = pair.target_visible if variant.subset == "geometry-aware" else pair.keypoint_ids
            others = {other for other in seen or () if other != name}
            alike = any(name in group and others & set(group) for group in GROUPS[pair.category])
            if variant.subset != "all" and not alike:
                continue
            across, down = (matches[index] - pair.target_points[index]).tolist()
            if variant.threshold == "square":
                across, down = across / pair.target_size[1], down / pair.target_size[0]
            share = math.hypot(across, down) / length
            right.append(share <= variant.alpha if variant.comparison == "le" else share < variant.alpha)
        label = {"category": pair.category, "group": pair.group}[by[0]] if by else ""
        parts.setdefault(label, []).append(right)
    means = []
    for rights in parts.values():
        rights = [right for right in rights if right]
        if kind == "image":
            means.append(mean(mean(map(float, right)) for right in rights))
        else:
            means.append(mean(float(one) for right in rights for one in right))
    return mean(means)


@pytest.mark.parametrize("threshold", ["bbox", "img", "bbox-kp", "square", "256px"])
@pytest.mark.parametrize("subset", ["all", "geometry-aware", "geometry-aware-common"])
@pytest.mark.parametrize("reference", ["target", "source"])
def test_every_variant_is_that_of_a_loop(threshold: str, subset: str, reference: str) -> None:
    variants = pck_variants([0.01, 0.05, 0.1], [threshold], AVERAGES, ["le", "lt"], reference, [subset])
    metric, rows = PCK(variants, GROUPS), made_up()
    for number, (pair, matches) in enumerate(rows):
        metric.update(number, pair, matches)
    metric.check([pair for pair, _ in rows])
    measured = metric.measured()
    found = metric.compute(measured)
    assert found == pytest.approx({variant.key: slow(rows, variant) for variant in variants}, abs=1e-12)
    plain = [variant for variant in variants if "_by_" not in variant.average]
    for category, scores in metric.per_category(measured).items():
        own = [row for row in rows if row[0].category == category]
        assert scores == pytest.approx({variant.key: slow(own, variant) for variant in plain}, abs=1e-12)


def test_an_error_of_exactly_the_threshold_is_where_the_comparisons_part() -> None:
    points = torch.tensor([[10.0, 10.0], [40.0, 10.0]])
    pair = Pair("a", "b", points, points, (100, 100), (100, 100), target_box=(0, 0, 50, 20))
    for shift, wanted in {(4.99, 0.0): (1, 1), (5.0, 0.0): (1, 0), (3.0, 4.0): (1, 0), (5.01, 0.0): (0, 0)}.items():
        metric = PCK(pck_variants([0.1], ["bbox"], ["point"], ["le", "lt"]))
        metric.update(0, pair, points.double() + torch.tensor(shift, dtype=torch.float64))
        assert tuple(metric.compute(metric.measured()).values()) == wanted


def test_released_numbers_at_four_thresholds() -> None:
    kept = np.load(GOLDEN / "r_pck_thresholds.npz")
    target, found = (torch.from_numpy(kept[name]).flip(1) for name in ("target", "pred"))  # (y, x) there
    pair = Pair("a", "b", target.float(), target.float(), (240, 320), (240, 320), target_box=(10, 20, 210, 140))
    alphas = (0.01, 0.05, 0.1, 0.15)
    metric = PCK(pck_variants(alphas, ["img", "bbox"], ["point"], ["le"]))
    metric.update(0, pair, found)
    scores = metric.compute(metric.measured())
    wanted = {
        f"PCK_{alpha:.2f}_{name}_per-point_le": kept[f"{name}_{alpha:g}"]
        for name in ("img", "bbox")
        for alpha in alphas
    }
    assert scores == pytest.approx({key: float(value) for key, value in wanted.items()}, abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "name", "key"),
    [
        (PCKVariant(), "PCK@0.10 bbox per-image ≤", "PCK_0.10_bbox_per-image_le"),
        (PCKVariant(0.005, "img", "point", "lt"), "PCK@0.005 img per-point <", "PCK_0.005_img_per-point_lt"),
        (
            PCKVariant(0.15, "bbox-kp", "point_by_group", reference="source"),
            "PCK@0.15 source-bbox-kp per-point by-group ≤",
            "PCK_0.15_source-bbox-kp_per-point_by-group_le",
        ),
        (
            PCKVariant(0.1, "256px", subset="geometry-aware"),
            "PCK@0.10 256px per-image ≤ geometry-aware",
            "PCK_0.10_256px_per-image_le_geometry-aware",
        ),
    ],
)
def test_names_and_keys_say_the_whole_definition(variant: PCKVariant, name: str, key: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert (variant.name, variant.key) == (name, key)
    # unquoted on the command line
    parsed = OverridesParser.create().parse_override(f"monitor=test/{key}")
    assert parsed.value() == f"test/{key}"


def test_names_tell_all_variants_apart() -> None:
    variants = pck_variants(
        [0.1, 0.05],
        ["bbox", "img", "bbox-kp", "square", "256px", "25px"],
        AVERAGES,
        ["le", "lt"],
        subsets=["all", "geometry-aware", "geometry-aware-common"],
    )
    assert (
        len({variant.key for variant in variants})
        == len({variant.name for variant in variants})
        == len(variants)
        == 432
    )


def test_pairs_of_several_processes_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = pck_variants([0.05, 0.1], ["bbox"], AVERAGES, ["le"])
    rows = made_up()
    one, first, second = (PCK(variants) for _ in range(3))
    for number, row in enumerate(rows):
        one.update(number, *row)
        for share in [(first, second)[number % 2], *([second] if number == 4 else [])]:  # one is measured twice
            share.update(number, *row)
    shares = [list(share._measured.values()) for share in (first, second)]
    monkeypatch.setattr(pck, "gathered", lambda own: shares)
    together = first.measured()
    monkeypatch.undo()
    assert [pair.number for pair in together] == list(range(len(rows)))
    assert first.compute(together) == one.compute(one.measured())


def test_what_cannot_be_measured_is_told_before_anything_is_matched() -> None:
    pairs = [pair for pair, _ in made_up()]
    bare = replace(pairs[3], target_box=None)
    with pytest.raises(
        ConfigError, match="1 of 2 pairs have no box of the target, the first is 3a → 3b; choose others: img"
    ):
        PCK([PCKVariant()]).check([pairs[0], bare])
    PCK([PCKVariant(threshold="img")]).check([bare])
    with pytest.raises(DataError, match="1 of 1 pairs have a box of no area in the target, the first is 0a → 0b"):
        PCK([PCKVariant()]).check([replace(pairs[0], target_box=(3, 4, 3, 4))])
    single = Pair("a", "b", torch.ones(1, 2), torch.ones(1, 2), (8, 8), (8, 8))
    with pytest.raises(DataError, match="keypoints of no extent"):
        PCK([PCKVariant(threshold="bbox-kp")]).check([single])
    with pytest.raises(ConfigError, match="averages has point_by_group, and these pairs are in no groups"):
        PCK([PCKVariant(threshold="img", average="point_by_group")]).check([single])
    with pytest.raises(ConfigError, match="need the groups of keypoints"):
        PCK([PCKVariant(subset="geometry-aware")])
    with pytest.raises(ConfigError, match=r"no pair has two keypoints of one group .* in cat"):
        PCK([PCKVariant(subset="geometry-aware")], {"cat": [["left"]]}).check(pairs)
    unknown = replace(pairs[0], target_visible=None)
    with pytest.raises(ConfigError, match=r"of 1 of 2 pairs it is not known which keypoints .* 0a → 0b"):
        PCK([PCKVariant(subset="geometry-aware")], GROUPS).check([pairs[1], unknown])
    PCK([PCKVariant(subset="geometry-aware-common")], GROUPS).check([unknown])
    empty = Pair("a", "b", torch.ones(0, 2), torch.ones(0, 2), (8, 8), (8, 8))
    with pytest.raises(DataError, match="a → b has no keypoints in common"):
        PCK([PCKVariant()]).update(0, empty, torch.ones(0, 2))
    with pytest.raises(DataError, match=r"1 of 2 pairs have no keypoints, .* the first is a → b"):
        PCK([PCKVariant(threshold="img")]).check([single, empty])
    with pytest.raises(ConfigError, match=r"thresholds='box': did you mean bbox\?"):
        PCKVariant(threshold="box")
    with pytest.raises(ConfigError, match="alphas=0: expected a number"):
        PCKVariant(0)
    with pytest.raises(ConfigError, match="no variant of PCK"):
        pck_variants([], ["bbox"], ["image"], ["le"])
