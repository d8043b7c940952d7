"""One table over many runs: mean ± standard deviation over seeds, and differences paired by seed.

Runs that differ only in ``seed`` are one row. A run that failed, or whose files are damaged, stays in the table, with
the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev

from gate_lightning.errors import ConfigError, GateError
from gate_lightning.tools.comparison.grid import grid_of, write_grid
from gate_lightning.tools.comparison.intervals import paired_interval
from gate_lightning.tools.comparison.rows import BROKEN, ComparedRun, Row, counterpart
from gate_lightning.tools.comparison.run_files import (
    column_of,
    differences_of,
    metrics_of,
    monitor_of,
    overrides_of,
    status_of,
)
from gate_lightning.tools.comparison.text import comparison_text
from gate_lightning.utils.files import write_csv
from gate_lightning.visualization.charts import comparison_chart

__all__ = ["ComparedRun", "Row", "compare", "compared_metric", "find_runs", "group_runs"]

#: overrides that are left out of a row's label
UNLABELLED = ("seed", "resume", "logger", "callbacks", "allow_changes", "hydra")
#: settings by which runs of equal overrides are told apart; of more, the folder tells
MOST_SETTINGS = 4
#: plain features, which a row is compared with by default
BASELINES = ("techniques=none", "ablation=plain")
#: monitored metric of runs that do not say theirs
MONITOR = "val/mIoU"

#: what `callbacks.throughput` logs during training
PACE = "train/images_per_second"


def compare(runs: str | Sequence[str], output: str, metric: str | None = None, baseline: str | None = None) -> str:
    """Compare run folders; writes ``comparison.csv``, ``comparison_summary.csv`` and ``comparison.png``.

    Runs that differ in two settings (a sweep over layers and timesteps, for example) also give
    ``comparison_grid.csv`` and ``comparison_grid.png``.

    Args:
        runs: a run folder, a folder that contains run folders (a sweep), or several of these.
        output: folder, made where it is missing.
        metric: name in ``metrics.json``; rows are sorted by its mean, best first. None: see `compared_metric`.
        baseline: label of the row that differences refer to; by default plain features with the row's other settings,
            if they are among the runs.

    Returns:
        The table as text.

    Raises:
        ConfigError: if there is no run folder, no run has the metric, or the baseline is no label of a finished run.
    """
    found = find_runs([runs] if isinstance(runs, str | Path) else runs)
    metric = metric or compared_metric(found)
    rows = group_runs(found, metric, baseline)
    target = Path(output)
    _write_runs(found, target / "comparison.csv")
    _write_summary(rows, metric, target / "comparison_summary.csv")
    finished = [row for row in rows if row.values]
    if finished:
        values = [list(row.values.values()) for row in finished]
        comparison_chart([row.label for row in finished], values, metric, target / "comparison.png")
    grid = grid_of([(run.settings, run.metrics.get(metric)) for run in found if run.status != BROKEN])
    if grid is not None:
        write_grid(grid, metric, target)
    return f"{metric} of {len(found)} runs (written to {target}/comparison.*)\n{comparison_text(rows, metric)}"


def find_runs(places: Iterable[str | Path], key: str = "run") -> list[ComparedRun]:
    """Run folders in or below the given places, in the order of their paths.

    Args:
        places: folders.
        key: that names them, for messages.

    Raises:
        ConfigError: if a place does not exist or holds no run.
    """
    found: list[ComparedRun] = []
    for place in map(Path, places):
        if not place.is_dir():
            raise ConfigError(
                f"{place} does not exist; give run folders or a sweep folder: {key}=multirun/<date>/<time>"
            )
        inside = [place] if _is_run(place) else sorted((p for p in place.glob("*") if _is_run(p)), key=_natural)
        inside = inside or sorted((p.parent for p in place.glob("**/status.json")), key=_natural)
        if not inside:
            raise ConfigError(f"{place} holds no run: no status.json or config.yaml in it or below")
        found += [_read(folder) for run in inside for folder in _splits(run)]
    if not found:
        raise ConfigError(f"no run given: {key}=<sweep folder> or {key}=[<run>,<run>]")
    return _labelled(_told_apart(found))


def compared_metric(found: Sequence[ComparedRun]) -> str:
    """Metric that the runs monitored; where no run has it, the same of the other split, if a run has that.

    Of runs that monitored different metrics it is the first one's that a run has. Runs that do not say what they
    monitored count as monitoring ``val/mIoU``.
    """
    monitored = list(dict.fromkeys(name for run in found if (name := _monitored(run.folder)))) or [MONITOR]
    there = {name for run in found for name in run.metrics}
    return next((name for name in (*monitored, *map(counterpart, monitored)) if name in there), monitored[0])


def _monitored(folder: Path) -> str | None:
    try:
        return monitor_of(folder)
    except GateError:  # its results are whole; the run is told of as broken, if more than this file is
        return None


def _told_apart(found: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Runs with equal overrides that were not of equal settings (another state of an experiment's file, or of the
    defaults) get those in which they differ; seeds and what is kept out of labels are none."""
    alike: dict[tuple[str, ...], list[ComparedRun]] = {}
    for run in found:
        if run.status != BROKEN:
            alike.setdefault(run.settings, []).append(run)
    further: dict[Path, tuple[str, ...]] = {}
    for runs in (runs for runs in alike.values() if len(runs) > 1):
        recorded = [_recorded(run.folder) for run in runs]
        defaults = {key: default for one in recorded for key, (_, default) in one.items()}
        values = {key: [one.get(key, (default,))[0] for one in recorded] for key, default in defaults.items()}
        varied = {key: chosen for key, chosen in values.items() if len(set(chosen)) > 1}
        for place, run in enumerate(runs) if varied else ():
            named = tuple(f"{key}={chosen[place]}" for key, chosen in varied.items())
            further[run.folder] = named if len(named) <= MOST_SETTINGS else (f"settings={run.folder.name}",)
    return [
        replace(run, settings=settings, label=" ".join(settings))
        if (settings := (*run.settings, *further.get(run.folder, ()))) != run.settings
        else run
        for run in found
    ]


def _recorded(folder: Path) -> dict[str, tuple[str, str]]:
    """Settings of a run that differ from the defaults, of those that tell runs apart."""
    try:
        found = differences_of(folder)
    except GateError:  # its results are whole
        return {}
    return {
        key: one
        for key, one in found.items()
        if key.split(".")[0] not in UNLABELLED and not key.rpartition(".")[2].endswith("seed")
    }


def _labelled(found: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Runs labelled by the settings that not all of them share."""
    known = [set(run.settings) for run in found if run.status != BROKEN]  # of the others nobody knows
    shared = set.intersection(*known) if known else set()
    labels = [" ".join(item for item in run.settings if item not in shared) for run in found]
    return [replace(run, label=label or run.label) for run, label in zip(found, labels, strict=True)]


def group_runs(found: Sequence[ComparedRun], metric: str, baseline: str | None = None) -> list[Row]:
    """Rows by label, best mean first, failed ones last.

    Raises:
        ConfigError: unknown metric or baseline, or no finished run of the baseline has the metric.
    """
    finished = [run for run in found if run.status == "done"]
    if finished and not any(metric in run.metrics for run in finished):
        known = sorted({name for run in finished for name in run.metrics})
        raise ConfigError(f"no run has the metric {metric}; they have {known}")
    grouped: dict[str, list[ComparedRun]] = {}
    for run in found:
        grouped.setdefault(run.label, []).append(run)
    if baseline is not None and baseline not in grouped:
        raise ConfigError(f"baseline={baseline} is no row; rows: {sorted(grouped)}")
    values = {label: _values(members, metric) for label, members in grouped.items()}
    if baseline is not None and not values[baseline]:
        measured = sorted(label for label, found_values in values.items() if found_values)
        raise ConfigError(f"baseline={baseline} has no finished run with {metric}; rows that have one: {measured}")
    rows = []
    for label, members in grouped.items():
        compared = baseline or _plain(members[0], grouped)
        reference = values.get(compared or "", {})
        differences = tuple(value - reference[seed] for seed, value in values[label].items() if seed in reference)
        others = _values(members, counterpart(metric))
        rows.append(Row(label, tuple(members), values[label], differences, others, compared))
    return sorted(rows, key=lambda row: -mean(row.values.values()) if row.values else math.inf)


def _plain(run: ComparedRun, grouped: Mapping[str, Sequence[ComparedRun]]) -> str | None:
    """Label of the runs of plain features whose other settings are those of ``run``; None where there are none."""
    for baseline in BASELINES:
        key = baseline.partition("=")[0]
        wanted = {item for item in run.settings if item.partition("=")[0] != key} | {baseline}
        for label, members in grouped.items():
            if set(members[0].settings) == wanted:
                return label
    return None


def _values(members: Sequence[ComparedRun], metric: str) -> dict[str, float]:
    return {run.seed: run.metrics[metric] for run in members if run.status == "done" and metric in run.metrics}


def _splits(run: Path) -> list[Path]:
    """Runs of a protocol's re-splits, which count like seeds; any other run by itself."""
    splits = [path.parent for path in run.glob("split*/status.json")]
    return sorted(splits, key=lambda path: (len(path.name), path.name)) or [run]


def _is_run(folder: Path) -> bool:
    return (folder / "status.json").is_file() or (folder / "config.yaml").is_file()


def _natural(path: Path) -> tuple[int, str]:
    return (int(path.name), "") if path.name.isdigit() else (1 << 30, str(path))


def _read(folder: Path) -> ComparedRun:
    """A run folder; one with a damaged file must not stop the table of all."""
    try:
        return _described(folder)
    except GateError as error:
        return ComparedRun(folder, folder.name, "default", BROKEN, str(error))


def _described(folder: Path) -> ComparedRun:
    status, message = status_of(folder)
    overrides = overrides_of(folder)
    seed = next((item.split("=", 1)[1] for item in overrides if item.startswith("seed=")), "default")
    kept = [item for item in overrides if item.split("=", 1)[0].lstrip("+~").split(".")[0] not in UNLABELLED]
    label = " ".join(kept) or ("defaults" if overrides or status == "done" else folder.name)
    paces = column_of(folder / "metrics.csv", PACE)
    pace = {PACE: median(paces)} if paces else {}
    # of a finished run that was gone on with and has not finished again, the file is an old one
    metrics = pace | ((metrics_of(folder / "metrics.json") if status == "done" else None) or {})
    return ComparedRun(folder, label, seed, status, message, metrics, tuple(kept))


def _write_runs(found: Sequence[ComparedRun], path: Path) -> None:
    names = sorted({name for run in found for name in run.metrics})
    lines = [
        [run.folder, run.label, run.seed, run.status, run.message, *(run.metrics.get(name, "") for name in names)]
        for run in found
    ]
    write_csv(path, ["folder", "label", "seed", "status", "message", *names], lines)


def _write_summary(rows: Sequence[Row], metric: str, path: Path) -> None:
    other = counterpart(metric)
    named = [f"{name} {moment}" for name in (metric, other, "paired difference") for moment in ("mean", "std")]
    lines = []
    for row in rows:
        numbers = (list(row.values.values()), list(row.counterparts.values()), row.differences)
        moments = [moment for values in numbers for moment in _moments(values)]
        interval = paired_interval(row.differences) or ("", "")
        lines.append([row.label, len(row.runs), len(row.failures), *moments, *interval])
    titles = ["label", "runs", "failed", *named, "95 % interval from", "to"]
    write_csv(path, titles, lines)


def _moments(values: Sequence[float]) -> tuple[float | str, float | str]:
    if not values:
        return "", ""
    return mean(values), stdev(values) if len(values) > 1 else ""
