"""How unsure an ensemble is, as images and as a table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gate_lightning.callbacks.reports import base
from gate_lightning.callbacks.reports.image_table import UncertaintyTable
from gate_lightning.callbacks.reports.predictions import UncertaintyImages
from gate_lightning.data.card import ClassLabels
from gate_lightning.errors import ConfigError
from gate_lightning.structures import Conditions, SegmentationBatch
from gate_lightning.visualization import predictions
from gate_lightning.visualization.heat import heat_map

LABELS = ClassLabels(("sky", "house"), ((0, 0, 200), (200, 0, 0)))
SIDE = 10


def batch_of(*names: str) -> SegmentationBatch:
    masks = torch.zeros(len(names), SIDE, SIDE, dtype=torch.int64)
    masks[:, 5:] = 1
    return SegmentationBatch(torch.zeros(len(names), 3, 2 * SIDE, 2 * SIDE), Conditions(names), masks)


def fake_trainer(folder: Path) -> Any:
    fixed = {
        "is_global_zero": True,
        "sanity_checking": False,
        "state": SimpleNamespace(fn="test"),
        "loggers": [],
        "datamodule": None,
    }
    return SimpleNamespace(**fixed, default_root_dir=str(folder))


def measured(callback: Any, folder: Path, *parts: tuple[SegmentationBatch, Tensor, Tensor]) -> None:
    """Batches, what the task called them, and how unsure it was."""
    trainer = fake_trainer(folder)
    task: Any = SimpleNamespace(labels=LABELS, uncertainty=None)
    callback.on_test_start(trainer, task)
    for batch, labels, unsure in parts:
        task.uncertainty = unsure
        callback.on_test_batch_end(trainer, task, labels, batch, 0)
    callback.on_test_end(trainer, task)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the grids of the callback are made of."""
    grids: list[dict[str, Any]] = []

    def grid(rows: Any, titles: Any, names: Any, legend: Any, **_: Any) -> np.ndarray:
        grids.append({"rows": rows, "titles": titles, "names": names, "legend": legend})
        return np.zeros((4, 4, 3), np.uint8)

    monkeypatch.setattr(predictions, "image_grid", grid)
    return grids


def test_the_first_images_are_drawn_on_one_scale_that_is_told(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    first, second = batch_of("a", "b"), batch_of("c")
    assert first.masks is not None and second.masks is not None
    little, much = torch.full((2, SIDE, SIDE), 0.1), torch.full((1, SIDE, SIDE), 0.4)
    parts = ((first, first.masks, little), (second, 1 - second.masks, much), (batch_of("d"), second.masks, 9 * much))
    measured(UncertaintyImages(count=3), tmp_path, *parts)
    (grid,) = drawn
    assert grid["names"] == ["a", "b", "c"]
    assert grid["titles"][4] == "uncertainty 0 … 0.40"  # nothing of what is not shown
    assert {name for name, _ in grid["legend"]} == {"sky", "house"}
    for row, values in zip(grid["rows"], (little[0], little[1], much[0]), strict=True):
        image, _, truth, _, heat, _ = row
        assert image.shape == truth.shape == (SIDE, SIDE, 3)
        assert np.array_equal(heat, heat_map(values.numpy(), 0.4))
    right, wrong = grid["rows"][0][5], grid["rows"][2][5]
    assert not np.array_equal(right, wrong)


def test_a_few_unsure_pixels_do_not_darken_the_rest(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    batch, values = batch_of("a"), torch.full((1, 50, 50), 0.1)
    values[0, 0, 0] = 5.0
    masks = torch.zeros(1, 50, 50, dtype=torch.int64)
    measured(UncertaintyImages(), tmp_path, (replace(batch, masks=masks), masks, values))
    assert drawn[0]["titles"][4] == "uncertainty 0 … 0.10 and more"
    assert (drawn[0]["rows"][0][4] == heat_map(np.ones((50, 50)), 1.0)).all()


def test_members_that_all_agree_are_black(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    """A probe of one member never disagrees with itself."""
    batch = batch_of("a")
    assert batch.masks is not None
    measured(UncertaintyImages(), tmp_path, (batch, batch.masks, torch.zeros(1, SIDE, SIDE)))
    heat = drawn[0]["rows"][0][4]
    assert heat.max() < 10


def test_the_image_can_be_opened(tmp_path: Path) -> None:
    batch = batch_of("a", "b")
    assert batch.masks is not None
    measured(UncertaintyImages(), tmp_path, (batch, batch.masks, torch.rand(2, SIDE, SIDE)))
    with Image.open(tmp_path / "images" / "uncertainty_test.png") as image:
        assert image.size[0] > image.size[1] / 2


def test_the_table_begins_with_the_most_uncertain(tmp_path: Path) -> None:
    batch = batch_of("a", "b")
    assert batch.masks is not None
    unsure = torch.zeros(2, SIDE, SIDE)
    unsure[1, 0] = 0.5  # a tenth of the pixels
    unsure[0, 0, :5] = 0.5
    measured(UncertaintyTable(), tmp_path, (batch, torch.stack([batch.masks[0], 1 - batch.masks[1]]), unsure))
    with (tmp_path / "uncertainty_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], float(row["uncertainty"])) for row in rows] == [("b", 0.5), ("a", 0.25)]
    assert [(float(row["mIoU"]), float(row["aAcc"])) for row in rows] == [(0.0, 0.0), (1.0, 1.0)]


def test_the_table_has_the_images_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "gathered", lambda rows: [rows, [("elsewhere", 0.9, 0.5, 0.5)]])
    trainer = fake_trainer(tmp_path)
    task: Any = SimpleNamespace(labels=LABELS, uncertainty=torch.zeros(1, SIDE, SIDE))
    callback, batch = UncertaintyTable(), batch_of("here")
    assert batch.masks is not None
    callback.on_test_batch_end(trainer, task, batch.masks, batch, 0)
    callback.on_test_end(trainer, task)
    with (tmp_path / "uncertainty_test.csv").open(newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["elsewhere", "here"]


def test_no_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="count=0: expected a whole number from 1"):
        UncertaintyImages(count=0)
