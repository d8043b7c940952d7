"""Matching of views: exact features give everything, controls what they should, failures their reasons."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torch import Tensor

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.data.geometric.hpatches import HPatchesDataModule
from gate_lightning.data.geometric.keypoints import KeypointRule
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.ops.correspondence.estimators import METHODS, Estimator
from gate_lightning.ops.correspondence.grids import FeatureGrid
from gate_lightning.structures import Conditions, FeatureInfo, Features
from gate_lightning.tasks.correspondence.geometric import GeometricCorrespondence
from tests.support.composition import composed
from tests.support.view_layouts import HOMOGRAPHIES, moved, write_hpatches

CORNERS = "test/homography_accuracy_{}px_corner-mean_per-pair_le"


class SceneCoordinates(torch.nn.Module):
    """Place on the plane of every pixel as features: what exact features would be. Counts the images."""

    concatenated = ()
    description = MappingProxyType({"network": "coordinates"})

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feature_info = {"plain": {"place": FeatureInfo(2, 1)}}

    def forward(self, images: Tensor, conditions: Conditions) -> Features:
        self.seen += conditions.sample_ids
        height, width = images.shape[-2:]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
        maps = []
        for name in conditions.sample_ids:
            matrix = np.eye(3) if name.endswith("/1.ppm") or "/i_" in f"/{name}" else HOMOGRAPHIES[int(name[-5]) - 2]
            maps.append(torch.from_numpy(moved(grid, np.linalg.inv(matrix)).T.reshape(2, height, width).copy()).float())
        return {"plain": {"place": torch.stack(maps)}}


def task_of(**settings: Any) -> GeometricCorrespondence:
    extractor = SceneCoordinates()
    given = {"estimator": Estimator(), **settings}
    return GeometricCorrespondence(extractor, ConcatAmalgamation(extractor.feature_info), **given)


def measured(task: GeometricCorrespondence, data: Any, **trainer: Any) -> dict[str, float]:
    quiet = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **trainer)
    (found,) = quiet.test(task, data, verbose=False)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    write_hpatches(folder / "set", ("v_wall", "i_room"), folder / "points")
    return folder


def data_of(root: Path, rule: KeypointRule | None = None, **settings: Any) -> HPatchesDataModule:
    exact = KeypointRule("files", folder=str(root / "points"))
    return HPatchesDataModule(str(root / "set"), keypoints=rule or exact, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_exact_features_give_all(root: Path, method: str) -> None:
    task = task_of(metric="l2", estimator=Estimator(method))
    found = measured(task, data_of(root))
    assert {found[CORNERS.format(limit)] for limit in (1, 3, 5)} == {1.0}
    assert {found[f"test/MMA_{limit}px_per-pair_le"] for limit in range(1, 11)} == {1.0}
    assert found["test/matches_per-pair"] == len(task.measured_views["test"][0].points) > 50
    assert len(task.extractor.seen) == len(set(task.extractor.seen)) == 12  # every image once
    assert [one.number for one in task.measured_views["test"]] == list(range(10))


def test_the_place_in_the_image_is_right_where_nothing_moves(root: Path) -> None:
    task = task_of(descriptors="position")
    found = measured(task, data_of(root))
    assert found[f"{CORNERS.format(1)}_illumination"] == 1
    assert found[f"{CORNERS.format(5)}_viewpoint"] < 0.5
    assert not task.extractor.seen


def test_own_descriptors_of_sift(root: Path) -> None:
    task = task_of(descriptors="sift", metric="l2")
    found = measured(task, data_of(root, KeypointRule("sift")))
    assert found[CORNERS.format(3)] > 0.9 and not task.extractor.seen
    with pytest.raises(ConfigError, match=r"these keypoints have none; use dataset\.keypoints\.name=sift"):
        measured(task_of(descriptors="sift"), data_of(root))


def test_a_failed_estimate_is_a_miss_with_its_reason(root: Path, tmp_path: Path) -> None:
    points = tmp_path / "few"
    points.mkdir()
    for view in range(1, 7):
        line = np.linspace([5, 8], [60, 40], {2: 0, 3: 3}.get(view, 20))
        np.savetxt(points / f"i_room-{view}.kp", line)
    task = task_of(metric="l2")
    found = measured(task, data_of(root, KeypointRule("files", folder=str(points)), sequences=["i_room"]))
    assert found["test/failed_too-few-matches_pairs"] == 2
    assert found["test/failed_no-estimate_pairs"] + found["test/failed_degenerate_pairs"] == 3  # all on a line
    assert found[CORNERS.format(5)] == 0
    assert found["test/MMA_1px_per-pair_le"] == pytest.approx((0 + 2 / 3 + 3) / 5)  # without matches 0
    reasons = {one.pair.target: one.estimate.reason for one in task.measured_views["test"]}
    assert reasons["i_room/2.ppm"] == reasons["i_room/3.ppm"] == "too_few_matches"


def test_the_released_sampling_is_that_of_grid_sample() -> None:
    grid = FeatureGrid(torch.randn(3, 6, 8), (30, 50))
    points = torch.tensor([[0.0, 0.0], [49.0, 29.0], [24.5, 14.5], [3.2, 17.9]], dtype=torch.float64)
    sides = torch.tensor([49.0, 29.0]) / 2
    where = ((points.float() - sides) / sides)[None, None]
    expected = torch.nn.functional.grid_sample(grid.features[None], where, align_corners=False)[0, :, 0].T
    torch.testing.assert_close(grid.sample_released(points), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grid.sample_released(points[2:3]), grid.sample(points[2:3]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(grid.sample_released(points[:2]), grid.sample(points[:2]))


def test_what_cannot_be_measured_is_refused(root: Path) -> None:
    for setting in ("descriptors", "metric", "sampling"):
        with pytest.raises(ConfigError, match=f"task.{setting}='x'"):
            task_of(**{setting: "x"})
    with pytest.raises(DataError, match="no pair of test was complete"):
        measured(task_of(), data_of(root, eval_batch_size=1), limit_test_batches=1)


def test_the_command_makes_a_run_folder_on_generated_scenes(tmp_path: Path) -> None:
    given = ["task=geometric", "dataset.scenes=1", "dataset.views=2", "dataset.pixels=96", "logger=none"]
    given += ["backbone=pixels", "backbone.strides=[8]", "trainer.accelerator=cpu"]
    found = evaluate(composed(*given, name="eval"), given, tmp_path / "run")
    run = tmp_path / "run"
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names >= {"groups_test.csv", "view_pairs_test.csv", "matching_accuracy_test.csv", "report.html"}
    assert names >= {f"images/{name}_test.png" for name in ("matching_accuracy", "views_first", "views_worst")}
    assert json.loads((run / "metrics.json").read_text()) == pytest.approx(found)
    rows = list(csv.DictReader((run / "view_pairs_test.csv").open()))
    assert [row["group"] for row in rows] == ["illumination"] * 2 + ["viewpoint"] * 2
    right = [float(row["corner_error"] or "inf") <= 3 for row in rows]
    assert found[CORNERS.format(3)] == np.mean(right)
    groups = {row["group"]: row for row in csv.DictReader((run / "groups_test.csv").open())}
    assert float(groups["all"]["MMA_3px_per-pair_le"]) == pytest.approx(found["test/MMA_3px_per-pair_le"])
    assert set(groups) == {"illumination", "viewpoint", "all"}
    assert Image.open(run / "images/views_worst_test.png").width > 300
    again = evaluate(composed(f"run={run}", name="eval"), [f"run={run}"], tmp_path / "again")
    assert again == pytest.approx(found)
