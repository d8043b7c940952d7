"""Evaluation of a task that trains nothing: ``eval.py`` with a data set, features and a task instead of a run.

It makes a run folder of its own (engine/folder/run_folder.py), without checkpoints.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from gate_lightning.callbacks.wandb_run import RECORDS, closing_dashboards
from gate_lightning.engine.checks.precision import tell_types
from gate_lightning.engine.command.launch import check_here
from gate_lightning.engine.command.settings import save_settings
from gate_lightning.engine.command.used_keys import ONLY_TRAINING, check_overrides, keys_of_run, keys_of_task, recorded
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.references import REFERENCES, follow, save_references
from gate_lightning.engine.folder.run_lock import occupied
from gate_lightning.engine.jobs.run_end import tell, tell_callbacks
from gate_lightning.engine.parts.components import Components, task_class_of
from gate_lightning.errors import ConfigError, Interrupted, ResumeError
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tools.comparison.run_files import metrics_of
from gate_lightning.utils.checks import did_you_mean
from gate_lightning.utils.commands import override
from gate_lightning.utils.console import taking
from gate_lightning.utils.files import differences, plain_json
from gate_lightning.utils.signals import stop_in

__all__ = ["go_on_untrained", "is_training_free", "keys_measured", "measure_untrained"]

log = logging.getLogger(__name__)

#: files of a run folder that say what was to be measured, and a dashboard's records of it
DESCRIPTION = frozenset(
    {
        *("config.yaml", "choices.json", "environment.json", "frozen.json", "overrides.json", "settings.json"),
        *("status.json", "lock.json", REFERENCES, RECORDS),
    }
)
#: keys of ``eval.yaml`` that it reads besides those of the task
OWN_KEYS = frozenset({"split", "output"})


def is_training_free(config: DictConfig) -> bool:
    """True if the task of a composed configuration can be measured as it is, if its parts have no weights."""
    return task_class_of(config).training_free


def keys_measured(config: DictConfig) -> frozenset[str]:
    """Top-level keys that `measure_untrained` reads."""
    return (keys_of_task(config) - ONLY_TRAINING) | OWN_KEYS


def measure_untrained(config: DictConfig, overrides: Sequence[str], folder: Path) -> dict[str, float]:
    """Measure the task of ``config`` on a split, and save what was measured and how in a run folder.

    Args:
        config: composed configuration of ``eval.yaml``.
        overrides: command-line overrides.
        folder: the run folder.

    Returns:
        Metrics, as in ``metrics.json``.

    Raises:
        ConfigError: the folder holds a run; an override sets what the task does not read; or another split.
    """
    task = task_class_of(config)
    read = keys_of_task(config) - ONLY_TRAINING
    check_overrides(overrides, keys_measured(config), f"{task.__name__}, measured without training,")
    with occupied(folder), closing_dashboards():
        _once(_require_new, folder)
        resolved = recorded(runs.resolve(config), read)
        check_here(resolved.get("trainer"))
        tell_types(config, resolved)
        components = Components(resolved, str(folder))
        split = _split_of(config.split, components)
        described = components.record_card()
        _once(runs.save_config, described, folder)
        # a split that an experiment names is no part of the configuration that is saved
        named = [] if config.split is None or any(map(_names_split, overrides)) else [f"split={config.split}"]
        _once(runs.save_overrides, [*overrides, *named], folder)
        _once(save_references, config, folder)
        _once(save_settings, described, folder)
        return _watched(components, split, folder, go_on=False)


def go_on_untrained(config: DictConfig, overrides: Sequence[str]) -> dict[str, float]:
    """Go on with a run that `measure_untrained` began and that was stopped, in its folder and with its settings.

    Args:
        config: composed configuration of ``eval.yaml``; ``resume`` names the folder.
        overrides: command-line overrides.

    Returns:
        Metrics, as in ``metrics.json``.

    Raises:
        ConfigError: it is no run folder.
        ResumeError: an override changes the run, the run was trained, or its task measures all at once.
    """
    folder = Path(config.resume)
    saved, said = runs.load_config(folder, bool(config.get("trust"))), runs.resolve(config)
    if not is_training_free(saved) or (folder / "checkpoints").is_dir():
        raise ResumeError(f"{folder} is a training: go on with it by python train.py {override('resume', folder)}")
    task = task_class_of(saved)
    if not task.continues_evaluation:
        raise ResumeError(
            f"{folder}: {task.__name__} measures all at once, there is nothing to go on with; measure it again: "
            f"python eval.py {override('run', folder)}"
        )
    read = keys_of_run(saved, config)
    check_overrides(overrides, read, f"the run in {folder}")
    patched = recorded(follow(saved, runs.patch(saved, said, overrides), overrides, folder), read)
    runs.check_patched(patched, folder, said, trust=bool(config.get("trust")))
    changes = runs.changed_keys(saved, patched)
    if changes:
        listed = "\n  ".join(changes)
        raise ResumeError(f"the settings differ from those that {folder} was begun with:\n  {listed}\nLeave them out")
    done = metrics_of(folder / "metrics.json")
    if (runs.read_json(folder / "status.json") or {}).get("status") == "done" and done is not None:
        log.info("%s is finished: its results are in %s", folder, folder / "metrics.json")
        return done
    check_here(patched.get("trainer"))
    with occupied(folder), closing_dashboards():
        components = Components(patched, str(folder))
        typed: list[str] = runs.read_json(folder / "overrides.json", list) or []
        split = next((one.partition("=")[2] for one in typed if _names_split(one)), None)
        return _watched(components, _split_of(split, components), folder, go_on=True)


def _watched(components: Components, split: str, folder: Path, go_on: bool) -> dict[str, float]:
    """See `_measured`; the run folder says how it ended, and a stopped one how to go on."""
    _once(runs.write_json, folder / "status.json", {"status": "running"})
    try:
        return _measured(components, split, folder, go_on)
    except Exception as error:  # whatever it was, tables of runs say why there is no result
        message = f"{type(error).__name__}: {error}"
        _once(runs.write_json, folder / "status.json", {"status": "failed", "message": message})
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        number = stop_in(error)
        if number is None or not components.task_class.continues_evaluation:
            raise
        text = f"stopped by {number.name}. Go on with: python eval.py {override('resume', folder)}"
        _once(runs.write_json, folder / "status.json", {"status": "interrupted", "message": text})
        raise Interrupted(text, number) from None


def _measured(components: Components, split: str, folder: Path, go_on: bool) -> dict[str, float]:
    began = time.monotonic()
    lightning.seed_everything(components.config.seed, workers=True, verbose=False)
    datamodule = components.connected_datamodule
    with taking(f"reading the data set {datamodule.card.name} and checking its files"):
        # broken data are found before the backbone is loaded
        datamodule.setup({"val": "validate", "test": "test"}[split])
    task, trainer = components.task, components.trainer
    _require_no_weights(task)
    if go_on:
        _check_frozen(task, folder)
        task.go_on(folder, split, datamodule)
    _once(runs.write_json, folder / "frozen.json", task.frozen_description())
    log.info("run folder: %s", folder)
    measure = {"val": trainer.validate, "test": trainer.test}[split]
    found = measure(task, datamodule, verbose=False)
    metrics = {name: float(value) for one in found for name, value in one.items()}
    _once(runs.write_json, folder / "metrics.json", metrics)
    _once(runs.write_json, folder / "status.json", {"status": "done"})
    _once(tell_callbacks, trainer, task, metrics)
    monitor = components.config.get("monitor")
    _once(_tell_unmeasured, monitor, split, metrics)
    tell(trainer, task, metrics, time.monotonic() - began, monitor)
    return metrics


def _tell_unmeasured(monitor: str | None, split: str, metrics: Mapping[str, float]) -> None:
    """Warn where the metric that a run is compared by is not among those that were measured."""
    wanted = f"{split}/{str(monitor).partition('/')[2]}"
    if monitor is not None and monitor not in metrics and wanted not in metrics:
        log.warning("monitor=%s was not measured; %sothers are named", monitor, did_you_mean(wanted, metrics))


def _split_of(asked: str | None, components: Components) -> str:
    there: list[str] = [split for split in components.datamodule.splits if split in ("val", "test")]
    preferred = [split for split in components.task_class.final_splits if split in there]
    wanted = asked or (preferred[-1] if preferred else "test")
    if wanted not in there:
        raise ConfigError(
            f"split={wanted}: {components.card.name} has {' and '.join(there) or 'no split'} to be measured on"
        )
    return wanted


def _names_split(override: str) -> bool:
    return override.lstrip("+").startswith("split=")


def _check_frozen(task: BaseTask, folder: Path) -> None:
    """Raise ResumeError where the features are others than those that the run was begun with."""
    before = runs.read_json(folder / "frozen.json")
    changes = [] if before is None else differences(before, plain_json(task.frozen_description()))
    if changes:
        listed = "\n  ".join(changes)
        raise ResumeError(f"{folder} was begun with other features than this run has (then → now):\n  {listed}")


def _require_no_weights(task: BaseTask) -> None:
    if task.has_weights:
        parts = sorted({name.split(".", 1)[0] for name, one in task.named_parameters() if one.requires_grad} - {"loss"})
        raise ConfigError(
            f"{' and '.join(parts)} {'has' if len(parts) == 1 else 'have'} weights that nobody has trained. Train them "
            f"by python train.py with the same options; or measure features as they are: {task.without_weights}"
        )


@rank_zero_only
def _once(function: Callable[..., Any], *arguments: Any) -> None:
    """Files are written by one process."""
    function(*arguments)


def _require_new(folder: Path) -> None:
    """Raise ConfigError where the folder holds a run, unless it failed with nothing but its description written."""
    if not (folder / "config.yaml").exists():
        return
    failed = (runs.read_json(folder / "status.json") or {}).get("status") == "failed"
    if failed and all(path.name in DESCRIPTION or path.suffix == ".log" for path in folder.iterdir()):
        return
    raise ConfigError(
        f"{folder} holds a run already, and a new one would overwrite it. Measure it again: python eval.py "
        f"{override('run', folder)}; or leave out output, for a new folder by date and time"
    )
