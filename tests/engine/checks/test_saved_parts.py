"""A run folder runs no code: what its config.yaml may name, through every group and every way in."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine.checks.saved_parts import check_parts
from gate_lightning.engine.command.configuration import config_folder
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.trained_run import load_run
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from gate_lightning.tools.comparison.compare import compare
from tests.support.composition import SMALL, composed

#: places for a part in a configuration
PLACES = (
    *("task", "task.data", "task.inference", "backbone", "backbones.second", "dataset", "head.decode"),
    *("head.auxiliary", "loss", "loss.losses[0]", "optimizer", "scheduler", "amalgamation", "technique.mine"),
    *("technique.controlnet.function", "techniques[0].controlnet.function", "trained_on.branches[0].lora"),
    *("callbacks.mine", "callbacks.checkpoint.monitor", "logger.mine", "trainer", "trainer.strategy"),
    *("trainer.plugins[0]", "trainer.profiler", "cache", "paths", "seed_of_mine", "tool"),
)
#: what makes a file, if it is called
CALLS: dict[str, dict[str, Any]] = {
    "subprocess.Popen": {"args": ["touch", "SENTINEL"]},
    "os.system": {"command": "touch SENTINEL"},
    "builtins.eval": {"_args_": ["open('SENTINEL', 'w')"]},
    "builtins.open": {"file": "SENTINEL", "mode": "w"},
    "pathlib.Path": {"_args_": ["SENTINEL"]},
    "pathlib.Path.touch": {"_args_": ["SENTINEL"]},
    "torch.load": {"f": "SENTINEL", "weights_only": False},
    "torch.save": {"obj": 1, "f": "SENTINEL"},
    "torch.hub.load": {"repo_or_dir": "SENTINEL", "model": "x", "source": "local"},
    "torch.utils.data.dataset.os.mkdir": {"path": "SENTINEL"},
    "torch.optim.lr_scheduler.Counter": {},
    "numpy.load": {"file": "SENTINEL", "allow_pickle": True},
    "pickle.load": {"file": "SENTINEL"},
    "functools.partial": {"_args_": [{"_target_": "os.mkdir"}, "SENTINEL"]},
    "hydra.utils.get_method": {"path": "os.mkdir"},
    "hydra.utils.call": {"config": {"_target_": "os.mkdir", "path": "SENTINEL"}},
    "importlib.import_module": {"name": "antigravity"},
    "mmengine.registry.Registry.build": {},
    "lightning.pytorch.loggers.CSVLogger": {"save_dir": "SENTINEL"},
    # through the package, and its functions that are no parts
    "gate_lightning.engine.folder.run_folder.subprocess.run": {"args": ["touch", "SENTINEL"]},
    "gate_lightning.utils.files.os.mkdir": {"path": "SENTINEL"},
    "gate_lightning.data.files.images.np.load": {"file": "SENTINEL"},
    "gate_lightning.callbacks.loggers.Path": {"_args_": ["SENTINEL"]},
    "gate_lightning.engine.parts.components._built": {"node": {"_target_": "os.mkdir", "path": "SENTINEL"}},
    "gate_lightning.engine.command.configuration.composed": {"_args_": ["+x=1"]},
    "gate_lightning.engine.jobs.trained_run.load_run": {"folder": "SENTINEL", "trust": True},
    "gate_lightning.utils.files.append": {"path": "SENTINEL", "content": "x"},
    "gate_lightning.features.caches.disk.DiskCache": {"folder": "SENTINEL"},
    "gate_lightning.pixel_classifiers.store.PixelStore": {"folder": "SENTINEL"},
    "gate_lightning.tasks.pretraining.adapter_files.write_kohya": {"path": "SENTINEL"},
    "gate_lightning.tools.labelling.student_set.student_set": {"output": "SENTINEL"},
    "gate_lightning": {},
    "gate_lightning.heads": {},
    "gate_lightning.heads.nothing.Here": {},
}

COMPOSED = runs.resolve(composed(*SMALL))


def planted(node: Any, place: str, folder: Path) -> Path:
    """A run folder whose configuration has ``node`` at ``place``."""
    plain: Any = OmegaConf.to_container(COMPOSED)
    plain.pop("tool", None)
    steps = re.findall(r"[^.\[\]]+", place)
    *above, last = steps
    inner = plain
    for step, following in zip(above, steps[1:], strict=True):
        made: Any = [None] if following == "0" else {}
        if isinstance(inner, list):
            inner[0] = made if not isinstance(inner[0], dict | list) else inner[0]
            inner = inner[0]
        else:
            if not isinstance(inner.get(step), list if following == "0" else dict):
                inner[step] = made
            inner = inner[step]
    inner[0 if last == "0" else last] = node
    runs.save_config(OmegaConf.create(plain), folder)
    return folder


def call(target: str, sentinel: Path) -> dict[str, Any]:
    """A node that calls ``target``, which then leaves the sentinel."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(one) for key, one in value.items()}
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.replace("SENTINEL", str(sentinel)) if isinstance(value, str) else value

    return {"_target_": target, **filled(CALLS[target])}


@pytest.mark.parametrize("place", PLACES)
def test_no_group_runs_a_program(place: str, tmp_path: Path) -> None:
    folder, sentinel = tmp_path / "run", tmp_path / "sentinel"
    planted(call("subprocess.Popen", sentinel), place, folder)
    with pytest.raises(ConfigError, match=re.escape(f"config.yaml: {place}._target_ is 'subprocess.Popen'")) as error:
        load_run(folder)
    assert "trust=true" in str(error.value)
    assert not sentinel.exists()


@pytest.mark.parametrize("target", CALLS)
@pytest.mark.parametrize(
    "flags", [{}, {"_partial_": True, "_recursive_": False, "_convert_": "all"}], ids=["", "flags"]
)
def test_nothing_else_is_called(target: str, flags: dict[str, Any], tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    # of a run's configuration only what is looked at before any part
    config = {"task": COMPOSED.task, "callbacks": {"mine": {**call(target, sentinel), **flags}}}
    runs.save_config(OmegaConf.create(config), tmp_path)
    with pytest.raises(ConfigError, match=rf"callbacks\.mine\._target_ is '{re.escape(target)}'"):
        load_run(tmp_path)
    assert not sentinel.exists()


def test_arguments_without_names_are_refused(tmp_path: Path) -> None:
    """A logger of this package, say, that is given its folder so: no name tells that it is one to write to."""
    node = {"_target_": "gate_lightning.callbacks.loggers.RunLog", "_args_": [str(tmp_path / "elsewhere")]}
    folder = planted(node, "logger.csv", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"logger\.csv\._args_ gives arguments without names.*trust=true"):
        load_run(folder)


@pytest.mark.parametrize(
    "target", [1, None, ["os.system"], {"a": 1}, "os", "os:system", "os.system\n", " torch.optim.SGD"]
)
def test_a_target_is_a_name(target: Any) -> None:
    with pytest.raises(ConfigError, match=r"head\._target_"):
        check_parts({"head": {"_target_": target}}, Path("config.yaml"))


@pytest.mark.parametrize(
    "node",
    [{"act_cfg": {"type": "subprocess.Popen"}}, {"init_cfg": {"type": "Pretrained", "checkpoint": "x"}}],
    ids=["type", "weights"],
)
def test_types_of_mmsegmentation_are_names_in_its_registry(node: dict[str, Any]) -> None:
    decode = {"_target_": "gate_lightning.heads.mmseg.MMSegHead", "type": "FCNHead"}
    check_parts({"head": {"decode": decode}}, Path("config.yaml"))
    with pytest.raises(ConfigError, match=r"head\.decode"):
        check_parts({"head": {"decode": {**decode, **node}}}, Path("config.yaml"))


@pytest.mark.parametrize(
    "enter",
    [
        lambda folder: evaluate(composed(f"run={folder}", name="eval"), [f"run={folder}"], folder / "out"),
        lambda folder: evaluate(composed(f"run={folder}", "input=x", name="eval"), [f"run={folder}"], folder / "out"),
        lambda folder: evaluate(
            composed(f"run={folder}", "tool=pseudo_label", "input=x", "output=y", name="eval"), [], folder / "out"
        ),
        lambda folder: train(composed(f"resume={folder}"), [f"resume={folder}"], folder),
        lambda folder: load_run(folder),
    ],
    ids=["evaluate", "predict", "tool", "resume", "load_run"],
)
def test_every_way_in_is_closed(enter: Callable[[Path], object], tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    folder = planted(call("subprocess.Popen", sentinel), "task", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"task\._target_"):
        enter(folder)
    compare(runs=str(folder), output=str(tmp_path / "table"))
    assert not sentinel.exists()


def test_parts_of_conf_are_built() -> None:
    named: set[str] = set()
    for path in config_folder().rglob("*.yaml"):
        if path.parent.name != "tool":  # a run has none
            named |= set(re.findall(r"^[^#]*\b_target_: ([\w.]+)", path.read_text(), re.MULTILINE))
    named.remove("gate_lightning.engine.checks.redaction.HideSecrets")  # of Hydra's own node
    assert len(named) > 50
    for target in named:
        check_parts({"x": {"_target_": target}}, Path("config.yaml"))
    for target in ("torch.optim.RMSprop", "torch.optim.lr_scheduler.OneCycleLR"):
        check_parts({"x": {"_target_": target}}, Path("config.yaml"))


def test_a_part_of_one_s_own_is_built_with_trust(tmp_path: Path) -> None:
    folder = planted(
        {"_target_": "tests.examples.my_head.Perceptron", "_partial_": True}, "head.decode", tmp_path / "run"
    )
    with pytest.raises(ConfigError, match=r"head\.decode\._target_ is 'tests"):
        runs.load_config(folder)
    assert runs.load_config(folder, trust=True).head.decode._partial_ is True
