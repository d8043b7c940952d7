"""The table over two settings of a sweep."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.tools.comparison.compare import compare
from gate_lightning.tools.comparison.grid import grid_of


def run(layer: str, timestep: object, value: float | None, *more: str) -> tuple[list[str], float | None]:
    return [f"layers={layer}", f"timestep={timestep}", *more], value


def test_layers_down_and_timesteps_across_in_order() -> None:
    found = [run(layer, t, 0.1 * n + t / 1000) for n, layer in enumerate(("us9", "us10")) for t in (200, 50, 100)]
    grid = grid_of([*found, run("us9", 50, 0.25), run("mid", 100, None)])
    assert grid is not None
    assert grid.names == ("layers", "timestep")
    assert grid.rows == ("us9", "us10", "mid")
    assert grid.columns == ("50", "100", "200")
    # the first cell is the mean of two runs (seeds)
    np.testing.assert_allclose(grid.values, [[0.15, 0.1, 0.2], [0.15, 0.2, 0.3], [np.nan] * 3])


def test_the_order_of_overrides_does_not_matter() -> None:
    found = [run(layer, t, 0.5) for layer in ("a", "b") for t in (1, 2)]
    turned = [(settings[::-1], value) for settings, value in found]
    assert str(grid_of(found)) == str(grid_of(turned))


@pytest.mark.parametrize(
    "found",
    [
        [run("a", 1, 0.5), run("b", 1, 0.5)],
        [run("a", 1, 0.5, "x=1"), run("b", 2, 0.5, "x=2")],
        [run("a", 1, None), run("b", 2, None)],
        [],
    ],
)
def test_other_sweeps_have_none(found: list) -> None:
    assert grid_of(found) is None


def test_a_comparison_writes_it(tmp_path: Path) -> None:
    for number, (layer, timestep) in enumerate((layer, t) for layer in ("fine", "coarse") for t in (50, 100)):
        folder = tmp_path / "sweep" / str(number)
        folder.mkdir(parents=True)
        overrides = [f"layers={layer}", f"timestep={timestep}", "experiment=sweep/single_layer", "seed=0"]
        (folder / "overrides.json").write_text(json.dumps(overrides))
        (folder / "status.json").write_text(json.dumps({"status": "done"}))
        (folder / "metrics.json").write_text(json.dumps({"test/mIoU": 0.1 * number}))
    compare(str(tmp_path / "sweep"), str(tmp_path / "out"), metric="test/mIoU")
    with (tmp_path / "out/comparison_grid.csv").open() as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == ["layers \\ timestep", "fine", "coarse"]
    assert float(rows[2][2]) == pytest.approx(0.3)
    assert min(Image.open(tmp_path / "out/comparison_grid.png").size) > 100
