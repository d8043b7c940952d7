"""The run folder: files by which a run can be evaluated, resumed and compared later.

<run>/config.yaml         resolved configuration (no interpolation left; the trained branches as plain data)
<run>/settings.json       what differs from the defaults (engine/command/settings.py)
<run>/choices.json        group → option chosen, which the resolved configuration does not tell
<run>/references.json     key → keys that are made of it (engine/folder/references.py)
<run>/environment.json    command, git commit, versions of this package and others
<run>/frozen.json         the frozen weights (name, revision, hash) and how they are read
<run>/status.json         running | done | failed | interrupted, with the message
<run>/metrics.json        final metrics
<run>/checkpoints/        best*.ckpt, last.ckpt
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.engine.checks.precision import choose_types
from gate_lightning.engine.checks.redaction import HIDDEN, hidden_keys, redacted, redacted_override
from gate_lightning.engine.checks.saved_config import read_saved
from gate_lightning.engine.checks.saved_parts import check_parts
from gate_lightning.engine.checks.saved_paths import INSIDE, check_links, check_writes, located, typed
from gate_lightning.engine.checks.trainer_settings import check_trainer
from gate_lightning.engine.folder.environment import environment
from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import differences, write_atomically
from gate_lightning.utils.text import read_json as read_json_file
from gate_lightning.version import __version__

__all__ = [
    "INSIDE",
    "changed_keys",
    "check_patched",
    "checkpoint_of",
    "load_config",
    "located",
    "patch",
    "read_config",
    "read_json",
    "repeats_in",
    "require_run",
    "resolve",
    "save_config",
    "save_overrides",
    "write_json",
]

#: overrides that steer this invocation and are no part of a run's description
INVOCATION_KEYS = frozenset(
    {
        *("resume", "run", "allow_changes", "trust", "input", "control_images", "output", "checkpoint", "split"),
        *("submission", "tool"),
    }
)
#: a run's task is fixed: re-composing with another data set would flip it silently
FIXED_GROUPS = frozenset({"task"})
#: groups whose choice sets many values: a saved run has its own
COLLECTIONS = frozenset({"experiment", "ablation", "debug", "technique"})
#: the oldest version whose run folders are read: those before have other keys and class paths
OLDEST = (0, 2, 0)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, as `write_atomically` does; a number that is not finite is ``null``, a secret ``***``."""
    text = json.dumps(_finite(redacted(value)), indent=2, sort_keys=True, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, kind: type = dict) -> Any:
    """The content of a JSON file of a run, or None where there is none.

    Raises:
        ResumeError: it is damaged, or no ``kind``.
    """
    try:
        return read_json_file(path, ResumeError, kind) if path.is_file() else None
    except ResumeError as error:
        raise ResumeError(
            f"{error}. Restore it from a copy of the run, or delete it, which makes it unknown"
        ) from error


#: top-level keys that hold others, and that no group of files sets as a whole
_MAPPINGS = ("cache", "features", "backbones", "callbacks", "logger", "technique", "paths")
#: of these, the ones that hold parts
_PARTS = ("backbones", "callbacks", "logger")
_SWITCHES = ("allow_changes", "trust", "submission", "tf32")


def resolve(config: DictConfig) -> DictConfig:
    """A copy without interpolations, types that are to be chosen, and Hydra's own node.

    Raises:
        ConfigError: it cannot be resolved, or a value is not of its kind.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])  # resolves only inside Hydra
    try:
        choose_types(own)
        plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"the configuration cannot be resolved: {error}") from error
    assert isinstance(plain, dict)
    for name in _MAPPINGS:
        if plain.get(name) is not None and not isinstance(plain[name], dict):
            raise ConfigError(f"{name}={plain[name]!r}: expected keys below it, as {name}.<key>=<value>")
    for name, value in ((f"{group}.{key}", one) for group in _PARTS for key, one in (plain.get(group) or {}).items()):
        if value is not None and not isinstance(value, dict):
            raise ConfigError(f"{name}={value!r}: expected keys below it, as {name}.<key>=<value>, or null for none")
    for name in _SWITCHES:
        if not isinstance(plain.get(name, False), bool):
            raise ConfigError(f"{name}={plain[name]!r}: expected true or false")
    check_trainer(plain.get("trainer"))
    if "seed" in plain:
        whole_number(plain["seed"], "seed", 0)
    return OmegaConf.create(plain)


def save_config(config: DictConfig, folder: Path) -> None:
    """Write ``config.yaml`` and ``environment.json`` of a new run; secrets are left out."""
    text = OmegaConf.to_yaml(OmegaConf.create(redacted(OmegaConf.to_container(config))))
    write_atomically(folder / "config.yaml", text.encode())
    write_json(folder / "environment.json", environment())


def save_overrides(overrides: Sequence[str], folder: Path) -> None:
    """Write ``overrides.json``; secrets are left out."""
    write_json(folder / "overrides.json", [redacted_override(item) for item in overrides])


def load_config(folder: Path, trust: bool = False) -> DictConfig:
    """The resolved configuration of a run folder, of which parts may be built.

    Args:
        folder: run folder; others may have made it.
        trust: build also parts that are not of this package.

    Raises:
        ConfigError: as `read_config` does; or parts that are not of this package.
    """
    config = read_config(folder)
    if not trust:
        check_parts(OmegaConf.to_container(config), folder / "config.yaml")
    return config


def check_patched(
    config: DictConfig, folder: Path, said: DictConfig | None, *, trust: bool = False, training: bool = False
) -> None:
    """Check what a run folder's configuration, with the command line's changes, would do.

    Args:
        config, folder, said, training: see `check_writes`.
        trust: let it write outside the run folder.

    Raises:
        ConfigError: it would; or a value is missing because it is a secret, which is not saved.
    """
    if not trust:
        check_links(folder, training)
        check_writes(config, folder, said, training)
    hidden = hidden_keys(OmegaConf.to_container(config))
    # an evaluation builds no logger
    missing = [key for key in hidden if training or key.split(".")[0] != "logger"]
    if missing:
        raise ConfigError(
            f"{folder}: {', '.join(missing)} has {HIDDEN} for a secret, which is not saved; give it again, by the name "
            f"of an environment variable: '{typed(missing[0], said)}=${{oc.env:<VARIABLE>}}'"
        )


def read_config(folder: Path) -> DictConfig:
    """The resolved configuration of a run folder, to be read: nothing of it may be built (see `load_config`).

    Raises:
        ConfigError: ``folder`` is no run folder, one of a version whose configurations are not read, or damaged.
    """
    require_run(folder)
    _check_version(folder)
    return read_saved(folder / "config.yaml")


def repeats_in(config: DictConfig) -> Any:
    """The number of re-splits, each a run of its own, that a configuration asks for; 1 where it says nothing of it."""
    return config.get("repeats", 1)


def require_run(folder: Path) -> None:
    """Raise ConfigError unless there is a run in the folder."""
    if not (folder / "config.yaml").is_file():
        inside = sorted(child.name for child in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
        raise ConfigError(
            f"{folder} is no run folder: it has no config.yaml (found: {inside}). "
            "Give the folder that train.py wrote, such as outputs/2026-01-01/12-00-00 (run=<folder>)"
        )


def _check_version(folder: Path) -> None:
    written = (read_json(folder / "environment.json") or {}).get("version")
    if written is not None and not re.fullmatch(r"\d{1,9}(\.\d{1,9}){2}", str(written)):
        raise ConfigError(f"{folder / 'environment.json'}: version is {written!r}, expected one like {__version__}")
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
    """Dotted keys whose values differ, as ``key: old → new``; of secrets that cannot be told."""
    return differences(redacted(OmegaConf.to_container(before)), redacted(OmegaConf.to_container(after)))


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
