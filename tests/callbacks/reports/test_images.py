from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image

from gate_lightning.callbacks.reports import predictions
from gate_lightning.callbacks.reports.class_table import ClassTable
from gate_lightning.callbacks.reports.feature_pca import FeaturePCA, pca_images
from gate_lightning.callbacks.reports.image_table import ImageTable
from gate_lightning.callbacks.reports.predictions import PredictionImages, WorstImages
from gate_lightning.data.transforms.basic import Resize
from gate_lightning.errors import ConfigError
from gate_lightning.visualization.examples import read_examples
from gate_lightning.visualization.predictions import PredictedImage, prediction_grid, to_image
from tests.support.segmentation_fakes import LABELS, FakeData, make_task, make_trainer


def test_images_are_drawn_after_validation_in_training_and_alone(tmp_path: Path) -> None:
    task, data = make_task(), FakeData()
    trainer = make_trainer(tmp_path, PredictionImages(2, every_n_validations=2), max_steps=12)
    trainer.fit(task, data)
    trainer.validate(task, data, verbose=False)
    trainer.test(task, data, verbose=False)
    drawn = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert drawn == [
        "predictions_step000004.png",
        "predictions_step000012.png",
        "predictions_test.png",
        "predictions_val.png",
    ]
    kept = read_examples(tmp_path / "examples" / "val" / "first")
    assert kept is not None
    assert [row.name for row in kept.rows] == ["val/000", "val/001"]
    for number, row in enumerate(kept.rows):
        sample = data.source("val").load(number)
        assert np.array_equal(row.truth, sample.mask)
        assert np.array_equal(row.image, sample.image)


def test_drawn_truth_and_prediction_have_the_colours_of_their_classes(tmp_path: Path) -> None:
    task, data = make_task(), FakeData()
    make_trainer(tmp_path, PredictionImages(3)).validate(task, data, verbose=False)
    image = np.asarray(Image.open(tmp_path / "images" / "predictions_val.png"))
    mask = data.source("val").load(0).mask
    assert mask is not None
    # header, gap, then tiles of 160 pixels: ten per pixel of the mask
    top = next(y for y in range(80) if (image[y, 180:320] == LABELS.palette[0]).all(axis=1).sum() > 100)
    left = 6 + 160 + 6
    for y, x in [(3, 7), (8, 2), (15, 15)]:
        expected = LABELS.palette[mask[y, x]]
        assert tuple(image[top + 10 * y + 5, left + 10 * x + 5]) == expected
    ignored = image[top + 5, left + 5]
    assert tuple(ignored) not in LABELS.palette


def test_image_is_shown_at_the_size_of_its_mask(tmp_path: Path) -> None:
    make_trainer(tmp_path, PredictionImages(1)).validate(make_task(), FakeData((21, 42)), verbose=False)
    width, height = Image.open(tmp_path / "images" / "predictions_val.png").size
    assert width == 2 * 6 + 4 * 320 + 3 * 6
    assert 160 < height < 320


def test_images_are_shown_as_in_their_files_and_as_the_network_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Halved(FakeData):
        eval_resize = Resize(8)

    drawn: list[list[PredictedImage]] = []
    monkeypatch.setattr(predictions, "_grid", lambda rows, _: drawn.append(rows) or np.zeros((4, 4, 3), np.uint8))
    data = Halved()
    make_trainer(tmp_path, PredictionImages(2)).validate(make_task(), data, verbose=False)
    for index, row in enumerate(drawn[0]):
        assert np.array_equal(row.image, data.source("val").load(index).image)
        assert row.seen is not None and row.seen.shape == (8, 8, 3)
    assert len(prediction_grid(drawn[0], LABELS.classes, LABELS.palette, 255)[0]) == 2 * 6 + 5 * 160 + 4 * 6


def test_the_worst_images_are_those_of_the_lowest_miou(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[PredictedImage]] = []
    monkeypatch.setattr(predictions, "_grid", lambda rows, _: drawn.append(rows) or np.zeros((4, 4, 3), np.uint8))
    callbacks = WorstImages(2), ImageTable()
    make_trainer(tmp_path, *callbacks).validate(make_task(), FakeData(), verbose=False)
    with (tmp_path / "images_val.csv").open(newline="") as file:
        table = [(row["image"], float(row["mIoU"])) for row in csv.DictReader(file)]
    assert len(table) == 3
    assert [(row.name, row.miou) for row in drawn[0]] == table[:2]
    assert drawn[0][0].title == f"{table[0][0]}: mIoU {100 * table[0][1]:.1f} %"
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["worst_val.png"]


def test_images_without_a_label_are_not_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn = FakeData(), []
    source: Any = data.source("val")
    source.samples[1] = source.samples[1].ignored()
    monkeypatch.setattr(predictions, "_grid", lambda rows, _: drawn.append(rows) or np.zeros((4, 4, 3), np.uint8))
    make_trainer(tmp_path, WorstImages(9)).validate(make_task(), data, verbose=False)
    assert {row.name for row in drawn[0]} == {"val/000", "val/002"}


def test_images_become_bytes() -> None:
    image = torch.tensor([[-1.0, 0.0], [1.0, 3.0]]).expand(3, 2, 2)
    assert to_image(image)[..., 0].tolist() == [[0, 128], [255, 255]]


def test_feature_pca_is_drawn_once_with_a_column_per_branch_and_layer(tmp_path: Path) -> None:
    pca, task = FeaturePCA(2), make_task()
    make_trainer(tmp_path, pca, max_steps=9).fit(task, FakeData((21, 30)))
    path = tmp_path / "images" / "feature_pca.png"
    assert [p.name for p in path.parent.iterdir()] == ["feature_pca.png"]
    # single images: the last one of either validation, and the two that were drawn after the first
    assert [len(conditions) for conditions in task.extractor.seen].count(1) == 2 + 2
    width, _ = Image.open(path).size
    tile = round(128 * 30 / 21)
    assert width == 2 * 6 + 5 * tile + 4 * 6


def features(scale: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(1, 5, 4, 4, generator=generator)
    return {"a": {"x": plain, "y": plain[:, :4]}, "b": {"x": plain * scale, "y": plain[:, :4]}}


def test_equal_features_get_equal_colours_in_all_branches_and_others_do_not() -> None:
    blank = np.zeros((16, 16, 3), np.uint8)
    drawn = pca_images(["p"], [blank], [features(0.3)])[""]
    tiles = [drawn[-128 - 6 - 6 - 16 : -6 - 6 - 16, 6 + n * 134 : 6 + n * 134 + 128] for n in range(5)]
    assert not np.array_equal(tiles[1], tiles[2])
    assert np.array_equal(tiles[3], tiles[4])
    assert tiles[1].std() > tiles[2].std() > 0


def test_many_columns_are_split_by_layer() -> None:
    many = {f"branch{n}": features(1.0)["a"] for n in range(8)}
    blank = np.zeros((16, 16, 3), np.uint8)
    assert sorted(pca_images(["p"], [blank], [many])) == ["_x", "_y"]


def test_class_table_is_written_and_logged_outside_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gate_lightning")
    task, data = make_task(), FakeData()
    trainer = make_trainer(tmp_path, ClassTable(), max_steps=4)
    trainer.fit(task, data)
    assert "IoU" not in caplog.text
    trainer.validate(task, data, verbose=False)
    with (tmp_path / "classes_val.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["class"] for row in table] == list(LABELS.classes)
    assert float(table[1]["IoU"]) == pytest.approx(task.per_class["val"]["sea"]["IoU"])
    assert sum(float(row["share"]) for row in table) == pytest.approx(1.0)
    line = next(line for line in caplog.text.splitlines() if line.startswith("sea"))
    assert f"{100 * task.per_class['val']['sea']['IoU']:.1f}" in line


def test_a_task_without_what_is_reported_is_refused_before_it_trains(tmp_path: Path) -> None:
    class Other(BoringModel):
        """No classes, no features."""

    with pytest.raises(ConfigError, match=r"ClassTable reports on tasks that have confusion, labels, per_class.*Other"):
        make_trainer(tmp_path, ClassTable()).fit(Other())
    with pytest.raises(ConfigError, match=r"FeaturePCA reports on tasks that have extractor.*callbacks=quiet"):
        make_trainer(tmp_path, FeaturePCA()).fit(Other())


@pytest.mark.parametrize("make", [lambda: PredictionImages(0), lambda: FeaturePCA(0)])
def test_no_images_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()
