"""The experiments that build the embedded model: they compose, and their parts can be built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import DictConfig

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.components import Components
from tests.support.composition import composed


def resolved(*overrides: str) -> DictConfig:
    return runs.resolve(composed(*overrides))


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
    config = resolved(f"experiment={experiment}", f"model={tmp_path}")
    assert get_class(config.task._target_).__name__ == task
    parts = Components(config, str(tmp_path))
    assert parts.datamodule.batch_size == config.dataset.batch_size
    names = [type(callback).__name__ for callback in parts.trainer.callbacks]
    assert "Export" in names
    assert ("WeightAverage" in names) == (experiment != "tiny/lora")


@pytest.mark.parametrize("experiment", ["tiny/autoencoder", "tiny/unet", "tiny/classifier"])
def test_task_settings_reach_the_task(experiment: str, tmp_path: Path) -> None:
    given = ("optimizer.lr=0.25", "optimizer.weight_decay=0.125", "seed=3")
    task = Components(resolved(f"experiment={experiment}", f"model={tmp_path}", *given), str(tmp_path)).task
    assert task.seed == 3
    optimizer = task._make_optimizer(task.parameter_groups())
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.25, 0.125, (0.9, 0.99))


def test_general_lora_recipe_takes_any_backbone() -> None:
    config = resolved("experiment=lora", "backbone=sd15", "dataset.root=/images", "task.rank=16")
    assert config.backbone.weights == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (config.optimizer.lr, config.scheduler.warmup_steps) == (1e-4, 50)
    assert (config.task.rank, config.dataset.size, config.dataset.root) == (16, 512, "/images")
