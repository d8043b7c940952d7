"""Mutual neighbours and the choice of a mirrored image, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence import neighbours
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.ops.correspondence.neighbours import (
    dense_matches,
    instance_distance,
    mutual_distance,
    mutual_neighbours,
)
from tests.support.paths import GOLDEN


def random_grid(seed: int, size: tuple[int, int] = (8, 10)) -> FeatureGrid:
    return FeatureGrid(torch.randn(5, 4, 5, generator=torch.Generator().manual_seed(seed)), size)


def unit_vectors(grid: FeatureGrid) -> list[Tensor]:
    return [vector / vector.norm() for vector in grid.features.flatten(1).T]


@pytest.mark.parametrize("rows", [3, 1024])
def test_mutual_neighbours_are_those_of_loops(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "ROWS", rows)
    source, target = random_grid(0), random_grid(1)
    ours, theirs = unit_vectors(source), unit_vectors(target)
    wanted = []
    for index, vector in enumerate(ours):
        there = max(range(20), key=lambda place: float(vector @ theirs[place]))
        back = max(range(20), key=lambda place: float(theirs[there] @ ours[place]))
        if back == index:
            wanted.append((index, there, float(vector @ theirs[there])))
    points, matches, cosines = mutual_neighbours(source, target)
    # positions are 2 pixels wide: the centre of the first is between the first two pixels
    assert points.tolist() == [[index % 5 * 2 + 0.5, index // 5 * 2 + 0.5] for index, _, _ in wanted]
    assert matches.tolist() == [[there % 5 * 2 + 0.5, there // 5 * 2 + 0.5] for _, there, _ in wanted]
    torch.testing.assert_close(cosines, torch.tensor([cosine for *_, cosine in wanted]))
    distances = [float((ours[index] - theirs[there]).norm()) for index, there, _ in wanted]
    assert mutual_distance(source, target) == pytest.approx(np.mean(distances), abs=1e-6)


def test_dense_matches_are_those_of_a_loop_over_pixels() -> None:
    # positions of 4 × 2 pixels of the source; of 2 of the target, whose last row and column are padding
    source = FeatureGrid(random_grid(0).features, (16, 10))
    target = FeatureGrid(random_grid(1).features, (6, 8), (0.5, 0.5))
    ours, theirs = unit_vectors(source), unit_vectors(target)
    found = dense_matches(source, target)
    assert found.shape == (6, 8, 2)
    for y in range(6):
        for x in range(8):
            here = theirs[y // 2 * 5 + x // 2]
            best = int(np.argmax([float(here @ vector) for vector in ours]))
            # half a pixel of the target from the centre of its position is a quarter of a position
            across, down = (0.25 if side % 2 else -0.25 for side in (x, y))
            wanted = [(best % 5 + 0.5 + across) * 2 - 0.5, (best // 5 + 0.5 + down) * 4 - 0.5]
            assert found[y, x].tolist() == wanted


def test_instance_distance_looks_at_the_objects_alone() -> None:
    source, target = random_grid(2), random_grid(3)
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 2:6, 4:9] = True  # holds the centres' pixels of rows 1, 2 and columns 2, 3
    masks[1, :, 5:] = True
    ours, theirs = unit_vectors(source), unit_vectors(target)
    inside = [row * 5 + column for row in (1, 2) for column in (2, 3)]
    there = [row * 5 + column for row in range(4) for column in range(5) if masks[1, row * 2 + 1, column * 2 + 1]]
    wanted = np.mean([min(float((ours[index] - theirs[place]).norm()) for place in there) for index in inside])
    assert instance_distance(source, target, *masks) == pytest.approx(wanted, abs=1e-6)


def test_the_mirrored_image_is_nearer_where_the_target_is_the_mirror_image() -> None:
    source = random_grid(4)
    mirrored = FeatureGrid(source.features.flip(-1), source.size)
    noise = 0.3 * torch.randn(5, 4, 5, generator=torch.Generator().manual_seed(5))
    # vectors say what is there and, by their last channel, on which side of the image
    side = torch.linspace(-2, 2, 5).expand(1, 4, 5)
    with_side = [FeatureGrid(torch.cat([grid.features, side]), grid.size) for grid in (source, mirrored)]
    target = FeatureGrid(torch.cat([mirrored.features + noise, side]), source.size)
    assert mutual_distance(with_side[1], target) < mutual_distance(with_side[0], target)
    everything = torch.ones(8, 10, dtype=torch.bool)
    distances = [instance_distance(grid, target, everything, everything) for grid in with_side]
    assert distances[1] < distances[0]


def test_masks_that_cannot_be_used_are_refused() -> None:
    grid, nothing = random_grid(0), torch.zeros(8, 10, dtype=torch.bool)
    with pytest.raises(ConfigError, match="holds no position"):
        instance_distance(grid, grid, nothing, ~nothing)
    with pytest.raises(ConfigError, match=r"is \(4, 4\), its image \(8, 10\)"):
        instance_distance(grid, grid, nothing[:4, :4], ~nothing)


def test_released_neighbours_are_reproduced() -> None:
    kept = np.load(GOLDEN / "r_correspondence.npz")
    vectors = [torch.from_numpy(kept[name])[0].flatten(1).T for name in ("f1", "f2")]
    index, _ = neighbours.nearest_neighbours(*vectors)
    place = kept["nn_points2"][0]  # (y, x)
    assert index.tolist() == (place[:, 0] * 16 + place[:, 1]).astype(int).tolist()
