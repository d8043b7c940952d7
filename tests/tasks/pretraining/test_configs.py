"""The experiments that build the embedded model: they compose, and their parts can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import DictConfig

from gate_lightning.engine import run_folder as runs
from gate_lightning.engine.components import Components
from gate_lightning.engine.configuration import config_folder


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return runs.resolve(compose("train", overrides=list(overrides)))


@pytest.mark.parametrize(
    ("experiment", "task"),
    [
        ("tiny/autoencoder", "AutoencoderTask"),
        ("tiny/unet", "UNetTask"),
        ("tiny/controlnet", "ControlNetTask"),
        ("tiny/lora", "LoraTask"),
        ("tiny/classifier", "SingleObjectTask"),
    ],
)
def test_experiment_composes_and_builds_its_data(experiment: str, task: str, tmp_path: Path) -> None:
    config = composed(f"experiment={experiment}", f"model={tmp_path}")
    assert get_class(config.task._target_).__name__ == task
    parts = Components(config, str(tmp_path))
    assert parts.datamodule.batch_size == config.dataset.batch_size
    names = [type(callback).__name__ for callback in parts.trainer.callbacks]
    assert "Export" in names
    assert ("WeightAverage" in names) == (experiment != "tiny/lora")


@pytest.mark.parametrize("experiment", ["tiny/autoencoder", "tiny/unet", "tiny/classifier"])
def test_task_settings_reach_the_task(experiment: str, tmp_path: Path) -> None:
    config = composed(f"experiment={experiment}", f"model={tmp_path}", "task.lr=0.25", "seed=3")
    task = Components(config, str(tmp_path)).task
    assert task.lr == 0.25
    assert task.seed == 3


def test_general_lora_recipe_takes_any_backbone() -> None:
    config = composed("experiment=lora", "backbone=sd15", "dataset.root=/images", "task.rank=16")
    assert config.task.model == config.backbone.weights
    assert (config.task.rank, config.dataset.size, config.dataset.root) == (16, 512, "/images")
