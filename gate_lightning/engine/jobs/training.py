"""Train, resume, and report: what ``train.py`` does with a composed configuration."""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from gate_lightning.callbacks.report import try_report
from gate_lightning.callbacks.state.checkpoint import RunCheckpoint
from gate_lightning.callbacks.state.export import Export
from gate_lightning.callbacks.wandb_run import closing_dashboards
from gate_lightning.engine.checks.precision import tell_types
from gate_lightning.engine.command.launch import check_here
from gate_lightning.engine.command.settings import save_settings
from gate_lightning.engine.command.used_keys import check_overrides, keys_of_run, keys_of_task, recorded
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.checkpoints import require_sound, saved_step
from gate_lightning.engine.folder.description import CHOICES, choices_of, update_choices
from gate_lightning.engine.folder.references import follow, save_references
from gate_lightning.engine.folder.run_lock import require_new
from gate_lightning.engine.jobs.automatic import with_choice
from gate_lightning.engine.jobs.resplits import repeats_of, train_repeats
from gate_lightning.engine.jobs.run_end import tell, tell_callbacks
from gate_lightning.engine.parts.components import Components, task_class_of
from gate_lightning.errors import ConfigError, Interrupted, ResumeError
from gate_lightning.ops.exact import exact_gradients
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tools.comparison.run_files import metrics_of
from gate_lightning.utils.commands import override
from gate_lightning.utils.console import taking, without
from gate_lightning.utils.lightning_private import count_last_step, leave_signals
from gate_lightning.utils.signals import stop_in

__all__ = ["train"]

log = logging.getLogger(__name__)


def train(
    config: DictConfig, overrides: Sequence[str], run_folder: Path, choices: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Train as configured, or go on with ``config.resume``, then evaluate the best checkpoint.

    Args:
        config: composed configuration (interpolations allowed).
        overrides: command-line overrides of the task configuration.
        run_folder: where everything is written; of a resumed run, its old folder.
        choices: group → chosen option, of Hydra's ``runtime.choices``; dashboards show them.

    Returns:
        Final metrics, as in ``metrics.json``.

    Raises:
        ConfigError: if an override sets what the task does not read.
        ResumeError: if a resumed run's configuration or world size changed and ``allow_changes`` is off.
        Interrupted: if a signal stopped the run; the message says where, and how to go on.
    """
    with _stoppable(run_folder, lambda: "before the first step"), closing_dashboards():
        return _begun(config, overrides, run_folder, choices_of(choices or {}))


def _begun(
    config: DictConfig, overrides: Sequence[str], run_folder: Path, choices: Mapping[str, str]
) -> dict[str, float]:
    """See `train`."""
    if config.resume is None:
        _once(require_new, run_folder)
        read = keys_of_task(config)
        _require_training(config, read)
        check_overrides(overrides, read, str(config.task._target_).rsplit(".", 1)[-1])
        repeats_of(config)
        resolved = recorded(runs.resolve(config), read)
        check_here(resolved.get("trainer"))
        tell_types(config, resolved)
        resolved = with_choice(resolved, run_folder)
        components = Components(resolved, str(run_folder), training=True)
        checkpoint, described = None, components.record_card()
        _once(runs.save_config, described, run_folder)
        _once(runs.save_overrides, overrides, run_folder)
        _once(save_references, config, run_folder)
        _once(save_settings, described, run_folder)
        _once(runs.write_json, run_folder / CHOICES, choices)
    else:
        checkpoint, described = None, _resumed_config(config, overrides, run_folder)
        _once(update_choices, run_folder, overrides, choices)
        finished = _results_of_finished(run_folder, described)
        if finished is not None:
            return finished
        check_here(described.get("trainer"))
        components = Components(described, str(run_folder), training=True)
    if repeats_of(described) > 1:
        _once(runs.write_json, run_folder / "status.json", {"status": "running"})
        metrics = train_repeats(described, overrides, run_folder, partial(_train_split, config.allow_changes))
        _once(runs.write_json, run_folder / "status.json", {"status": "done"})
        if (described.get("callbacks") or {}).get("report") is not None:
            _once(try_report, run_folder)
        return metrics
    if config.resume is not None:
        checkpoint = _last_state(run_folder)
    return _train(components, checkpoint, config.allow_changes)


def _require_training(config: DictConfig, read: Collection[str]) -> None:
    task = task_class_of(config)
    if task.training_free and "optimizer" not in read:
        raise ConfigError(f"{task.__name__} trains nothing; it is measured with the same options by python eval.py")


def _require_weights(task: BaseTask) -> None:
    if task.training_free and not task.has_weights:
        raise ConfigError(
            f"{type(task).__name__} has nothing to train here: several branches (techniques=all) with "
            "amalgamation=weighted, or a head with weights (head=conv_descriptors, bn_linear), are trained. Without "
            "weights, measure it with the same options by python eval.py"
        )


def _train_split(allow_changes: bool, config: DictConfig, folder: Path, checkpoint: Path | None) -> dict[str, float]:
    """One of several re-splits."""
    return _train(Components(config, str(folder), training=True), checkpoint, allow_changes)


def _train(components: Components, checkpoint: Path | None, allow_changes: bool) -> dict[str, float]:
    """One run, from its beginning or from a checkpoint."""
    began, described, run_folder = time.monotonic(), components.config, Path(components.run_folder)
    _once(runs.write_json, run_folder / "status.json", {"status": "running"})
    lightning.seed_everything(described.seed, workers=True, verbose=False)
    datamodule = components.connected_datamodule
    if allow_changes:
        datamodule.allow_changes = True
    with taking(f"reading the data set {datamodule.card.name} and checking its files"):
        datamodule.setup("fit")  # broken data are found before the backbone is loaded
    task = components.task
    _require_weights(task)
    if allow_changes:
        task.allowed_changes = frozenset({"frozen", "world_size"})
    _once(runs.write_json, run_folder / "frozen.json", task.frozen_description())
    _check_world_size(components, run_folder, resuming=checkpoint is not None, allowed=allow_changes)
    log.info("run folder: %s", run_folder)
    with warnings.catch_warnings():
        # our own data module resumes mid-epoch exactly, which Lightning cannot know
        warnings.filterwarnings("ignore", message=".*resuming from a checkpoint that ended before the epoch ended.*")
        # on purpose: a protocol without validation
        warnings.filterwarnings("ignore", message=".*passed in a `val_dataloader` but have no `validation_step`.*")
        trainer = components.trainer
        _tell_of_export(task, trainer)
        leave_signals(trainer)
        with _stoppable(run_folder, lambda: _where(trainer)), exact_gradients():
            trainer.fit(task, datamodule, ckpt_path=checkpoint, weights_only=True)
    # of processes that Lightning forked nothing but the metrics comes back
    count_last_step(trainer, 0 if trainer.global_step else saved_step(run_folder / "checkpoints" / "last.ckpt"))
    with _stoppable(run_folder, lambda: "in the final evaluation"), exact_gradients():
        metrics = _final_metrics(components, run_folder)
    _once(runs.write_json, run_folder / "metrics.json", metrics)
    _once(runs.write_json, run_folder / "status.json", {"status": "done"})
    _once(tell_callbacks, trainer, task, metrics)
    tell(trainer, task, metrics, time.monotonic() - began, described.get("monitor"))
    return metrics


def _tell_of_export(task: BaseTask, trainer: lightning.Trainer) -> None:
    exports = any(isinstance(one, Export) for one in trainer.callbacks)  # type: ignore[attr-defined]
    if hasattr(task, "export") and not exports:
        log.warning(
            "callbacks.export is off: what is trained will be in checkpoints/last.ckpt alone, and no model folder"
        )


@contextmanager
def _stoppable(folder: Path, when: Callable[[], str]) -> Iterator[None]:
    """A signal where there is no step to finish, or a second one: say how to go on.

    Lightning tidies up behind a KeyboardInterrupt and leaves with an exit status.

    Args:
        folder: of the run. Where nothing has been written there is nothing to go on with, and the signal passes.
        when: says where the run is.

    Raises:
        Interrupted: instead of a KeyboardInterrupt, and of what Lightning makes of it.
    """
    own = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if own else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        number = stop_in(error)
        if number is None or not (folder / "config.yaml").is_file():
            raise
        if handler is not None:
            signal.signal(signal.SIGINT, handler)  # Lightning switched it off
        if isinstance(error.__context__, Interrupted):
            raise error.__context__ from None  # a second signal while the first one's stop was tidied up
        again = f"python train.py {override('resume', folder)}"
        raise Interrupted(f"stopped {when()} by {number.name}. Go on with: {again}", number) from None


def _where(trainer: lightning.Trainer) -> str:
    """Place, in words, of a training that was not stopped at the end of a step."""
    if trainer.state.fn == TrainerFn.FITTING and trainer.global_step:
        return f"at step {trainer.global_step}, which may not be saved,"
    return "before the first step"


def _results_of_finished(folder: Path, config: DictConfig) -> dict[str, float] | None:
    """Metrics of a run that is done and is not to be changed; None where there is something left to do."""
    status, metrics = runs.read_json(folder / "status.json"), metrics_of(folder / "metrics.json")
    if (status or {}).get("status") != "done" or metrics is None or runs.changed_keys(runs.read_config(folder), config):
        return None
    log.info(
        "%s is finished: its results are in %s. To train it further, raise trainer.max_steps and add "
        "allow_changes=true; to measure it again: python eval.py %s",
        *(folder, folder / "metrics.json", override("run", folder)),
    )
    return metrics


def _last_state(folder: Path) -> Path | None:
    """The checkpoint to go on from; None for a run that was stopped before it had written one."""
    status = (runs.read_json(folder / "status.json") or {}).get("status")
    if status != "done" and not (folder / "checkpoints" / "last.ckpt").is_file():
        log.warning("%s was stopped before its first checkpoint: training begins again from its start", folder)
        return None
    return require_sound(runs.checkpoint_of(folder, "last"))


def _resumed_config(config: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    trust = bool(config.get("trust"))
    saved, said = runs.load_config(folder, trust), runs.resolve(config)
    read = keys_of_run(saved, config)
    check_overrides(overrides, read, f"the run in {folder}")
    patched = recorded(follow(saved, runs.patch(saved, said, overrides), overrides, folder), read)
    runs.check_patched(patched, folder, said, trust=trust, training=True)
    changes = runs.changed_keys(saved, patched)
    if changes and not config.allow_changes:
        listed = "\n  ".join(changes)
        raise ResumeError(
            f"the configuration differs from the one {folder} was trained with:\n  {listed}\n"
            "Leave these overrides out, or add allow_changes=true if you mean it."
        )
    for change in changes:
        log.warning("resumed with a change: %s", change)
    return patched


def _check_world_size(components: Components, folder: Path, *, resuming: bool, allowed: bool) -> None:
    path = folder / "world_size.json"
    now, before = components.trainer.world_size, runs.read_json(path, int)
    if resuming and before is not None and before != now and not allowed:
        raise ResumeError(
            f"{folder} was trained with {before} processes and would go on with {now}: the batches would differ. "
            f"Use trainer.devices so that the world size is {before}, or add allow_changes=true."
        )
    if before is None or allowed:
        _once(runs.write_json, path, now)


def _final_metrics(components: Components, folder: Path) -> dict[str, float]:
    """Metrics of the best checkpoint on the splits that the task reports."""
    task, trainer, datamodule = components.task, components.trainer, components.datamodule
    metrics: dict[str, float] = {}
    if not task.final_splits:
        measured = {key: float(value) for key, value in trainer.callback_metrics.items() if "/" in key}
        # of a resumed run, what it had measured before and not again
        keepers = (one for one in trainer.callbacks if isinstance(one, RunCheckpoint))  # type: ignore[attr-defined]
        return next((one.metrics for one in keepers), {}) | measured
    try:
        best: Path | None = runs.checkpoint_of(folder, "best")
    except ResumeError:
        best = None
    if best is not None:
        require_sound(best)
    evaluate: dict[str, Any] = {"val": trainer.validate, "test": trainer.test}
    splits = [split for split in task.final_splits if split in datamodule.splits]
    for split in splits:
        # the console shows the tables of the last one; those of all are in their files
        with without(*(["gate_lightning.callbacks.reports"] if split != splits[-1] else [])):
            for result in evaluate[split](task, datamodule, ckpt_path=best, verbose=False):
                metrics |= {key: float(value) for key, value in result.items()}
    return metrics


@rank_zero_only
def _once(function: Any, *arguments: Any) -> None:
    """Files are written by one process."""
    function(*arguments)
