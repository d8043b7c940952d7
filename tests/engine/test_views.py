"""``cache.augmented_views`` and ``features.pooling`` from the command line to the metrics."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gate_lightning.engine.evaluation import evaluate
from gate_lightning.engine.training import train
from gate_lightning.engine.views import train_on_stored_views, view_count, view_settings
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.segmentation import SegmentationTask
from tests.support.composition import SMALL, composed

#: two epochs of eight augmented images; the edge map is one of the features
GIVEN = (*SMALL, "dataset.augment=true", "techniques=prompt", "edge_channels=true", "amalgamation.dropout=0")


def run(folder: Path, *overrides: str) -> dict[str, float]:
    given = [*GIVEN, *overrides]
    return train(composed(*given), given, folder)


def views_in(folder: Path) -> tuple[str, ...]:
    return ("cache.augmented_views=2", f"cache.folder={folder}/cache", "cache.dtype=float32")


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("cached")
    return folder, run(folder / "run", *views_in(folder))


def test_views_for_all_epochs_change_no_metric(cached: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, metrics = cached
    assert run(tmp_path / "plain") == pytest.approx(metrics, abs=1e-4)
    names = [path.relative_to(folder / "cache/views").parts for path in (folder / "cache/views").rglob("*.safetensors")]
    assert sorted({parts[0] for parts in names}) == ["draw0", "draw1"]
    assert len(names) == 16
    assert len(list((folder / "cache/scenes").rglob("*.safetensors"))) == 4  # the images of validation, not of test


def test_a_run_is_evaluated_where_its_views_are_not(cached: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, metrics = cached
    given = [f"run={folder / 'run'}", "cache.folder=null"]
    found = evaluate(composed(*given, name="eval"), given, tmp_path)
    assert found["val/mIoU"] == pytest.approx(metrics["val/mIoU"], abs=1e-6)
    assert found["val/loss"] == pytest.approx(metrics["val/loss"], abs=1e-5)


def test_an_interrupted_run_goes_on_with_the_same_views(cached: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - no error
        pass

    original = SegmentationTask.training_step

    def stopping(self: SegmentationTask, batch: Any, batch_idx: int) -> Any:
        assert batch.features is not None
        if self.global_step == 3:
            raise Stop
        return original(self, batch, batch_idx)

    folder, metrics = cached
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", stopping)
        with pytest.raises(Stop):
            run(tmp_path / "cut", *views_in(folder), "callbacks.checkpoint.every_n_steps=1")
    given = [f"resume={tmp_path / 'cut'}"]
    assert train(composed(*given), given, tmp_path / "cut") == pytest.approx(metrics, abs=1e-7)


def test_pooled_features_are_trained_and_evaluated_on(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", "features.pooling=2", "trainer.max_steps=1", "trainer.val_check_interval=1")
    given = [f"run={tmp_path / 'run'}"]
    again = evaluate(composed(*given, name="eval"), given, tmp_path)
    assert math.isfinite(metrics["val/loss"])
    assert again["val/mIoU"] == pytest.approx(metrics["val/mIoU"], abs=1e-6)


def test_images_that_stay_the_same_are_refused(tmp_path: Path) -> None:
    given = [*SMALL, "techniques=none", "cache.augmented_views=2", f"cache.folder={tmp_path}/cache"]
    with pytest.raises(ConfigError, match=r"scenes-target-components are not augmented.*dataset\.augment=true"):
        train(composed(*given), given, tmp_path / "run")


@pytest.mark.parametrize("count", ["-1", "1.5", "many", "true"])
def test_a_number_of_views_out_of_range_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.augmented_views="):
        view_count(composed(f"cache.augmented_views={count}"))


def test_tasks_without_masks_are_refused() -> None:
    config = composed("cache.augmented_views=2")
    with pytest.raises(ConfigError, match="does not train on images with masks"):
        train_on_stored_views(config, object(), SimpleNamespace(), SimpleNamespace(), "")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="SimpleNamespace gives none"):
        view_settings(config, SimpleNamespace())
    assert view_settings(composed(), SimpleNamespace()) is None
