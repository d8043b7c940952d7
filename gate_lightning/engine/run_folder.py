"""The run folder: files by which a run can be evaluated, resumed and compared later.

<run>/config.yaml         resolved configuration (no interpolation left; the trained branches as plain data)
<run>/environment.json    command, git commit, versions of this package and others
<run>/frozen.json         the frozen weights (name, revision, hash) and how they are read
<run>/status.json         running | done | failed | interrupted, with the message
<run>/metrics.json        final metrics
<run>/checkpoints/        best*.ckpt, last.ckpt
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.utils.files import differences, write_atomically
from gate_lightning.version import __version__

__all__ = [
    "INSIDE",
    "changed_keys",
    "checkpoint_of",
    "load_config",
    "located",
    "patch",
    "read_json",
    "resolve",
    "save_config",
    "write_json",
]

#: overrides that steer this invocation and are no part of a run's description
INVOCATION_KEYS = frozenset(
    {"resume", "run", "allow_changes", "input", "control_images", "output", "checkpoint", "split", "submission", "tool"}
)
#: prefix, in a configuration, of paths inside the run folder, so that a run folder can be moved
INSIDE = "run:"
#: a run's task is fixed: re-composing with another data set would flip it silently
FIXED_GROUPS = frozenset({"task"})
#: groups whose choice sets many values: a saved run has its own
COLLECTIONS = frozenset({"experiment", "ablation", "debug", "technique"})
#: the oldest version whose run folders are read: those before have other keys and class paths
OLDEST = (0, 2, 0)
PACKAGES = ("torch", "lightning", "diffusers", "transformers", "peft", "hydra-core", "torchmetrics", "numpy")


def located(place: str | None, folder: str | Path) -> str | None:
    """A path of a configuration, ``run:name`` resolved inside the run folder (None where there is no run folder)."""
    if place is None or not place.startswith(INSIDE):
        return place
    return str(Path(folder) / place.removeprefix(INSIDE)) if str(folder) else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, as `write_atomically` does."""
    write_atomically(path, f"{json.dumps(value, indent=2, sort_keys=True)}\n".encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None where there is none."""
    return json.loads(path.read_text()) if path.is_file() else None


def resolve(config: DictConfig) -> DictConfig:
    """A copy without interpolations and without Hydra's own node."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])  # resolves only inside Hydra
    try:
        plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    assert isinstance(plain, dict)
    return OmegaConf.create(plain)


def save_config(config: DictConfig, folder: Path) -> None:
    """Write ``config.yaml`` and ``environment.json`` of a new run."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    write_json(folder / "environment.json", environment())


def load_config(folder: Path) -> DictConfig:
    """The resolved configuration of a run folder.

    Raises:
        ConfigError: ``folder`` is no run folder, or one of a version whose configurations are not read.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        inside = sorted(child.name for child in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"{folder} is no run folder: it has no config.yaml (found: {inside}). "
            "Give the folder that train.py wrote, e.g. run=outputs/2026-01-01/12-00-00"
        )
    _check_version(folder)
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    return loaded


def _check_version(folder: Path) -> None:
    written = (read_json(folder / "environment.json") or {}).get("version")
    found = tuple(int(part) for part in (written or "0.1.0").split("."))
    now = tuple(int(part) for part in __version__.split("."))
    if found < OLDEST:
        raise ConfigError(
            f"{folder} was written by gate_lightning {written or 'before 0.2.0'}, with other keys and class paths than "
            f"this one ({__version__}) reads. Evaluate it with the version that wrote it, or train it anew: keys that "
            "were renamed are listed in docs/migration.md"
        )
    if found > now:
        raise ConfigError(
            f"{folder} was written by gate_lightning {written}, which is newer than this one ({__version__}): use that"
        )


def patch(saved: DictConfig, composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The saved configuration with only the command line's overrides taken from the freshly composed one.

    Group overrides (``dataset=folder``) replace the whole node. The task is never replaced.

    Args:
        saved: resolved configuration of the run.
        composed: resolved configuration that Hydra composed from the command line.
        overrides: Hydra's task overrides, e.g. ``["trainer.max_steps=10", "+note=x"]``.
    """
    result = OmegaConf.create(OmegaConf.to_container(saved))
    OmegaConf.set_struct(result, False)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~").split("@")[-1].replace("/", ".")
        root = key.split(".")[0]
        if key in INVOCATION_KEYS or root == "hydra":
            continue
        if key in COLLECTIONS:
            raise ConfigError(
                f"{override} sets many values at once, and a saved run has its own; leave it out or name single keys"
            )
        if root in FIXED_GROUPS and "." not in key:
            raise ConfigError(f"{override}: the task of a run is fixed; train a new run for another task")
        OmegaConf.update(result, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    assert isinstance(result, DictConfig)
    return result


def changed_keys(before: DictConfig, after: DictConfig) -> list[str]:
    """Dotted keys whose values differ, as ``key: old → new``."""
    return differences(OmegaConf.to_container(before), OmegaConf.to_container(after))


def checkpoint_of(folder: Path, which: str = "best") -> Path:
    """The checkpoint file of a run.

    Args:
        folder: run folder.
        which: ``best``, ``last`` or a path.

    Raises:
        ResumeError: if there is none, naming what is there.
    """
    if which not in ("best", "last"):
        path = Path(which)
        if not path.is_file():
            raise ResumeError(f"checkpoint {path} does not exist; use best, last or the path of a .ckpt file")
        return path
    checkpoints = folder / "checkpoints"
    found = sorted(checkpoints.glob(f"{which}*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        there = sorted(path.name for path in checkpoints.glob("*")) if checkpoints.is_dir() else "no checkpoints/"
        other = "; checkpoint=last takes the last one" if "last.ckpt" in there else ""
        raise ResumeError(
            f"{folder} has no {which} checkpoint (found: {there}); did it stop before its first one?{other}"
        )
    return found[-1]


def environment() -> dict[str, Any]:
    """Command, versions and commit that a result depends on."""
    return {
        "version": __version__,
        "command": sys.argv,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
