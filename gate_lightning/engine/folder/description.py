"""Description of a run for dashboards: its name, its group, and its settings as plain values."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.callbacks.description import RunDescription
from gate_lightning.callbacks.loggers import wandb_logger
from gate_lightning.callbacks.reports.dashboards import publish_sweep
from gate_lightning.callbacks.wandb_run import closing_dashboards
from gate_lightning.engine.checks.redaction import redacted, redacted_override
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.tools.comparison.run_files import overrides_of

__all__ = ["CHOICES", "choices_of", "described", "publish_comparison", "update_choices"]

#: file of a run folder: group → the option that was chosen, which composing the configuration forgets
CHOICES = "choices.json"
#: groups that are no part of what a run computes
_UNTOLD = frozenset({"paths", "callbacks", "logger", "trainer", "local", "technique", "debug", "tool"})
#: top-level keys that are no settings of a run
_BOOKKEEPING = frozenset({"resume", "allow_changes", "trained_on", "trust"})
#: values that runs are found by
_TAGGED = ("task", "dataset", "backbone", "techniques", "experiment", "ablation")
#: characters that Weights & Biases takes for a name and for a tag
_LONGEST_NAME, _LONGEST_TAG = 128, 64
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


def choices_of(chosen: Mapping[str, Any]) -> dict[str, str]:
    """Options of the groups, of Hydra's ``runtime.choices``.

    >>> choices_of({"backbone": "tiny", "ablation": None, "hydra/launcher": "basic", "technique": ["prompt"]})
    {'backbone': 'tiny'}
    """
    return {
        str(group): option
        for group, option in chosen.items()
        if isinstance(option, str) and group not in _UNTOLD and not str(group).startswith("hydra/")
    }


def update_choices(folder: Path, overrides: Sequence[str], choices: Mapping[str, str]) -> None:
    """Note groups that a resumed run chooses anew."""
    named = {item.split("=", 1)[0].lstrip("+") for item in overrides}
    changed = {group: option for group, option in choices.items() if group in named}
    if changed:
        runs.write_json(folder / CHOICES, (runs.read_json(folder / CHOICES) or {}) | changed)


def described(config: DictConfig, folder: Path) -> RunDescription:
    """The description of a run.

    Args:
        config: resolved configuration.
        folder: run folder, which has its overrides, its choices and its command already.
    """
    settings = redacted(OmegaConf.to_container(config))
    overrides, above = [redacted_override(item) for item in overrides_of(folder)], folder.absolute().parent
    values = _values(settings, folder) | {"overrides": " ".join(overrides), "run_folder": str(folder)}
    checkpoint = (settings.get("callbacks") or {}).get("checkpoint") or {}
    return RunDescription(
        name=_name(folder, overrides),
        group=_group_name(above) if _is_group(above) else None,
        tags=tuple(dict.fromkeys(_tag(key, values[key]) for key in _TAGGED if values.get(key))),
        values=values,
        settings=settings,
        monitor=checkpoint.get("monitor"),
        mode=checkpoint.get("mode", "max"),
    )


def _sweep_described(folder: Path) -> RunDescription:
    """The description of what runs of a sweep give together."""
    name = _group_name(folder.absolute())
    return RunDescription(f"summary of {name}", group=name, job_type="summary", tags=("summary",))


def _tag(key: str, value: Any) -> str:
    return (f"techniques={value}" if key == "techniques" else str(value))[:_LONGEST_TAG]


@rank_zero_only
def publish_comparison(folder: Path, config: DictConfig) -> None:
    """Show the tables and charts of a sweep in a wandb run of their own, if its runs are there, too.

    Args:
        folder: of the sweep, after its runs were compared.
        config: of one of its runs.
    """
    name = f"{wandb_logger.__module__}.{wandb_logger.__name__}"
    for node in (config.get("logger") or {}).values():
        if node is not None and node.get("_target_") == name:
            with closing_dashboards():
                logger = wandb_logger(str(folder), node.project, description=_sweep_described(folder))
                publish_sweep(folder, logger)


def _values(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Plain top-level values, lists as text, chosen options by their groups; the command."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key in _BOOKKEEPING or isinstance(value, dict):
            continue
        values[key] = value if isinstance(value, str | int | float) or value is None else _text(value)
    environment = runs.read_json(folder / "environment.json") or {}
    command = {"command": shlex.join(map(str, environment.get("command", []))), "version": environment.get("version")}
    return values | {"seed": settings.get("seed")} | _choices(folder) | command


def _choices(folder: Path) -> dict[str, Any]:
    """Chosen options; a re-split has those of its protocol."""
    places = (folder / CHOICES, folder.absolute().parent / CHOICES)
    return next((runs.read_json(path) for path in places if path.is_file()), {})


def _text(value: Any) -> str:
    """A list of names as on the command line, without brackets; anything else as JSON.

    >>> _text(["prompt", "controlnet"]), _text([{"name": "a", "timestep": 5}])
    ('prompt,controlnet', '[{"name": "a", "timestep": 5}]')
    """
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ",".join(map(str, value))
    return json.dumps(value)


def _name(folder: Path, overrides: list[str]) -> str:
    """Name that tells the run from others: of a sweep the overrides that differ, else all; and its split."""
    parent = folder.absolute().parent
    if _is_group(parent) and not (parent / "multirun.yaml").is_file():
        name = f"{folder.name} {_name(parent, overrides_of(parent))}"
    else:
        shared = _sweep_overrides(parent)
        name = " ".join(item for item in overrides if item not in shared) or folder.name
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]} …"


def _is_group(folder: Path) -> bool:
    """True if a folder is of a sweep, or of a protocol of re-splits."""
    return (folder / "multirun.yaml").is_file() or (folder / "config.yaml").is_file()


def _sweep_overrides(sweep: Path) -> list[str]:
    """Overrides as on the command line of the sweep, of which its runs share those that name one value."""
    path = sweep / "multirun.yaml"
    if not path.is_file():
        return []
    try:
        return [str(item) for item in OmegaConf.select(OmegaConf.load(path), "hydra.overrides.task") or []]
    except OmegaConfBaseException:  # interpolations that only Hydra resolves
        return []


def _group_name(folder: Path) -> str:
    """Name of a folder, with that of the one above where that is a date or a sweep.

    >>> _group_name(Path("multirun/2026-01-01/12-00-00")), _group_name(Path("/tmp/layers"))
    ('2026-01-01 12-00-00', 'layers')
    """
    if (folder.parent / "multirun.yaml").is_file():
        return f"{_group_name(folder.parent)} {folder.name}"
    return f"{folder.parent.name} {folder.name}" if _DATE.fullmatch(folder.parent.name) else folder.name
