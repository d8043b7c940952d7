"""Sampling and the prompt-agreement measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.data.scenes import COLORS, KINDS, render, sample_scene
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.agreement import (
    NOTHING,
    KindColorNet,
    SingleObjectScenes,
    SingleObjectTask,
    judge,
    load_classifier,
)
from gate_lightning.tasks.pretraining.encoding import tiny_words
from gate_lightning.tasks.pretraining.sampling import SamplingParts, grid, sample


@pytest.fixture(scope="module")
def parts() -> SamplingParts:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tiny_words())
    unet = tiny.build_unet((16, 16, 16, 16), (1, 1, 1, 1)).eval()
    return SamplingParts(
        unet=unet,
        text_encoder=tiny.build_text_encoder(tokenizer).eval(),
        tokenizer=tokenizer,
        autoencoder=tiny.build_autoencoder().eval(),
        scheduler=tiny.build_scheduler(),
        controlnet=tiny.build_controlnet(unet).eval(),
    )


def test_a_sample_does_not_depend_on_the_batch(parts: SamplingParts) -> None:
    prompts = ["a red car", "a blue house", ""]
    together = sample(parts, prompts, steps=2, batch_size=3)
    apart = sample(parts, prompts, steps=2, batch_size=2)
    assert together.shape == (3, 64, 64, 3)
    assert np.abs(together.astype(int) - apart.astype(int)).max() <= 1
    assert not np.array_equal(together, sample(parts, prompts, steps=2, seed=1))


def test_control_images_must_match(parts: SamplingParts) -> None:
    control = torch.rand(2, 3, 64, 64)
    assert sample(parts, ["a", "a"], steps=1, control=control).shape == (2, 64, 64, 3)
    with pytest.raises(ConfigError, match="2 control images for 1 prompts"):
        sample(parts, ["a"], steps=1, control=control)


def test_grid_fills_with_white() -> None:
    images = np.zeros((3, 2, 2, 3), np.uint8)
    joined = grid(images, columns=2, zoom=2)
    assert joined.shape == (8, 8, 3)
    assert (joined[4:, 4:] == 255).all()
    assert (joined[:4] == 0).all()


def test_single_object_scenes_are_labelled() -> None:
    scenes = SingleObjectScenes(60, first_seed=100)
    items = [scenes[i] for i in range(60)]
    assert {item["kind"] for item in items} == {*range(len(KINDS)), NOTHING}
    for item in items:
        assert (item["kind"] == NOTHING) == (item["color"] == -1)
        assert item["color"] < len(COLORS)


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
    task = SingleObjectTask()
    task.export(tmp_path)
    pixels = torch.rand(2, 3, 64, 64)
    loaded = load_classifier(tmp_path / "single_object.safetensors")
    assert isinstance(loaded, KindColorNet)
    torch.testing.assert_close(loaded(pixels)[0], task.net(pixels)[0])
