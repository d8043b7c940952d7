"""Protocols of several random re-splits in one command: a run folder each, in turn or on several devices.

<run>/config.yaml         of the protocol; ``repeats`` says how many splits
<run>/split0/ …           run folders like any other, each with its split.json and seeds
<run>/*.csv, metrics.json means and deviations: ``engine.resplit_tables``
"""

from __future__ import annotations

import gc
import logging
import logging.config
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gate_lightning.callbacks.wandb_run import close_dashboards
from gate_lightning.engine.command.launch import device_count, started, visible_devices
from gate_lightning.engine.command.settings import save_settings
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.checkpoints import require_sound
from gate_lightning.engine.folder.references import REFERENCES
from gate_lightning.engine.folder.resplit_tables import SEEDS, summarize
from gate_lightning.engine.folder.run_lock import occupied
from gate_lightning.errors import ConfigError, GateError, Interrupted
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.commands import override
from gate_lightning.utils.console import HEADLINE, brief
from gate_lightning.utils.processes import run_in_processes
from gate_lightning.utils.resources import share_memory
from gate_lightning.utils.signals import STOPPING, Stop, say, stop_in, stopping
from gate_lightning.utils.units import duration

__all__ = ["of_split", "repeats_of", "train_repeats"]

log = logging.getLogger(__name__)

#: configuration, run folder, checkpoint to go on from → final metrics
TrainOne = Callable[[DictConfig, Path, Path | None], dict[str, float]]


def repeats_of(config: DictConfig) -> int:
    """Number of splits of the protocol.

    Raises:
        ConfigError: no whole number from 1; several of a data set that is not split at random, or on several machines.
    """
    repeats = whole_number(runs.repeats_in(config), "repeats", 1)
    if repeats == 1:
        return 1
    data = (config.get("task") or {}).get("data") or {}
    if data.get("split_seed") is None or data.get("split_file") is not None:
        raise ConfigError(
            f"repeats={repeats} re-splits at random, and this run's split is fixed; use repeats=1, or "
            "task=label_scarce with task.data.split_seed=0 and without task.data.split_file"
        )
    if started() is not None or (config.trainer.get("num_nodes") or 1) > 1:
        raise ConfigError(
            f"repeats={repeats}: re-splits are divided among the devices of one machine, by processes that train.py "
            "starts itself: python train.py trainer.devices=<number>, without torchrun, srun and trainer.num_nodes"
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
    if device_count(one.trainer) > 1:
        one.trainer.devices = 1
        one.trainer.pop("strategy", None)
    return one


def train_repeats(config: DictConfig, overrides: Sequence[str], folder: Path, train_one: TrainOne) -> dict[str, float]:
    """Run the splits; finished ones are skipped, an interrupted one is resumed.

    Several devices (``trainer.devices``) divide them: split r is trained in process r mod their number, on a device
    of its own, as it would be alone.

    Args:
        config: resolved configuration of the protocol.
        overrides: command-line overrides.
        folder: of the protocol.
        train_one: trains and evaluates one run; must pickle.

    Returns:
        Mean and standard deviation over splits, as in ``metrics.json``.

    Raises:
        Interrupted: a signal stopped a split; its state is saved, and the message says how to go on.
        GateError: one of several processes failed.
    """
    repeats = repeats_of(config)
    count = min(device_count(config.trainer), repeats)
    if count == 1:
        _train_splits(config, overrides, folder, train_one, range(repeats))
    else:
        log.info("%d splits in %d processes", repeats, count, extra=HEADLINE)
        logs = (
            OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True) if HydraConfig.initialized() else None
        )
        shares = [(config, overrides, folder, train_one, (number, count), logs) for number in range(count)]
        again = f"Go on with all splits: python train.py {override('resume', folder)}"
        try:
            status = run_in_processes(_train_share, shares)
        except Stop as error:
            raise Interrupted(f"stopped by {error.signal.name}. {again}", error.signal) from error
        if status - 128 in STOPPING:
            raise Interrupted(f"stopped by {signal.Signals(status - 128).name}. {again}", status - 128)
        if status:
            raise GateError(f"a process that trained splits failed (exit status {status}); see above. {again}")
    return summarize(folder)


def _train_share(
    config: DictConfig,
    overrides: Sequence[str],
    folder: Path,
    train_one: TrainOne,
    place: tuple[int, int],
    logs: dict[str, Any] | None,
) -> None:
    """The splits of one of several processes, in that process.

    Args:
        config, overrides, folder, train_one: see `train_repeats`.
        place: number of this process, from 0, and of all.
        logs: for ``logging.config``.
    """
    number, count = place
    if config.trainer.get("accelerator") != "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_devices(config.trainer)[number]
    os.environ["TERM"] = "dumb"  # displays of several processes would overwrite each other
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(torch.get_num_threads() // count, 1))
    share_memory(count)
    if logs is not None:
        logging.config.dictConfig(logs)
        logging.captureWarnings(True)
    try:
        with stopping():
            _train_splits(config, overrides, folder, train_one, range(number, repeats_of(config), count), alone=False)
    except GateError as error:
        if isinstance(error, Interrupted):
            raise SystemExit(128 + error.signal) from None
        say(f"{multiprocessing.current_process().name}: {type(error).__name__}: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt as error:
        raise SystemExit(128 + (stop_in(error) or signal.SIGINT)) from None


def _train_splits(
    config: DictConfig,
    overrides: Sequence[str],
    folder: Path,
    train_one: TrainOne,
    numbers: Sequence[int],
    alone: bool = True,
) -> None:
    """Train these splits, one after another; with ``alone`` no other process trains some of them."""
    repeats = repeats_of(config)
    taken: list[float] = []
    for place, number in enumerate(numbers):
        if not alone:
            multiprocessing.current_process().name = f"split{number}"  # log lines begin with it
        one, inside = of_split(config, number), folder / f"split{number}"
        status = (runs.read_json(inside / "status.json") or {}).get("status")
        if status == "done":
            log.info("split %d of %d: done before", number + 1, repeats)
            continue
        log.info("split %d of %d: %s", number + 1, repeats, inside, extra=HEADLINE)
        started_at, last = time.monotonic(), inside / "checkpoints" / "last.ckpt"
        resumed = last.is_file()
        kept = [item for item in overrides if not item.startswith("seed=")]
        with occupied(inside):  # it can be resumed by itself, too
            runs.save_config(one, inside)
            runs.save_overrides([*kept, f"seed={config.seed}.{number}"], inside)
            runs.write_json(inside / REFERENCES, runs.read_json(folder / REFERENCES) or {})
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
            taken.append(time.monotonic() - started_at)
        left = len(numbers) - place - 1
        if alone and left:
            summarize(folder)
        if left and taken:  # by splits that ran from beginning to end
            rest = duration(left * mean(taken))
            log.info("a split took %s: about %s for the other %d", duration(taken[-1]), rest, left)
