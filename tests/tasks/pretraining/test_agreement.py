"""The measurement of prompt agreement."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gate_lightning.data.pretraining.datamodule import NOTHING, SingleObjectImages
from gate_lightning.data.samples import SampleRequest
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.data.scenes.render import render
from gate_lightning.data.scenes.world import COLORS, KINDS
from gate_lightning.errors import WeightsError
from gate_lightning.tasks.pretraining.agreement import (
    KindColorNet,
    SingleObjectTask,
    agreement,
    judge,
    load_classifier,
)
from tests.support.small_networks import build


def test_single_object_scenes_are_labelled() -> None:
    data = SingleObjectImages(train_length=60, val_length=2)
    data.setup()
    labels = data.source("train")[[SampleRequest(index) for index in range(60)]].labels
    assert set(labels["kind"].tolist()) == {*range(len(KINDS)), NOTHING}
    assert ((labels["kind"] == NOTHING) == (labels["color"] == -1)).all()
    assert int(labels["color"].max()) < len(COLORS)


def test_judge_counts_kind_colour_and_both() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kind = torch.zeros(len(pixels), NOTHING + 1)
            kind[:, KINDS.index("car")] = 1
            color = torch.zeros(len(pixels), len(COLORS))
            color[:, list(COLORS).index("red")] = 1
            return kind, color

    images = np.stack([render(sample_scene(i), size=64).image for i in range(6)])
    wanted = [("car", "red"), ("car", "blue"), *((kind, "red") for kind in ("tree", "house", "ball", "lamp"))]
    result = judge(Fixed(), images, wanted)
    assert result["kind"] == pytest.approx(2 / 6)
    assert result["color"] == pytest.approx(5 / 6)
    assert result["both"] == pytest.approx(1 / 6)


def test_classifier_survives_the_disk(tmp_path: Path) -> None:
    task = SingleObjectTask(partial(torch.optim.AdamW, lr=1e-3))
    task.export(tmp_path)
    pixels = torch.rand(2, 3, 64, 64)
    loaded = load_classifier(tmp_path / "single_object.safetensors")
    assert isinstance(loaded, KindColorNet)
    torch.testing.assert_close(loaded(pixels)[0], task.net(pixels)[0])
    save_file({"more": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors does not fit KindColorNet"):
        load_classifier(tmp_path / "other.safetensors")


def test_the_tool_writes_its_measurement(tmp_path: Path) -> None:
    SingleObjectTask(partial(torch.optim.AdamW, lr=1e-3)).export(tmp_path)
    said = agreement(build("one_repeat"), tmp_path / "single_object.safetensors", tmp_path, repeats=1, steps=1)
    written = json.loads((tmp_path / "agreement.json").read_text())
    assert written["images"] == 48
    assert f"both {written['both']:.3f}" in said
