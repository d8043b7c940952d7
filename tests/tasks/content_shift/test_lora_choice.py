"""The moderate and the over-trained file of a LoRA training."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.metrics.content_shift.statistic import Bootstrap, Statistic
from gate_lightning.tasks.content_shift.lora_choice import LoraFiles, choose, trained_files
from tests.support.composition import composed
from tests.support.small_networks import adapted_layers, build, random_pairs, save_diffusers

IMAGES = 40


def statistics(*figures: float, spread: float = 0.05, higher: bool = True) -> dict:
    """Figures of files a, b, c … at two timesteps, with noise that images share in part."""
    common, generator = torch.linspace(-1, 1, IMAGES), torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        drawn = torch.randn(IMAGES, generator=generator)
        return spread * (drawn - drawn.mean())

    return {
        (name, timestep, "us3"): Statistic((figure + common + noise())[:, None], higher)
        for name, figure in zip("abcdef", figures, strict=False)
        for timestep in (50, 100)
    }


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ((0.1, 0.5, 0.3, 0.2), LoraFiles("b", "c")),
        ((0.1, 0.5, 0.4999, 0.2), LoraFiles("b", "d")),  # c is worse by chance alone
        ((0.1, 0.5, 0.4999, 0.4998), LoraFiles("b", "d", by_chance=True)),
        ((0.1, 0.2, 0.3), LoraFiles("c", None)),
        ((0.9, 0.2, 0.3), LoraFiles("a", "b")),
    ],
)
def test_the_best_file_and_the_first_worse_one_after_it(figures: tuple[float, ...], expected: LoraFiles) -> None:
    names = "abcd"[: len(figures)]
    assert choose(statistics(*figures), names, Bootstrap(IMAGES)) == expected
    turned = statistics(*(-figure for figure in figures), higher=False)
    assert choose(turned, names, Bootstrap(IMAGES)) == expected


def test_one_figure_without_timesteps_is_enough() -> None:
    plain = {(name, None, None): one for (name, t, _), one in statistics(0.1, 0.5, 0.2).items() if t == 50}
    assert choose(plain, "abc", Bootstrap(IMAGES)) == LoraFiles("b", "c")
    with pytest.raises(ConfigError, match="no LoRA file has a figure"):
        choose({}, "abc", Bootstrap(IMAGES))


def test_files_are_ordered_by_step(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds 0 LoRA files"):
        trained_files(tmp_path)
    for place, content in (("step_1000", "d"), ("step_200", "b"), ("step_50", "a"), (".", "d")):
        (tmp_path / place).mkdir(exist_ok=True)
        for suffix in ("", ".kohya"):
            (tmp_path / place / f"adapter{suffix}.safetensors").write_text(content)
    assert list(trained_files(tmp_path)) == ["step_50", "step_200", "step_1000"]  # the last one is that of a step
    (tmp_path / "adapter.safetensors").write_text("e")
    assert list(trained_files(tmp_path)) == ["step_50", "step_200", "step_1000", "end"]


@pytest.mark.thorough
def test_the_command_names_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = build("tiny")
    for step, size in ((10, 0.01), (20, 0.05)):
        (tmp_path / f"step_{step}").mkdir()
        layers = {name: one for name, one in adapted_layers(backbone).items() if name.endswith("to_q")}
        save_diffusers(tmp_path / f"step_{step}" / "mine.safetensors", random_pairs(layers, seed=step, size=size))
    given = ["task=lora_choice", f"task.adapters={tmp_path}", "dataset=scenes", "backbone.weights=random"]
    given += ["task.data.images=4", "task.timesteps=[50]", "layers=us3", "trainer.accelerator=cpu", "logger=csv"]
    given += ["callbacks=quiet", "dataset.test=4", "dataset.val=4"]
    with caplog.at_level(logging.INFO):
        metrics = evaluate(composed(*given, name="eval"), given, tmp_path / "run")
    assert {f"test/laplacian_own/step_{step}" for step in (10, 20)} <= metrics.keys()
    best = max((10, 20), key=lambda step: metrics[f"test/laplacian_own/step_{step}"])
    assert f"technique.lora.weights.moderate={tmp_path / f'step_{best}' / 'mine.safetensors'}" in caplog.text
    wrong = [*given, "task.chosen_by=nothing"]
    with pytest.raises(ConfigError, match=r"chosen_by=nothing is none of task\.measures"):
        evaluate(composed(*wrong, name="eval"), wrong, tmp_path / "wrong")
