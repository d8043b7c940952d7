"""The published label-scarce runs on small networks of the same families and made-up data in the published layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.engine.jobs.training import train
from tests.support.composition import composed
from tests.support.label_scarce import make_scarce

BLOCKS = [f"output_blocks.{block}" for block in (5, 6, 7, 8, 11)]  # the small one ends before block 12
SMALL = (
    *("task.data.members=2", "task.data.size=32", "task.data.image_size=64", "task.max_steps_per_member=2"),
    *("dataset.train=0", "dataset.test=0", "repeats=1", "trainer.accelerator=cpu", "callbacks=quiet", "logger=csv"),
)
STEERED = (
    *("backbone.weights=random", "backbone.architecture=tiny", "backbone.controlnets.canny=asset:tiny/controlnet"),
    *("backbones.ddpm.weights=random", "backbones.ddpm.architecture=adm_tiny"),
    "technique.lora.weights.moderate=asset:tiny/lora/moderate.safetensors",
    "technique.lora.weights.overtrained=asset:tiny/lora/overtrained.safetensors",
    "technique.prompt.text=a horse",  # the small tokenizer needs two windows for the published one
)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gate/horse21_released_config", "gate/bedroom28")]


@pytest.mark.parametrize("name", ["gate/horse21", "ddpm_segmentation/horse21", *SLOW])
@pytest.mark.slow
def test_it_trains_and_is_measured(name: str, tmp_path: Path) -> None:
    key = "bedroom_28" if name.endswith("bedroom28") else "horse_21"
    root = make_scarce(tmp_path / "data", key, train=3, test=1, side=32)
    steered = name.startswith("gate/")
    own = STEERED if steered else ("backbone.weights=random", "backbone.architecture=adm_tiny")
    given = [f"experiment={name}", f"dataset.root={root}", *SMALL, *own]
    config = composed(*given)
    if steered:
        config.techniques[-1].layers = BLOCKS
    else:
        config.layers = BLOCKS
    metrics = train(config, given, tmp_path / "run")
    assert 0 <= metrics["test/mIoU_ddpm"] <= 1
    saved = (tmp_path / "run" / "frozen.json").read_text()
    assert saved.count('"timestep"') >= (4 if key == "bedroom_28" else 5 if steered else 3)
