"""Gains of runs: what a technique adds to plain features of equal timestep, layers, seed and other settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.comparison.rows import ComparedRun
from gate_lightning.utils.text import read_json

__all__ = ["Gain", "ReadBranch", "gains_of"]

#: settings that a branch says, and says better
_OF_BRANCH = ("techniques", "technique", "ablation", "timestep", "layers", "ensemble")
_EXAMPLE = 'python train.py -m "techniques=none,prompt,controlnet,lora" timestep=50,100,200 seed=0,1,2'


@dataclass(frozen=True)
class ReadBranch:
    """The single branch that a run reads.

    Attributes:
        steering: its techniques with their settings, and the number of noises, as text that can be compared.
        plain: whether it has no technique and one noise.
        name: of the branch.
        timestep: that it reads.
        layers: layer ids.
    """

    steering: str
    plain: bool
    name: str
    timestep: int
    layers: tuple[str, ...]

    @classmethod
    def of(cls, branch: Any, where: Path) -> ReadBranch:
        """Of a branch as files describe it.

        Raises:
            DataError: it is no such description.
        """
        try:
            techniques, ensemble = list(branch["techniques"]), int(branch.get("ensemble", 1))
            layers = tuple(map(str, branch["layers"]))
            steering = json.dumps([techniques, ensemble], sort_keys=True)
            plain = not techniques and ensemble == 1
            return cls(steering, plain, str(branch.get("name", "")), int(branch["timestep"]), layers)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where} describes no branch with techniques, timestep and layers ({error!r})") from error


@dataclass(frozen=True)
class Gain:
    """Gain of a technique in one setting.

    Attributes:
        branch: what its runs read.
        settings: the other settings of its runs, seed apart.
        value: mean over seeds of the metric, less the plain run's.
        seeds: number of seeds.
    """

    branch: ReadBranch
    settings: tuple[str, ...]
    value: float
    seeds: int


def gains_of(runs: Sequence[ComparedRun], metric: str) -> tuple[list[Gain], list[str]]:
    """Gains of the finished runs with a technique; and sentences on runs that give none.

    Raises:
        ConfigError: no runs that differ in techniques, or a setting without a plain run.
        DataError: a damaged run folder.
    """
    left_out: list[str] = []
    values: dict[tuple[Any, ...], dict[str, float]] = {}
    branches: dict[tuple[Any, ...], ReadBranch] = {}
    for run in runs:
        reason = _unusable(run, metric)
        branch = None if reason else _branch_of(run.folder)
        if branch is None:
            left_out.append(f"{run.folder}: {reason or 'it reads several branches, which are no candidate'}")
            continue
        key = (branch.steering, branch.timestep, branch.layers, _others(run))
        branches[key] = branch
        seed = f"{run.seed} {run.folder.name if run.folder.name.startswith('split') else ''}"
        if seed in values.setdefault(key, {}):
            raise ConfigError(
                f"{run.folder} is a second run of equal techniques, timestep, layers, settings and seed; keep one"
            )
        values[key][seed] = run.metrics[metric]
    plain = {key[1:]: found for key, found in values.items() if branches[key].plain}
    steered = {key: found for key, found in values.items() if not branches[key].plain}
    _require_techniques(branches, plain, steered, left_out)
    missing = [key for key, found in steered.items() if not set(found) <= set(plain.get(key[1:], {}))]
    if missing:
        one = branches[missing[0]]
        raise ConfigError(
            f"no plain run beside {one.name} at t = {one.timestep} of layers {', '.join(one.layers)}, with equal seeds "
            f"and settings ({len(missing)} of {len(steered)} have none): run techniques=none with the same options"
        )
    gains = [
        Gain(branches[key], key[3], mean(value - plain[key[1:]][seed] for seed, value in found.items()), len(found))
        for key, found in steered.items()
    ]
    return gains, left_out


def _unusable(run: ComparedRun, metric: str) -> str:
    if run.status != "done":
        return f"{run.status}{': ' if run.message else ''}{run.message}"
    return "" if metric in run.metrics else f"it has no {metric}"


def _branch_of(folder: Path) -> ReadBranch | None:
    """The only branch of a run; None where it reads several.

    Raises:
        DataError: ``frozen.json`` is missing or damaged.
    """
    path = folder / "frozen.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist: {folder} is no run on frozen features")
    branches = read_json(path).get("branches")
    if not isinstance(branches, list) or not branches:
        return None
    return ReadBranch.of(branches[0], path) if len(branches) == 1 else None


def _others(run: ComparedRun) -> tuple[str, ...]:
    """Settings of a run that its branch does not say."""
    return tuple(
        sorted(item for item in run.settings if item.split("=", 1)[0].lstrip("+~").split(".")[0] not in _OF_BRANCH)
    )


def _require_techniques(
    branches: dict[tuple[Any, ...], ReadBranch], plain: Any, steered: Any, left_out: Sequence[str]
) -> None:
    found = sorted({branch.name for branch in branches.values()})
    told = f" ({len(left_out)} were left out, the first: {left_out[0]})" if left_out else ""
    if not branches or len({key[0] for key in branches}) < 2:
        raise ConfigError(
            f"the runs do not differ in techniques: they read {', '.join(found) or 'no single branch'}{told}. The gain "
            f"of techniques is that over plain features of equal timestep and layers: {_EXAMPLE}"
        )
    if not plain or not steered:
        raise ConfigError(
            f"no plain run among {', '.join(found)}{told}: gains are differences to techniques=none, with equal seed, "
            f"timestep and layers: {_EXAMPLE}"
        )
