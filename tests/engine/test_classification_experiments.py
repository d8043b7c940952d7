"""Experiments on classified images, and the study of prompts, in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from gate_lightning.data.classification import cifar10
from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.techniques.prompt import Prompt
from tests.support.classified import write_cifar
from tests.support.composition import composed

#: GATE, figure 3, word for word
PROMPTS = {
    "gate/prompt_quality": [
        "a horse, high quality, best quality, highly realistic, masterpiece",
        "a horse, low quality, worst quality, deformation, broken shape, blurry",
    ],
    "gate/prompt_quality_cifar10": [
        "cinematic shot photo taken by ARRI, photo taken by sony, incredibly detailed, sharpen, masterpiece, best "
        "quality, realistic, HD, raytracing, CG unified 8K wallpapers",
        "low quality, low resolution, blurry, draft, grainy, disfigured, deformed, low contrast, underexposed, "
        "overexposed, bad art",
    ],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_the_study_are_the_papers(name: str) -> None:
    node = yaml.safe_load((config_folder() / f"experiment/{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    (swept,) = OverridesParser.create().parse_overrides([f"technique.prompt.text={node['technique.prompt.text']}"])
    words = list(swept.sweep_string_iterator())
    for word, text in zip(words, PROMPTS[name], strict=True):
        config = runs.resolve(
            composed(f"experiment={name}", "backbone=tiny", f"technique.prompt.text={word}", "layers=dift")
        )
        config.dataset = None  # it is not here; its card has no part in a fixed prompt
        (branch,) = Components(config, "").branches
        (technique,) = branch.techniques
        assert isinstance(technique, Prompt)
        assert technique.text == text


@pytest.mark.thorough
def test_the_probe_on_cifar10_trains_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "IMAGES", 20)
    write_cifar(tmp_path / "data", 20)
    given = [
        *("experiment=gate/cifar10", "backbone=tiny", "backbone.weights=random", f"dataset.root={tmp_path / 'data'}"),
        *("technique.lora.weights.moderate=asset:tiny/lora/moderate.safetensors", "dataset.val=10", "dataset.train=8"),
        *("technique.lora.weights.overtrained=asset:tiny/lora/overtrained.safetensors", "dataset.batch_size=4"),
        *("dataset.test=4", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks=quiet", "logger=none"),
    ]
    metrics = train(composed(*given), given, tmp_path / "run")
    assert {"val/Acc", "test/Acc"} <= metrics.keys()
