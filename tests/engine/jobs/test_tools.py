"""``eval.py tool=…``: tools get the components they name, prompts without a data set, and processes of their own."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_object
from PIL import Image

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.tools import PARTS
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.memory import MemoryCache
from tests.support.composition import SMALL, composed
from tests.support.folders import make_folder

RANDOM = ("tool=extract", "backbone.weights=random", "tool.device=cpu")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(folder / f"{name}.png")
    return folder


def run(*overrides: str) -> None:
    evaluate(composed(*RANDOM, *overrides, name="eval"), [], Path("unused"))


def prompts(folder: Path) -> list[str]:
    description = json.loads((folder / "manifest.json").read_text())["description"]
    return [branch["prompt"] for branch in description["extractor"]["branches"]]


def test_features_of_plain_images(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(f"input={images}", f"output={output}", "techniques=[prompt,controlnet]", "layers=legacy", "timestep=261")
    assert sorted(path.name for path in output.iterdir()) == ["a.safetensors", "b.safetensors", "manifest.json"]
    assert prompts(output) == ["a photo"]
    with pytest.raises(CacheError, match="timestep: 261 → 50"):
        run(f"input={images}", f"output={output}", "techniques=[prompt,controlnet]", "layers=legacy")


@pytest.mark.thorough
def test_captions_of_a_file(images: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"image": "a.png", "caption": "a red house"}\n{"image": "b.png", "caption": "a car"}\n')
    told = (f"input={images}", "techniques=prompt", f"technique.prompt.file={captions}")
    run(*told, f"output={tmp_path / 'told'}")
    run(*told[:2], "technique.prompt.text=a car", f"output={tmp_path / 'car'}")
    same = [(tmp_path / "told" / f"{name}.safetensors").read_bytes()[-1000:] for name in "ab"]
    car = [(tmp_path / "car" / f"{name}.safetensors").read_bytes()[-1000:] for name in "ab"]
    assert [one == other for one, other in zip(same, car, strict=True)] == [False, True]


@pytest.mark.thorough
def test_prompts_of_a_data_set(images: Path, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data")
    data = ("dataset=folder", f"dataset.root={root}", "dataset.crop_size=16", "dataset.prompt_simple=a drawing")
    run(*data, f"input={images}", f"output={tmp_path / 'out'}", "techniques=none")
    assert prompts(tmp_path / "out") == ["a drawing"]


def test_processes_that_cannot_be_started(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = (f"input={images}", f"output={tmp_path / 'out'}", "techniques=none")
    with pytest.raises(ConfigError, match=r"tool\.processes=0"):
        run(*here, "tool.processes=0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="torchrun"):
        run(*here, "tool.processes=2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match=r"0 ≤ RANK < WORLD_SIZE"):
        run(*here)


@pytest.mark.thorough
def test_training_keeps_features_on_disk(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    short = ("trainer.max_steps=2", "dataset.train=4")
    settings = (*SMALL, *short, "techniques=none", f"cache.folder={cache}")
    metrics = [train(composed(*settings), list(settings), tmp_path / name) for name in ("first", "second")]
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(files) == 4 + 4 + 4
    assert metrics[0] == metrics[1]
    extractor = Components(runs.resolve(composed(*settings)), str(tmp_path)).extractor
    assert isinstance(extractor, MemoryCache)
    assert isinstance(extractor.extractor, DiskCache)
    with pytest.raises(CacheError, match="timestep"):
        _ = Components(runs.resolve(composed(*settings, "timestep=51")), str(tmp_path)).extractor


@pytest.mark.parametrize("name", ["extract", "caption", "generate", "pseudo_label", "student_set"])
def test_a_tool_s_settings_are_its_function_s(name: str) -> None:
    """Every key is a parameter, with the function's own default; the engine injects components and runs processes."""
    node = composed(f"tool={name}", name="eval").tool
    parameters = inspect.signature(get_object(node._target_)).parameters
    keys = {key: node._get_node(key)._value() for key in node if key not in ("_target_", "processes")}
    assert keys.keys() <= parameters.keys()
    assert parameters.keys() - keys.keys() <= set(PARTS)
    own = {key: value for key, value in keys.items() if not str(value).startswith(("${", "???"))}
    assert own == {key: parameters[key].default for key in own}
