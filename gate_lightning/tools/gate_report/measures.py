"""Measures of a run of ``task=content_shift``, at the settings of other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.gate_report.points import Gain, ReadBranch
from gate_lightning.utils.text import read_json

__all__ = ["FILE", "ShiftMeasures"]

#: file of the run that is read
FILE = "content_shift.json"
#: stands for the mean over timesteps and layers
ALL = "all"
_MAKE = "python eval.py task=content_shift"

#: timestep, layer → value
_Cells = dict[tuple[Any, Any], float]


@dataclass(frozen=True)
class _Measure:
    """A measure: whether larger is better, and its values by candidate."""

    better: bool
    of: Mapping[str, _Cells]


class ShiftMeasures:
    """Values of a ranking by content shift for every candidate, timestep and layer.

    Args:
        folder: its run folder.

    Raises:
        ConfigError: it is no such run folder.
        DataError: its file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        if not self.path.is_file():
            there = "does not exist" if not folder.is_dir() else f"has no {FILE}"
            raise ConfigError(f"shift={folder} {there}; expected the run folder of a ranking: {_MAKE}")
        found = read_json(self.path)
        try:
            self._candidates = {
                name: (ReadBranch.of(one, self.path), str(one["kind"]), str(one["plain"]))
                for name, one in found["candidates"].items()
            }
            self.measures = _measures(found["lines"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{self.path} is damaged: {error!r}; make it anew: {_MAKE}") from error

    def candidate_of(self, branch: ReadBranch) -> str | None:
        """Name of the candidate that steers as a branch does; None if there is none."""
        names = [
            name
            for name, (own, kind, _) in self._candidates.items()
            if kind != "shuffled" and own.steering == branch.steering
        ]
        return names[0] if names else None

    def improvements(self, gains: Sequence[Gain]) -> dict[str, list[float | None]]:
        """Measure → how much better than plain features every gain's candidate is by it; None where that is undefined.

        Better is larger, whatever the measure. Of several layers it is the mean over them. A measure without layers has
        one figure for all layers, and where it is not by timestep, for all timesteps.

        Raises:
            ConfigError: a technique, timestep or layer of the gains is not in the ranking.
        """
        self._require(gains)
        found: dict[str, list[float | None]] = {}
        for name, measure in self.measures.items():
            found[name] = [self._improvement(measure, gain.branch) for gain in gains]
        return found

    def _improvement(self, measure: _Measure, branch: ReadBranch) -> float | None:
        candidate = self.candidate_of(branch)
        assert candidate is not None  # required before
        plain = self._candidates[candidate][2]
        if candidate not in measure.of or plain not in measure.of:
            return None
        own, other = (_value(measure.of[name], branch) for name in (candidate, plain))
        if own is None or other is None:
            return None
        return own - other if measure.better else other - own

    def _require(self, gains: Sequence[Gain]) -> None:
        """Raise ConfigError for what was not ranked."""
        strange = list(dict.fromkeys(g.branch.name for g in gains if self.candidate_of(g.branch) is None))
        if strange:
            raise ConfigError(
                f"{self.path.parent} ranked {', '.join(self._candidates)}, and not {', '.join(strange)} of the sweep "
                f'with its settings: rank the techniques of the sweep, {_MAKE} "techniques=[…]"'
            )
        # of measures that are by layer: every timestep and layer of the sweep
        cells = {cell for one in self.measures.values() for values in one.of.values() for cell in values}
        by_layer = {(t, layer) for t, layer in cells if layer not in (None, ALL)}
        wanted = {(g.branch.timestep, layer) for g in gains for layer in g.branch.layers}
        missing = wanted - by_layer
        if by_layer and missing:
            timesteps = sorted({t for t, _ in wanted} - {t for t, _ in by_layer})
            layers = sorted({layer for _, layer in wanted} - {layer for _, layer in by_layer})
            said = [f"timesteps {', '.join(map(str, timesteps))}"] if timesteps else []
            said += [f"layers {', '.join(layers)}"] if layers else []
            every = ",".join(map(str, sorted({t for t, _ in wanted})))
            chosen = ",".join(sorted({layer for _, layer in wanted}))
            lacking = " and ".join(said) or "some timesteps and layers"
            raise ConfigError(
                f"{self.path.parent} has no measures of {lacking} of the sweep: "
                f'{_MAKE} "task.timesteps=[{every}]" "layers=[{chosen}]"'
            )


def _measures(lines: Sequence[Mapping[str, Any]]) -> dict[str, _Measure]:
    found: dict[str, tuple[bool, dict[str, _Cells]]] = {}
    for line in lines:
        _, of = found.setdefault(str(line["measure"]), (bool(line["higher_is_better"]), {}))
        value, cells = line["value"], of.setdefault(str(line["candidate"]), {})
        if value is not None:
            cells[line["timestep"], line["layer"]] = float(value)
    return {name: _Measure(better, of) for name, (better, of) in found.items()}


def _value(cells: _Cells, branch: ReadBranch) -> float | None:
    """Figure of a candidate at the branch's timestep and layers."""
    if any(layer not in (None, ALL) for _, layer in cells):
        values = [cells.get((branch.timestep, layer)) for layer in branch.layers]
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None
    # no layers: by timestep, else one figure of all
    for key in ((branch.timestep, None), (ALL, ALL), (None, None)):
        if key in cells:
            return cells[key]
    return None
