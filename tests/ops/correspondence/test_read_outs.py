"""Read-outs against slow, obvious ones that make the resized maps and look at every place by itself."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.read_outs import READ_OUTS, ReadOut
from tests.support.paths import GOLDEN

POINTS = torch.tensor([[0, 0], [7, 3], [18, 12], [4, 11], [9, 9]], dtype=torch.float32)  # (18, 12) is the last pixel


def grids(scale: tuple[float, float] | None = None) -> tuple[FeatureGrid, FeatureGrid]:
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(6, 4, 5, generator=generator)
    target = torch.randn(6, 5, 4, generator=generator)
    return FeatureGrid(source, (13, 19), scale), FeatureGrid(target, (17, 11), scale)


def resized(grid: FeatureGrid) -> Tensor:
    """The whole map at the file's pixels, (C, H, W)."""
    return interpolate(grid.features[None], grid.size, mode="bilinear", align_corners=False)[0]


def likeness(metric: str, one: Tensor, other: Tensor) -> float:
    if metric == "cosine":
        return float(one @ other / (one.norm() * other.norm()))
    return -float((one - other).norm())


def map_of(rule: ReadOut, descriptor: Tensor, target: FeatureGrid) -> list[list[float]]:
    """Similarity of every place, row by row."""
    places = resized(target) if rule.resolution == "full" else target.features
    _, height, width = places.shape
    return [[likeness(rule.metric, descriptor, places[:, y, x]) for x in range(width)] for y in range(height)]


def in_pixels(rule: ReadOut, x: float, y: float, grid: FeatureGrid) -> tuple[float, float]:
    if rule.resolution == "full":
        return x, y
    _, height, width = grid.features.shape
    return (x + 0.5) * grid.size[1] / width - 0.5, (y + 0.5) * grid.size[0] / height - 0.5


def peak(found: list[list[float]]) -> tuple[int, int]:
    """The first place of the largest value; pixels at the border are equal but for rounding."""
    largest = max(itertools.chain(*found))
    places = itertools.product(range(len(found)), range(len(found[0])))
    return next((x, y) for y, x in places if found[y][x] >= largest - 1e-5)


def expected(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, point: Tensor) -> tuple[float, float]:
    """The match of a point at a whole pixel, by loops."""
    x, y = (int(value) for value in point)
    if rule.name == "four_corner":
        return four_corners(rule, source, target, x, y)
    descriptor = resized(source)[:, y, x]
    if rule.query == "patch":
        _, height, width = source.features.shape
        descriptor = source.features[
            :, int((y + 0.5) * height / source.size[0]), int((x + 0.5) * width / source.size[1])
        ]
    found = map_of(rule, descriptor, target)
    best = peak(found)
    if rule.name == "nearest":
        return in_pixels(rule, *best, target)
    total, mean = 0.0, [0.0, 0.0]
    for row, column in itertools.product(range(len(found)), range(len(found[0]))):
        away = (column - best[0], row - best[1])
        value = found[row][column]
        if rule.name == "kernel_soft_argmax":
            value *= math.exp(-(away[0] ** 2 + away[1] ** 2) / (2 * rule.sigma**2))
        if rule.name == "window_soft_argmax" and max(abs(away[0]), abs(away[1])) > rule.window:
            continue
        weight = math.exp(value / rule.temperature)
        total += weight
        mean[0] += weight * column
        mean[1] += weight * row
    return in_pixels(rule, mean[0] / total, mean[1] / total, target)


def four_corners(rule: ReadOut, source: FeatureGrid, target: FeatureGrid, x: int, y: int) -> tuple[float, float]:
    _, height, width = source.features.shape
    across = min(max((x + 0.5) * width / source.size[1] - 0.5, 0.0), width - 1.0)
    down = min(max((y + 0.5) * height / source.size[0] - 0.5, 0.0), height - 1.0)
    mean = [0.0, 0.0]
    for column, row in itertools.product(
        (math.floor(across), math.floor(across) + 1), (math.floor(down), math.floor(down) + 1)
    ):
        weight = (1 - abs(across - column)) * (1 - abs(down - row))
        if weight > 0:
            match = in_pixels(rule, *peak(map_of(rule, source.features[:, row, column], target)), target)
            mean = [mean[0] + weight * match[0], mean[1] + weight * match[1]]
    return mean[0], mean[1]


RULES = [
    ReadOut(name, metric, resolution, query, temperature=0.3, window=1, sigma=2.0)
    for name in READ_OUTS
    for metric in ("cosine", "l2")
    for resolution in ("full", "patch")
    for query in ("bilinear", "patch")
    if name not in ("mutual", "position") and (name, metric) != ("kernel_soft_argmax", "l2")
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.name}-{rule.metric}-{rule.resolution}-{rule.query}")
def test_read_outs_are_those_of_loops_over_the_resized_maps(rule: ReadOut) -> None:
    source, target = grids()
    found = rule(source, target, POINTS)
    wanted = torch.tensor([expected(rule, source, target, point) for point in POINTS], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_mutual_matches_are_those_that_come_back() -> None:
    source, target = grids()
    for resolution in ("full", "patch"):
        forth, mutual = ReadOut(resolution=resolution), ReadOut("mutual", resolution=resolution)
        points = torch.cartesian_prod(torch.arange(19.0), torch.arange(13.0))
        found, matched = forth(source, target, points), mutual(source, target, points)
        back = forth(target, source, found)
        returns = torch.tensor(
            [
                [int((x + 0.5) * 5 / 19), int((y + 0.5) * 4 / 13)] == [int((u + 0.5) * 5 / 19), int((v + 0.5) * 4 / 13)]
                for (x, y), (u, v) in zip(points.tolist(), back.tolist(), strict=True)
            ]
        )
        assert 0 < returns.sum() < len(returns)
        assert torch.equal(~matched.isnan().any(dim=1), returns)
        assert torch.equal(matched[returns], found[returns])


def test_the_control_by_position_looks_at_the_sizes_alone() -> None:
    source, target = grids()  # 13 × 19 and 17 × 11 pixels
    found = ReadOut("position")(source, target, torch.tensor([[9.0, 6.0], [0.0, 0.0]]))
    wanted = [[5.0, 8.0], [0.5 * 11 / 19 - 0.5, 0.5 * 17 / 13 - 0.5]]  # the middle is the middle
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_norms_and_similarities_are_those_of_the_resized_map() -> None:
    source, target = grids()
    torch.testing.assert_close(target.pixel_norms, resized(target).norm(dim=0), rtol=1e-5, atol=1e-6)
    products = torch.einsum("nc,chw->nhw", source.features.flatten(1).T, target.features)
    dense = torch.einsum("nc,chw->nhw", source.features.flatten(1).T, resized(target))
    torch.testing.assert_close(target.resize(products), dense, rtol=1e-5, atol=1e-5)
    x, y = POINTS.long().unbind(dim=1)
    torch.testing.assert_close(source.sample(POINTS), resized(source)[:, y, x].T, rtol=1e-5, atol=1e-6)


def test_norms_stay_exact_where_neighbouring_vectors_cancel() -> None:
    opposite = torch.tensor([1000.0, -1000.0]).expand(3, 1, 2)
    grid = FeatureGrid(opposite, (1, 4))
    torch.testing.assert_close(grid.pixel_norms, resized(grid).norm(dim=0), rtol=1e-5, atol=1e-3)


def test_maps_of_padded_images_are_read_on_the_image_alone() -> None:
    whole = torch.randn(6, 4, 6, generator=torch.Generator().manual_seed(0))
    # 40 × 50 pixels of a file, shown as 20 × 25, padded to 32 × 48, in positions of 8 pixels
    grid = FeatureGrid(whole, (40, 50), (1 / 16, 1 / 16))
    full = interpolate(whole[None], (64, 96), mode="bilinear", align_corners=False)[0, :, :40, :50]
    torch.testing.assert_close(grid.pixel_norms, full.norm(dim=0), rtol=1e-5, atol=1e-6)
    assert grid.inside == (2, 3)  # the third row's centre is on the image's edge
    rule = ReadOut(resolution="patch")
    assert rule.similarities(whole[:, 3, 5][None], grid).shape == (1, 2, 3)
    points = torch.tensor([[3.0, 39.0]])
    torch.testing.assert_close(grid.to_pixels(grid.to_positions(points)), points.double())


def test_whole_pixels_of_a_query_are_rounded_as_asked_for_and_stay_in_the_image() -> None:
    source, _ = grids()
    points = torch.tensor([[3.6, 4.2], [18.4, 12.5], [-0.3, 2.5]])
    for query, wanted in {"round": [[4, 4], [18, 12], [0, 3]], "floor": [[3, 4], [18, 12], [0, 2]]}.items():
        found = ReadOut(query=query).descriptors(source, points)
        assert torch.equal(found, source.sample(torch.tensor(wanted).float()))
    between = ReadOut().descriptors(source, torch.tensor([[3.5, 4.0]]))
    ends = source.sample(torch.tensor([[3.0, 4.0], [4.0, 4.0]]))
    torch.testing.assert_close(between[0], ends.mean(dim=0))  # both lie between the same positions


@pytest.mark.parametrize("side", [8, 23])
def test_matches_are_found_on_squares_where_asked_for(side: int) -> None:
    source, target = grids()
    squares = [FeatureGrid(grid.features, (side, side)) for grid in (source, target)]
    found = ReadOut(square=side, query="round")(source, target, POINTS)
    for (x, y), (right, down) in zip(POINTS.tolist(), found.tolist(), strict=True):
        column, row = (min(side - 1, round(value * side / length)) for value, length in ((x, 19), (y, 13)))
        likenesses = map_of(ReadOut(), resized(squares[0])[:, row, column], squares[1])
        best = peak(likenesses)
        assert (right, down) == pytest.approx((best[0] * 11 / side, best[1] * 17 / side))


def test_features_of_half_precision_are_compared_in_single_precision() -> None:
    source, target = grids()
    half = [FeatureGrid(grid.features.half(), grid.size) for grid in (source, target)]
    assert half[0].features.dtype == torch.float32
    assert ReadOut()(*half, POINTS).dtype == torch.float64


def test_bad_settings_say_what_is_expected() -> None:
    with pytest.raises(ConfigError, match=r"read_out.square=0: .* or null .None. for the files' pixels"):
        ReadOut(square=0)
    with pytest.raises(
        ConfigError, match=r"read_out.name='nearst': did you mean nearest\? expected one of nearest, mutual"
    ):
        ReadOut("nearst")
    with pytest.raises(ConfigError, match="metric='l1': expected one of cosine, l2"):
        ReadOut(metric="l1")
    with pytest.raises(ConfigError, match="kernel_soft_argmax weighs similarities"):
        ReadOut("kernel_soft_argmax", "l2")
    with pytest.raises(ConfigError, match=r"read_out.temperature=0: expected a number"):
        ReadOut(temperature=0)
    with pytest.raises(ConfigError, match=r"the feature map is \(1, 2, 3, 4\)"):
        FeatureGrid(torch.zeros(1, 2, 3, 4), (4, 4))


def test_released_evaluation_of_dift_is_reproduced_match_by_match() -> None:
    annotations = json.loads((GOLDEN / "t_dift_eval_spair.json").read_text())["annotations"]
    features = np.load(GOLDEN / "t_dift_eval_spair.npz")
    right = []
    for pair in annotations:
        maps = [
            FeatureGrid(
                torch.from_numpy(features[f"{pair['category']}_{pair[name].removesuffix('.jpg')}"][0]),
                (pair[size][1], pair[size][0]),
            )
            for name, size in (("src_imname", "src_imsize"), ("trg_imname", "trg_imsize"))
        ]
        found = ReadOut()(*maps, torch.tensor(pair["src_kps"]))
        box = pair["trg_bndbox"]
        distances = (found - torch.tensor(pair["trg_kps"])).norm(dim=1) / max(box[2] - box[0], box[3] - box[1])
        right.append((distances <= 0.1).double())
    assert f"{100 * torch.stack([part.mean() for part in right]).mean():.2f}" == "75.51"
    assert f"{100 * torch.cat(right).mean():.2f}" == "74.32"


def test_released_neighbours_of_generic_diffusion_features_are_reproduced() -> None:
    kept = np.load(GOLDEN / "r_correspondence.npz")
    source, target = (torch.from_numpy(kept[name])[0] for name in ("f1", "f2"))
    # both maps are resized to 64 × 64, and points (y, x), scaled and rounded, are looked up there
    grids64 = [FeatureGrid(features, (64, 64)) for features in (source, target)]
    index = torch.from_numpy(kept["idx_source_64"]).long()
    found = ReadOut()(*grids64, torch.stack([index % 64, index // 64], dim=1).float())
    np.testing.assert_array_equal(found.flip(1).numpy(), kept["pred_points"])
    cosine = ReadOut(resolution="patch").similarities(source.flatten(1).T, FeatureGrid(target, (16, 16)))
    np.testing.assert_allclose(cosine.flatten(1).numpy(), kept["cosine_sims"][0], atol=1e-5)
