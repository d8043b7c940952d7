"""What reaches the dashboards: every panel that docs/dashboards.md names has its data in an offline run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from gate_lightning.callbacks import workspace
from gate_lightning.engine.folder.description import publish_comparison
from gate_lightning.engine.jobs.training import train
from gate_lightning.tools.comparison.compare import compare
from tests.support.composition import SMALL, composed
from tests.support.paths import REPOSITORY
from tests.support.wandb_files import OfflineRun, offline_runs

pytest.importorskip("wandb")

CHOICES = {"backbone": "tiny", "dataset": "scenes", "head": "upernet", "task": "segmentation"}
#: by which runs are filtered, grouped and drawn
ASKED = {"timestep", "layers", "techniques", "backbone", "dataset", "head", "task", "seed"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that logs to all dashboards."""
    run = tmp_path_factory.mktemp("runs") / "run"
    given = [*SMALL, "callbacks=default", "callbacks.cost.measured=1", "trainer.log_every_n_steps=1"]
    given += ["logger=[wandb,tensorboard]"]
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "offline"
    try:
        train(composed(*given), given, run, CHOICES)
    finally:
        os.environ.pop("WANDB_MODE")
        if before is not None:
            os.environ["WANDB_MODE"] = before
    return run


@pytest.fixture(scope="module")
def logged(folder: Path) -> OfflineRun:
    (found,) = offline_runs(folder)
    return found


def documented() -> list[str]:
    """Keys of the tables under "What is shown"."""
    text = (REPOSITORY / "docs" / "dashboards.md").read_text().split("## What is shown\n")[1]
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def of_sweeps(key: str) -> bool:
    return "/comparison" in key


def of_pairs(key: str) -> bool:
    return any(part in key for part in ("/PCK_", "/matches_", "/categories_"))


def test_the_page_names_every_panel_of_the_workspace() -> None:
    keys = documented()
    assert len(keys) == len(set(keys)) > 30
    groups = (*workspace.LINES.values(), *workspace.MEDIA.values(), *workspace.TABLES.values())
    assert {key for group in groups for key in group} <= set(keys)
    assert any(re.fullmatch(workspace.BRANCHES, key) for key in keys)
    assert set(workspace.SETTINGS) == ASKED


@pytest.mark.parametrize("key", [key for key in documented() if not of_sweeps(key) and not of_pairs(key)])
@pytest.mark.slow
def test_every_panel_of_a_run_has_its_data(logged: OfflineRun, key: str) -> None:
    check_data(logged, key)


def check_data(logged: OfflineRun, key: str) -> None:
    pattern = re.sub(r"<\w+>", "[^/]+", key)
    values = [row[name] for row in logged.rows for name in row if re.fullmatch(pattern, name)]
    assert values
    if key.startswith(("predictions/", "images/")):
        files = [logged.folder / "files" / path for value in values for path in value["filenames"]]
        assert files and all(path.is_file() for path in files)
    elif key.startswith("tables/"):
        tables = [json.loads((logged.folder / "files" / value["path"]).read_text()) for value in values]
        assert all(table["columns"] and table["data"] for table in tables)
    else:
        assert all(isinstance(value, int | float) for value in values)


@pytest.mark.slow
def test_every_panel_of_a_run_on_pairs_has_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = ["dataset=scene_pairs", "backbone.weights=random", "dataset.train=1", "dataset.val=1", "dataset.test=1"]
    given += ["trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=1", "logger=wandb"]
    given += ["techniques=[prompt]", "head=conv_descriptors", "callbacks.report=null", "trainer.log_every_n_steps=1"]
    train(composed(*given), given, tmp_path / "run", CHOICES)
    (run,) = offline_runs(tmp_path / "run")
    for key in (*filter(of_pairs, documented()), "train/loss", "train/lr", "train/images_per_second"):
        check_data(run, key)
    best = max(row["val/PCK_0.10_bbox_per-image_le"] for row in run.rows if "val/PCK_0.10_bbox_per-image_le" in row)
    assert run.summary["val/PCK_0.10_bbox_per-image_le"]["max"] == best


@pytest.mark.thorough
def test_predictions_have_masks_captions_and_classes(folder: Path, logged: OfflineRun) -> None:
    (shown,) = [row["predictions/worst_val"] for row in logged.rows if "predictions/worst_val" in row]
    scores = [float(re.fullmatch(r".+: mIoU ([\d.]+) %", caption)[1]) for caption in shown["captions"]]  # type: ignore[index]
    assert scores == sorted(scores) and len(scores) == shown["count"] == 4
    for masks in shown["all_masks"]:
        assert set(masks) == {"ground_truth", "prediction"}
        values = np.asarray(Image.open(logged.folder / "files" / masks["ground_truth"]["path"]))
        assert set(np.unique(values)) <= {*range(16), 255}
        assert len(np.unique(values)) > 2


@pytest.mark.thorough
def test_the_whole_configuration_is_there(folder: Path, logged: OfflineRun) -> None:
    assert {key for key, value in logged.config.items() if value is not None} >= ASKED
    assert all(isinstance(logged.config[key], str | int | float) for key in ASKED)
    assert {key: logged.config[key] for key in CHOICES} == CHOICES
    saved: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert logged.config["settings"] == {key: value for key, value in saved.items() if value != {}}
    assert logged.config["command"]
    assert logged.summary["val/mIoU"]["max"] == max(row["val/mIoU"] for row in logged.rows if "val/mIoU" in row)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert logged.summary["test/mIoU"] == metrics["test/mIoU"]


@pytest.mark.thorough
def test_tensorboard_has_the_same_metrics_images_and_tables(folder: Path, logged: OfflineRun) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    keys = {key for key in logged.keys if not key.startswith(("_", "predictions/"))}
    tags = events.Tags()
    assert set(tags["images"]) == {key for key in keys if key.startswith("images/")}
    tables = {key for key in keys if key.startswith("tables/")}
    assert {f"{key}/text_summary" for key in tables} <= set(tags["tensors"])
    assert set(tags["scalars"]) == {key for key in keys if not key.startswith(("images/", "tables/"))}


@pytest.mark.thorough
def test_csv_has_the_same_metrics(folder: Path, logged: OfflineRun) -> None:
    columns = (folder / "metrics.csv").read_text().partition("\n")[0].split(",")
    scalars = {key for key in logged.keys if not key.startswith(("_", "predictions/", "images/", "tables/"))}
    assert set(columns) - {"step"} == scalars - {"epoch"}


def finished(folder: Path, overrides: list[str], value: float) -> None:
    """The files of a run that a comparison reads."""
    folder.mkdir(parents=True)
    files = {"status.json": {"status": "done"}, "overrides.json": overrides, "metrics.json": {"val/mIoU": value}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.thorough
def test_every_panel_of_a_sweep_has_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for number in range(4):
        finished(tmp_path / str(number), [f"timestep={25 + number % 2}", f"layers={'ab'[number // 2]}"], number / 4)
    compare(runs=str(tmp_path), output=str(tmp_path))
    publish_comparison(tmp_path, composed("logger=wandb"))
    (run,) = offline_runs(tmp_path)
    wanted = {key for key in documented() if of_sweeps(key)}
    assert len(wanted) == 5 and wanted <= run.keys


@pytest.mark.slow
def test_a_sweep_of_four_is_four_runs_in_a_group_and_a_summary(tmp_path: Path) -> None:
    sweep = tmp_path / "mine"
    given = [f"hydra.sweep.dir={sweep}", *SMALL, "logger=wandb", "timestep=25,50", "layers=legacy,practical"]
    command = [sys.executable, "train.py", "-m", "techniques=none", *[item for item in given if item != "logger=csv"]]
    environment = {**os.environ, "WANDB_MODE": "offline"}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, capture_output=True)
    found = [run for number in range(4) for run in offline_runs(sweep / str(number))]
    assert len(found) == 4
    assert len({run.run.run_id for run in found}) == 4
    assert {run.run.run_group for run in found} == {"mine"}
    names = [f"timestep={t} layers={layers}" for t in (25, 50) for layers in ("legacy", "practical")]
    assert [run.run.display_name for run in found] == names
    assert [(run.config["timestep"], run.config["layers"]) for run in found] == [
        (t, layers) for t in (25, 50) for layers in ("legacy", "practical")
    ]
    assert all(run.config.keys() >= ASKED and run.exit_code == 0 for run in found)
    assert all(sum("test/mIoU" in row for row in run.rows) == 1 for run in found)
    (summary,) = offline_runs(sweep)
    assert (summary.run.run_group, summary.run.job_type) == ("mine", "summary")
    assert {"tables/comparison", "images/comparison_grid"} <= summary.keys
