"""Image classification: probes on pooled features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning.amalgamation.concat import ConcatAmalgamation
from gate_lightning.amalgamation.weighted import WeightedAmalgamation
from gate_lightning.data.card import ClassLabels
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from gate_lightning.heads.linear import LinearHead
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.structures import ClassificationBatch, Conditions
from gate_lightning.tasks.classification import ClassificationTask
from gate_lightning.utils.text import read_csv
from tests.support.composition import composed
from tests.support.segmentation_fakes import FakeExtractor

LABELS = ClassLabels(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))
SMALL = (
    *("backbone.weights=random", "task=classification", "dataset.train=12", "dataset.val=6", "dataset.test=6"),
    *("dataset.batch_size=4", "trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.accelerator=cpu"),
    *("callbacks=quiet", "logger=csv", "layers=dift"),
)


def run(folder: Path, *overrides: str) -> dict[str, float]:
    given = [*SMALL, *overrides]
    return train(composed(*given), given, folder)


def measured(folder: Path, *overrides: str) -> dict[str, float]:
    given = [one for one in SMALL if not one.startswith(("trainer.max", "trainer.val", "dataset.batch"))]
    given += [*overrides, f"output={folder}"]
    return evaluate(composed(*given, name="eval"), given, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    run(folder, "techniques=all", "callbacks=classification", "trainer.log_every_n_steps=1")
    return folder


def test_a_run_leaves_accuracy_classes_and_confusion(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"val/Acc", "val/mAcc", "val/loss", "test/Acc"} <= metrics.keys()
    rows = read_csv(trained / "classes_test.csv")
    assert [row["class"] for row in rows] == ["tree", "house", "horse", "car", "ball", "lamp"]
    assert list(rows[0]) == ["class", "Acc", "Precision", "F1", "share"]
    # every class has one of six images
    assert np.isclose(np.mean([float(row["Acc"]) for row in rows]), metrics["test/Acc"])
    counts = np.array(
        [[int(row[name]) for name in row if name != "truth"] for row in read_csv(trained / "confusion_test.csv")]
    )
    assert counts.sum() == 6
    assert np.isclose(np.trace(counts) / 6, metrics["test/Acc"])
    assert Image.open(trained / "images/confusion_test.png").width > 100
    page = (trained / "report.html").read_text()
    assert f"{100 * metrics['test/Acc']:.1f} %" in page
    assert "share: of the images" in page
    columns = [*read_csv(trained / "metrics.csv")[0]]
    assert {"weights/level0/prompt", "weights/level0/overtrained"} <= {*columns}
    assert not any("stride" in name for name in columns)


@pytest.mark.thorough
def test_own_images_get_their_class(trained: Path, tmp_path: Path) -> None:
    for number, size in enumerate(((64, 64), (50, 90))):
        Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    given = [f"run={trained}", f"input={tmp_path}", f"output={tmp_path / 'out'}"]
    evaluate(composed(*given, name="eval"), given, tmp_path / "out")
    rows = read_csv(tmp_path / "out/predictions.csv")
    assert [row["image"] for row in rows] == ["0", "1"]
    for row in rows:
        shares = {name: float(row[name]) for name in list(row)[3:]}
        assert np.isclose(sum(shares.values()), 1)
        assert row["class"] == max(shares, key=lambda name: shares[name])
        assert float(row["share"]) == shares[row["class"]]


@pytest.mark.thorough
def test_nearest_images_are_measured_without_training(tmp_path: Path) -> None:
    metrics = measured(tmp_path / "run", "techniques=none", "head=nearest_images", "head.decode.neighbours=1")
    assert {*metrics} == {"test/Acc", "test/mAcc"}
    given = [f"run={tmp_path / 'run'}", "split=test", f"output={tmp_path / 'again'}"]
    assert evaluate(composed(*given, name="eval"), given, tmp_path / "again") == metrics
    Image.fromarray(np.full((64, 64, 3), 90, dtype=np.uint8)).save(tmp_path / "one.png")
    given = [f"run={tmp_path / 'run'}", f"input={tmp_path / 'one.png'}", f"output={tmp_path / 'out'}"]
    evaluate(composed(*given, name="eval"), given, tmp_path / "out")
    (row,) = read_csv(tmp_path / "out/predictions.csv")
    assert float(row["share"]) == 1.0


@pytest.mark.thorough
def test_what_nobody_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"head has weights that nobody has trained.*amalgamation=concat head=nearest"
    ):
        measured(tmp_path / "a", "techniques=none")
    with pytest.raises(ConfigError, match=r"head=nearest_images trains nothing, and the amalgamation has weights"):
        measured(tmp_path / "b", "techniques=all", "head=nearest_images")
    with pytest.raises(ConfigError, match=r"ClassificationTask has nothing to train here: .*measure it with the same"):
        run(tmp_path / "c", "techniques=none", "head=nearest_images")
    with pytest.raises(ConfigError, match=r"PredictionImages reports on masks, .*use callbacks=classification"):
        run(tmp_path / "d", "techniques=none", "callbacks=default")


def test_masks_are_no_classes() -> None:
    from gate_lightning.engine.folder.run_folder import resolve
    from gate_lightning.engine.parts.components import Components

    config = resolve(composed("task=classification", "dataset=scenes", "backbone.weights=random"))
    with pytest.raises(ConfigError, match=r"takes batches of ClassificationBatch: A batch of images with a class each"):
        _ = Components(config, "").connected_datamodule
    # the data set picks the task, and the task its generated data
    assert composed("dataset=cifar10").task._target_ == composed("task=classification").task._target_
    assert composed("task=classification").dataset._target_.endswith("SceneKindsDataModule")


# with features that are known ---------------------------------------------------------------------------------------


def batch_of(count: int = 3, labels: tuple[int, ...] = (0, 1, 2)) -> ClassificationBatch:
    names = Conditions(tuple(f"{index}" for index in range(count)))
    return ClassificationBatch(torch.randn(count, 3, 16, 16), names, torch.tensor(labels))


def task_of(amalgamation: type[ConcatAmalgamation | WeightedAmalgamation]) -> ClassificationTask:
    extractor = FakeExtractor()
    made = amalgamation(extractor.feature_info)
    head = LinearHead(made.out_channels, made.strides, 3)
    return ClassificationTask(extractor, made, head, LABELS, CrossEntropyLoss(255))  # type: ignore[arg-type]


def test_logits_are_those_of_the_averaged_pyramid() -> None:
    task, batch = task_of(ConcatAmalgamation).eval(), batch_of()
    fused = task.amalgamation(task.extractor(batch.images, batch.conditions))
    weights = [one.weight.flatten(1) for one in task.head.classifiers]
    expected = sum(level.flatten(2).mean(dim=2) @ weight.T for level, weight in zip(fused.levels, weights, strict=True))
    torch.testing.assert_close(task.logits(batch.images, batch.conditions), expected)
    shares = task.class_shares(batch.images, batch.conditions)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))


def test_padding_counts_nothing() -> None:
    task = task_of(WeightedAmalgamation)
    task.log = lambda *arguments, **settings: None  # type: ignore[method-assign]
    task.test_step(batch_of(labels=(0, 1, 255)), 0)
    assert int(task.metrics["test"].compute().sum()) == 2
