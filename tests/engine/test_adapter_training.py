"""experiment=lora on the folder of a segmentation data set: images in several caption styles, no masks needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.engine.folder.run_folder import resolve
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import DataError
from tests.support.composition import composed


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True)
    for index in range(2):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 60, 3), 80 * index, np.uint8))


@pytest.mark.slow
def test_any_folder_of_images_trains_adapters_that_load(tmp_path: Path) -> None:
    write_images(tmp_path / "set" / "images" / "train")
    (tmp_path / "set" / "captions_tags.txt").write_text("train/0.png\tnight\ntrain/1.png\tday\n")
    given = ["experiment=lora", "backbone=tiny", "dataset=folder", f"dataset.root={tmp_path / 'set'}"]
    given += ["dataset.batch_size=2", "task.rank=2", "task.targets=[attention]", "trainer.accelerator=cpu"]
    given += ["trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none"]
    given += ["scheduler.warmup_steps=0"]
    metrics = train(composed(*given), given, tmp_path / "run")
    assert np.isfinite(metrics["val/error"])
    assert json.loads((tmp_path / "run" / "status.json").read_text()) == {"status": "done"}
    backbone = load_unet_backbone("tiny")
    for name in ("adapter", "adapter.kohya"):
        backbone.require_adapter(name[:7] + name[8:], str(tmp_path / "run" / "model" / f"{name}.safetensors"))
        assert len(backbone.adapters[name[:7] + name[8:]].paths["unet"]) == 128  # 16 transformers × 2 × q, k, v, out


@pytest.mark.thorough
def test_without_images_of_it_a_training_ends_and_says_that_nothing_is_exported(tmp_path: Path, caplog: Any) -> None:
    write_images(tmp_path / "set")
    given = ["experiment=lora", "backbone=tiny", "backbone.weights=random", "dataset=folder", "callbacks=quiet"]
    given += [f"dataset.root={tmp_path / 'set'}", "task.rank=2", "task.targets=[attention]", "trainer.accelerator=cpu"]
    given += ["trainer.max_steps=1", "trainer.val_check_interval=1", "logger=none", "scheduler.warmup_steps=0"]
    given += ["dataset.batch_size=2"]
    assert np.isfinite(train(composed(*given), given, tmp_path / "run")["val/error"])
    assert "callbacks.export is off" in caplog.text
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
    assert not (tmp_path / "run/model").exists()


@pytest.mark.parametrize(("inside", "images"), [("images/train", 2), ("images", 2), ("", 2)])
def test_the_settings_of_the_data_set_reach_the_images(tmp_path: Path, inside: str, images: int) -> None:
    write_images(tmp_path / "set" / inside)
    given = ["experiment=lora", "backbone=sd15", "dataset=folder", f"dataset.root={tmp_path / 'set'}"]
    module = Components(resolve(composed(*given, "dataset.batch_size=3", "seed=5")), str(tmp_path)).datamodule
    module.setup("fit")
    assert (len(module.source("train")), module.size, module.batch_size, module.seed) == (images, 512, 3, 5)
    assert not module.flip


def test_a_data_set_without_a_folder_is_refused(tmp_path: Path) -> None:
    module = Components(resolve(composed("experiment=lora", "dataset=scenes")), str(tmp_path)).datamodule
    with pytest.raises(DataError, match=r"dataset\.root="):
        module.setup("fit")
