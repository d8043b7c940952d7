"""Does content shift predict the gain? Measures of a ranking against the gains of a sweep, measure by measure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gate_lightning.errors import ConfigError
from gate_lightning.tools.comparison.compare import compared_metric, find_runs
from gate_lightning.tools.gate_report.correlation import FEWEST, Correlation, correlation_of
from gate_lightning.tools.gate_report.measures import ShiftMeasures
from gate_lightning.tools.gate_report.points import Gain, gains_of
from gate_lightning.utils.checks import did_you_mean, number, whole_number
from gate_lightning.utils.files import write_atomically, write_csv
from gate_lightning.visualization.scatter import scatter_chart

__all__ = ["gate_report"]

COLUMNS = ("measure", "points", "correlation", "low", "high", "within", "groups")


def gate_report(
    sweep: str | Sequence[str],
    shift: str,
    output: str,
    metric: str | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> str:
    """Correlate every measure of content shift with the gain of techniques over plain features.

    Writes ``gate_report.csv`` (measure, points, Spearman's correlation with its interval, and its mean within equal
    timestep and layers), ``gate_report_points.csv``, ``gate_report.json`` and ``images/gate_report_<measure>.png``.

    A point is a technique at a timestep and layers: the mean over seeds of its gain in the metric, and how much better
    than plain features it is by the measure there, larger always better. 1 is a measure that ranks gains as they are.

    Args:
        sweep: folder of runs of one branch each that differ in techniques, plain ones among them, also in timestep
            and layers; or several.
        shift: run folder of ``task=content_shift`` that ranked the same techniques at these timesteps and layers.
        output: folder, made where it is missing.
        metric: name in ``metrics.json``; None for what the runs monitored, or the same of the other split.
        resamples: draws of points behind every interval.
        level: share of the draws inside an interval, in (0, 1).
        seed: of the draws.

    Returns:
        The table as text.

    Raises:
        ConfigError: runs that do not differ in techniques, no plain run, a metric that none has, a ranking of others,
            or a number out of range.
        DataError: a damaged file.
    """
    whole_number(resamples, "tool.resamples", 1)
    if not 0 < number(level, "tool.level") < 1:
        raise ConfigError(f"tool.level={level}: expected a share between 0 and 1, such as 0.95")
    for key, given in {"sweep": sweep, "shift": shift}.items():
        if given is None:
            raise ConfigError(f"{key}=null: expected {'a folder of runs' if key == 'sweep' else 'a run folder'}")
    runs = find_runs([sweep] if isinstance(sweep, str | Path) else sweep, "sweep")
    known = sorted({name for run in runs for name in run.metrics})
    if metric is not None and known and metric not in known:
        raise ConfigError(
            f"tool.metric={metric}: no run has it; {did_you_mean(metric, known)}the runs have {', '.join(known)}"
        )
    metric = metric or compared_metric(runs)
    gains, left_out = gains_of(runs, metric)
    improvements = ShiftMeasures(Path(shift)).improvements(gains)
    found = {name: _correlated(values, gains, resamples, level, seed) for name, values in improvements.items()}
    found = dict(sorted(found.items(), key=lambda item: (math.isnan(item[1].value), -item[1].value)))
    folder = Path(output)
    _write(folder, metric, found, gains, improvements, left_out)
    for name, one in found.items():
        points = [(x, gain) for x, gain in zip(improvements[name], gains, strict=True) if x is not None]
        if points:
            title = f"{name}: rank correlation {_signed(one.value)} [{_signed(one.low)}, {_signed(one.high)}]"
            scatter_chart(
                [(x, gain.value, gain.branch.name, f"t = {gain.branch.timestep}") for x, gain in points],
                (f"{name}: better than plain features by", f"gain in {metric} (%)"),
                title,
                folder / "images" / f"gate_report_{name}.png",
            )
    return _text(metric, found, gains, left_out, folder)


def _correlated(
    values: Sequence[float | None], gains: Sequence[Gain], resamples: int, level: float, seed: int
) -> Correlation:
    places = [place for place, value in enumerate(values) if value is not None]
    alike = [(gain.branch.timestep, gain.branch.layers, gain.settings) for gain in gains]
    numbers = {key: place for place, key in enumerate(dict.fromkeys(alike))}
    return correlation_of(
        np.array([values[place] for place in places], dtype=np.float64),
        np.array([gains[place].value for place in places], dtype=np.float64),
        np.array([numbers[alike[place]] for place in places], dtype=np.int64),
        resamples,
        level,
        seed,
    )


def _write(
    folder: Path,
    metric: str,
    found: Mapping[str, Correlation],
    gains: Sequence[Gain],
    improvements: Mapping[str, Sequence[float | None]],
    left_out: Sequence[str],
) -> None:
    rows = [[name, *map(_cell, _numbers(one))] for name, one in found.items()]
    write_csv(folder / "gate_report.csv", COLUMNS, rows)
    points: list[dict[str, Any]] = [
        {
            "technique": gain.branch.name,
            "timestep": gain.branch.timestep,
            "layers": " ".join(gain.branch.layers),
            "settings": " ".join(gain.settings),
            "seeds": gain.seeds,
            "gain": gain.value,
            **{name: values[place] for name, values in improvements.items()},
        }
        for place, gain in enumerate(gains)
    ]
    write_csv(folder / "gate_report_points.csv", list(points[0]), [list(map(_cell, one.values())) for one in points])
    correlations = {
        name: {key: None if value != value else value for key, value in asdict(one).items()}
        for name, one in found.items()
    }
    content = {"metric": metric, "correlations": correlations, "points": points, "left_out": list(left_out)}
    write_atomically(folder / "gate_report.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def _numbers(one: Correlation) -> list[float]:
    return [one.points, one.value, one.low, one.high, one.within, one.groups]


def _cell(value: Any) -> Any:
    return "" if value is None or value != value else value


def _text(
    metric: str, found: Mapping[str, Correlation], gains: Sequence[Gain], left_out: Sequence[str], folder: Path
) -> str:
    techniques = dict.fromkeys(gain.branch.name for gain in gains)
    lines = [
        f"gain in {metric} over plain features: {len(gains)} points of {', '.join(techniques)} (written to {folder})",
        f"{'measure':<24}{'points':>7}{'correlation':>13}{'interval':>18}{'within':>8}",
    ]
    for name, one in found.items():
        interval = f"[{_signed(one.low)}, {_signed(one.high)}]"
        lines.append(f"{name:<24}{one.points:>7}{_signed(one.value):>13}{interval:>18}{_signed(one.within):>8}")
    few = [name for name, one in found.items() if one.points < FEWEST]
    lines += [f"fewer than {FEWEST} points: {', '.join(few)}"] if few else []
    lines.append("correlation: of ranks, 1 orders points by their gain; within: its mean at equal timestep and layers")
    lines += [f"{len(left_out)} runs left out: {left_out[0]}{' …' if len(left_out) > 1 else ''}"] if left_out else []
    return "\n".join(lines)


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}"
