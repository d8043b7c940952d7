"""``cache.augmented_views`` and ``features.pooling`` from the command line to the metrics."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.views import stored_views, view_count
from gate_lightning.errors import ConfigError
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions
from gate_lightning.tasks.segmentation import SegmentationTask
from tests.support.composition import SMALL, composed

#: two epochs of eight augmented images; the edge map is one of the features
GIVEN = (*SMALL, "dataset.augment=true", "techniques=prompt", "edge_channels=true", "amalgamation.dropout=0")


def run(folder: Path, *overrides: str) -> dict[str, float]:
    given = [*GIVEN, *overrides]
    return train(composed(*given), given, folder)


def views_in(folder: Path) -> tuple[str, ...]:
    return ("cache.augmented_views=2", f"cache.folder={folder}/cache", "cache.dtype=float32")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(image, view) of all training images that a backbone has read."""
    found: list[tuple[str, str]] = []
    original = FeatureExtractor.forward

    def counting(self: FeatureExtractor, images: Any, conditions: Conditions) -> Any:
        if conditions.training:
            found.extend(zip(conditions.sample_ids, conditions.views, strict=True))
        return original(self, images, conditions)

    monkeypatch.setattr(FeatureExtractor, "forward", counting)
    return found


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("cached")
    return folder, run(folder / "run", *views_in(folder))


@pytest.mark.thorough
def test_views_for_all_epochs_change_no_metric(cached: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, metrics = cached
    assert run(tmp_path / "plain") == pytest.approx(metrics, abs=1e-4)
    names = [path.relative_to(folder / "cache").parts[0] for path in (folder / "cache").glob("draw*/**/*.safetensors")]
    assert sorted(names) == ["draw0"] * 8 + ["draw1"] * 8


@pytest.mark.slow
def test_every_view_is_read_by_a_backbone_once(tmp_path: Path, computed: list[tuple[str, str]]) -> None:
    run(tmp_path / "one", "cache.augmented_views=1", f"cache.folder={tmp_path}/cache")
    assert len(computed) == len(set(computed)) == 8
    run(tmp_path / "two", "cache.augmented_views=2", f"cache.folder={tmp_path}/cache")
    assert len(computed) == len(set(computed)) == 16
    run(tmp_path / "again", "cache.augmented_views=2", f"cache.folder={tmp_path}/cache")
    assert len(computed) == 16


@pytest.mark.slow
def test_without_a_folder_runs_of_equal_settings_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, computed: list[tuple[str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, timestep in (("a", 50), ("b", 50), ("c", 51)):
        run(tmp_path / name, "cache.augmented_views=1", "trainer.max_steps=1", f"timestep={timestep}")
    assert len(list((tmp_path / "outputs/cached_views").iterdir())) == 2
    assert len(computed) == len(set(computed)) * 2


@pytest.mark.thorough
def test_a_run_is_evaluated_where_its_views_are_not(cached: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder, metrics = cached
    given = [f"run={folder / 'run'}", "cache.folder=null"]
    found = evaluate(composed(*given, name="eval"), given, tmp_path)
    assert found["val/mIoU"] == pytest.approx(metrics["val/mIoU"], abs=1e-6)
    assert found["val/loss"] == pytest.approx(metrics["val/loss"], abs=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_views(cached: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    class Stop(Exception):  # noqa: N818 - no error
        pass

    original = SegmentationTask.training_step

    def stopping(self: SegmentationTask, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 3:
            raise Stop
        return original(self, batch, batch_idx)

    _, metrics = cached
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", stopping)
        with pytest.raises(Stop):
            run(tmp_path / "cut", *views_in(tmp_path), "callbacks.checkpoint.every_n_steps=1")
    given = [f"resume={tmp_path / 'cut'}"]
    assert train(composed(*given), given, tmp_path / "cut") == pytest.approx(metrics, abs=1e-7)


@pytest.mark.slow
def test_pooled_features_are_trained_and_evaluated_on(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", "features.pooling=2", "trainer.max_steps=1", "trainer.val_check_interval=1")
    given = [f"run={tmp_path / 'run'}"]
    again = evaluate(composed(*given, name="eval"), given, tmp_path)
    assert math.isfinite(metrics["val/loss"])
    assert again["val/mIoU"] == pytest.approx(metrics["val/mIoU"], abs=1e-6)


def test_images_that_stay_the_same_are_refused(tmp_path: Path) -> None:
    given = [*SMALL, "techniques=none", "cache.augmented_views=2", f"cache.folder={tmp_path}/cache"]
    with pytest.raises(ConfigError, match=r"scenes-target-parts are not augmented.*dataset\.augment=true"):
        train(composed(*given), given, tmp_path / "run")


@pytest.mark.parametrize("count", ["-1", "1.5", "many", "true"])
def test_a_number_of_views_out_of_range_is_refused(count: str) -> None:
    with pytest.raises(ConfigError, match=r"cache\.augmented_views="):
        view_count(composed(f"cache.augmented_views={count}"))


def test_data_without_augmented_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="SimpleNamespace gives none"):
        stored_views(composed("cache.augmented_views=2"), SimpleNamespace())
    assert stored_views(composed(), SimpleNamespace()) == 0
