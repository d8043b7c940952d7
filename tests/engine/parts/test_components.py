"""What the composition root builds, and what it tells the data set."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import _split_of
from gate_lightning.engine.parts import trainers
from gate_lightning.engine.parts.components import Components, task_class_of
from gate_lightning.errors import ConfigError
from tests.support.composition import composed


def test_the_data_module_is_built_once_and_told_before_a_backbone_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[ImageDataModule] = []
    original = ImageDataModule.__init__
    monkeypatch.setattr(
        ImageDataModule, "__init__", lambda self, *a, **k: (built.append(self), original(self, *a, **k))[1]
    )
    sizes = ("dataset.train=2", "dataset.val=1", "dataset.test=1")
    config = composed(*sizes, "techniques=controlnet", f"technique.controlnet.folder={tmp_path}")
    components = Components(runs.resolve(config), str(tmp_path))
    saved = components.record_card()
    data = components.connected_datamodule
    assert built == [data]
    assert saved.trained_on.name == data.card.name
    assert list(saved.trained_on.classes) == list(data.labels.classes)
    assert list(components.required_inputs.control_folders.values()) == [str(tmp_path)]
    assert data._required_inputs == components.required_inputs
    assert "backbone" not in vars(components)


def test_the_split_is_one_that_the_task_is_measured_on() -> None:
    def run_of(*splits: str, checkpoint: Path | None = Path("best.ckpt")) -> Any:
        return SimpleNamespace(task=SimpleNamespace(final_splits=splits), checkpoint=checkpoint)

    both, test_only = run_of("val", "test"), run_of("test")
    assert [_split_of(both, None), _split_of(both, "test"), _split_of(test_only, None)] == ["val", "test", "test"]
    assert _split_of(run_of("val", "test", checkpoint=None), None) == "test"  # nothing was chosen by validation
    with pytest.raises(ConfigError, match="split=val: SimpleNamespace is measured on test"):
        _split_of(test_only, "val")
    with pytest.raises(ConfigError, match=r"split=train: .* is measured on val and test"):
        _split_of(both, "train")


def test_a_task_is_derived_from_the_base_of_tasks() -> None:
    assert task_class_of(composed("task=video")).continues_evaluation
    with pytest.raises(ConfigError, match=r"^task\._target_=torch\.nn\.Linear: expected a class derived from BaseTask"):
        task_class_of(composed("task._target_=torch.nn.Linear"))


@pytest.mark.parametrize(
    ("setting", "device", "exact", "warns"),
    [
        ("null", "cpu", True, True),
        ("null", "cuda", False, True),
        ("true", "cuda", True, False),
        ("false", "cpu", False, False),
    ],
)
def test_runs_are_exact_on_a_cpu_and_on_request(
    setting: str, device: str, exact: bool, warns: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.get_deterministic_debug_mode()
    monkeypatch.setattr(trainers, "CPUAccelerator", CPUAccelerator if device == "cpu" else CUDAAccelerator)
    config = composed("trainer.accelerator=cpu", "logger=none", "callbacks=quiet", f"trainer.deterministic={setting}")
    try:
        _ = Components(runs.resolve(config), str(tmp_path)).trainer
        found = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        assert found == (exact, warns)
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.set_deterministic_debug_mode(before)
