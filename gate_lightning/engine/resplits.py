"""Protocols of several random re-splits in one command: a run folder per split, and their mean and deviation.

<run>/config.yaml         of the protocol; ``repeats`` says how many splits
<run>/split0/ …           run folders like any other, each with its split.json and seeds
<run>/splits.csv          seeds and metrics of every split, their mean and standard deviation
<run>/classes_test.csv    the same per class
<run>/metrics.json        mean of every metric, and its standard deviation as <name>_std
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.callbacks.wandb_run import close_dashboards
from gate_lightning.engine import run_folder as runs
from gate_lightning.engine.checkpoints import require_sound
from gate_lightning.engine.run_lock import occupied
from gate_lightning.engine.settings import save_settings
from gate_lightning.errors import ConfigError, DataError, GateError, Interrupted
from gate_lightning.tools.comparison.run_files import metrics_of
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.commands import override
from gate_lightning.utils.console import HEADLINE, brief
from gate_lightning.utils.files import write_csv
from gate_lightning.utils.text import read_csv
from gate_lightning.utils.units import duration, measured

__all__ = ["of_split", "repeats_of", "split_folders", "summarize", "train_repeats"]

log = logging.getLogger(__name__)

#: seeds that go up by one from split to split: the split, the order of pixels, the members' initial weights. Noise has
#: `seed` itself, so features are the same in all splits.
SEEDS = ("task.data.split_seed", "task.data.seed", "head.decode.seed", "amalgamation.seed")

#: configuration, run folder, checkpoint to go on from → final metrics
TrainOne = Callable[[DictConfig, Path, Path | None], dict[str, float]]


def repeats_of(config: DictConfig) -> int:
    """Number of splits of the protocol.

    Raises:
        ConfigError: no whole number from 1, or several of a data set that is not split at random.
    """
    repeats = whole_number(config.get("repeats", 1), "repeats", 1)
    if repeats == 1:
        return 1
    data = (config.get("task") or {}).get("data") or {}
    if data.get("split_seed") is None or data.get("split_file") is not None:
        raise ConfigError(
            f"repeats={repeats} re-splits at random, and this run's split is fixed; use repeats=1, or "
            "task=label_scarce with task.data.split_seed=0 and without task.data.split_file"
        )
    return repeats


def of_split(config: DictConfig, number: int) -> DictConfig:
    """The configuration of split ``number`` of a protocol: a run that could have been started by itself."""
    one = OmegaConf.create(OmegaConf.to_container(config))
    assert isinstance(one, DictConfig)
    one.repeats = 1
    for key in SEEDS:
        first = OmegaConf.select(one, key)
        if first is not None:
            OmegaConf.update(one, key, first + number)
    where = str(OmegaConf.select(one, "cache.folder") or "")
    if where.startswith(runs.INSIDE):
        one.cache.folder = f"{runs.INSIDE}../{where.removeprefix(runs.INSIDE)}"  # all splits share the features
    return one


def split_folders(folder: Path) -> list[Path]:
    """Run folders of the splits that were begun, in order."""
    found = [path.parent for path in folder.glob("split*/config.yaml") if path.parent.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def train_repeats(config: DictConfig, overrides: Sequence[str], folder: Path, train_one: TrainOne) -> dict[str, float]:
    """Run the splits one after another; finished ones are skipped, an interrupted one is resumed.

    Args:
        config: resolved configuration of the protocol.
        overrides: command-line overrides.
        folder: of the protocol.
        train_one: trains and evaluates one run.

    Returns:
        Mean and standard deviation over splits, as in ``metrics.json``.

    Raises:
        Interrupted: a signal stopped a split; its state is saved, and the message says how to go on.
    """
    repeats = repeats_of(config)
    taken: list[float] = []
    for number in range(repeats):
        one, inside = of_split(config, number), folder / f"split{number}"
        status = (runs.read_json(inside / "status.json") or {}).get("status")
        if status == "done":
            log.info("split %d of %d: done before", number + 1, repeats)
            continue
        log.info("split %d of %d: %s", number + 1, repeats, inside, extra=HEADLINE)
        started, last = time.monotonic(), inside / "checkpoints" / "last.ckpt"
        resumed = last.is_file()
        kept = [item for item in overrides if not item.startswith("seed=")]
        with occupied(inside):  # it can be resumed by itself, too
            runs.save_config(one, inside)
            runs.save_overrides([*kept, f"seed={config.seed}.{number}"], inside)
            save_settings(one, inside)
            try:
                with brief():
                    train_one(one, inside, require_sound(last) if resumed else None)
            except Interrupted as error:
                runs.write_json(inside / "status.json", {"status": "interrupted", "message": str(error)})
                text = f"{error} (this split), or with all splits: python train.py {override('resume', folder)}"
                raise Interrupted(text, error.signal) from error
            except GateError as error:
                runs.write_json(inside / "status.json", {"status": "failed", "message": str(error)})
                raise
        close_dashboards()
        gc.collect()  # a trainer and its components are a cycle; the next split needs their memory
        if not resumed:
            taken.append(time.monotonic() - started)
        if number + 1 < repeats:
            summarize(folder)
            if taken:  # by splits that ran from beginning to end
                left = repeats - number - 1
                rest = duration(left * mean(taken))
                log.info("a split took %s: about %s for the other %d", duration(taken[-1]), rest, left)
    return summarize(folder)


def summarize(folder: Path, metrics_name: str = "metrics.json") -> dict[str, float]:
    """Mean and sample standard deviation (n - 1) of the splits' metrics, written with the tables.

    Args:
        folder: of the protocol.
        metrics_name: name of the metrics file in the splits' folders, and of the one written to ``folder``.

    Returns:
        Metric → mean, and ``<metric>_std`` → standard deviation where there are two splits or more.
    """
    rows: list[dict[str, Any]] = []
    for inside in split_folders(folder):
        metrics = metrics_of(inside / metrics_name)
        if metrics is not None:
            config = runs.read_config(inside)
            seeds = {key: OmegaConf.select(config, key) for key in SEEDS}
            rows.append({"split": inside.name, **{k: v for k, v in seeds.items() if v is not None}, **metrics})
    names = sorted({key for row in rows for key in row if "/" in key})
    together: dict[str, float] = {}
    for name in names:
        values = [row[name] for row in rows if name in row]
        if values:
            together[name] = mean(values)
        if len(values) > 1:
            together[f"{name}_std"] = stdev(values)
    runs.write_json(folder / metrics_name, together)
    _write_splits(folder / "splits.csv", rows, names, together)
    _write_classes(folder)
    for name in names:
        value, deviation = measured(name, together.get(name, math.nan)), together.get(f"{name}_std")
        spread = "" if deviation is None else f" ± {measured(name, deviation)}".replace(" %", "")
        # 71.3 ± 2.1 %
        text = value.replace(" %", f"{spread} %") if value.endswith("%") else f"{value}{spread}"
        log.info("%-24s %s, mean of %d splits", name, text, len(rows))
    return together


def _write_splits(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], together: dict[str, float]) -> None:
    if not rows:
        return
    columns = [*(key for key in rows[0] if "/" not in key), *names]
    means = {"split": "mean", **together}
    deviations = {"split": "std", **{name: together.get(f"{name}_std", "") for name in names}}
    write_csv(path, columns, [[row.get(name, "") for name in columns] for row in (*rows, means, deviations)])


def _write_classes(folder: Path) -> None:
    """``classes_test.csv``: mean and standard deviation of every column over the splits that have the class."""
    tables = []
    for inside in split_folders(folder):
        path = inside / "classes_test.csv"
        if path.is_file():
            tables.append(_class_table(path))
    if not tables:
        return
    columns = list(next(iter(tables[0].values()), {}))
    lines = []
    for label in tables[0]:
        line: list[Any] = [label]
        for name in columns:
            values = [table[label].get(name, math.nan) for table in tables if label in table]
            values = [value for value in values if not math.isnan(value)]
            line += [mean(values) if values else math.nan, stdev(values) if len(values) > 1 else math.nan]
        lines.append(line)
    titles = ["class", *(title for name in columns for title in (name, f"{name} std"))]
    write_csv(folder / "classes_test.csv", titles, lines)


def _class_table(path: Path) -> dict[str, dict[str, float]]:
    """Class → column → value.

    Raises:
        DataError: the table is damaged.
    """
    found: dict[str, dict[str, float]] = {}
    for row in read_csv(path, columns=("class",)):
        label = row.pop("class")
        try:
            found[label] = {name: float(cell) for name, cell in row.items()}
        except ValueError as error:
            raise DataError(f"{path}: class {label} has {error}, expected numbers") from error
    return found
