"""The two command lines, ``train.py`` and ``eval.py``: Hydra, readable errors, and the table after a sweep.

torch, lightning and diffusers take seconds to import: they are imported by the job, when the configuration is composed.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.engine.checks.redaction import redacted_override, refuse_secrets
from gate_lightning.engine.command.command_help import asked_help, help_text
from gate_lightning.engine.command.command_hints import hint, without_choice
from gate_lightning.engine.command.configuration import config_folder, with_data
from gate_lightning.engine.command.launch import check_started, refuse_own_times, run_apart, runs_apart
from gate_lightning.engine.command.renamed import refuse_old_names
from gate_lightning.engine.command.sweep_jobs import own_overrides
from gate_lightning.engine.command.used_keys import keys_of_task
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.run_lock import occupied
from gate_lightning.errors import CacheError, ConfigError, GateError, Interrupted
from gate_lightning.utils.console import HEADLINE, brief
from gate_lightning.utils.signals import Stop, say, stop_in, stopped_text, stopping

__all__ = ["eval_main", "train_main"]

log = logging.getLogger(__name__)

#: what Hydra and libraries meet on disks that are full and in folders that are read-only
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
#: sweep folder → configuration of one of its runs, of the sweeps this process ran
_sweeps: dict[Path, DictConfig] = {}


def train_main() -> int:
    """``train.py``; returns the exit status."""

    def run(config: DictConfig) -> float | None:
        from gate_lightning.engine.jobs.training import train

        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        sweep = hydra_config.mode == RunMode.MULTIRUN
        _check_started(config, folder)
        if runs_apart(config.get("trainer")):
            with _job_of_sweep(config, folder):
                return run_apart(folder, own_overrides(config, keys_of_task)).get(config.monitor)
        with _job_of_sweep(config, folder) if sweep else nullcontext(), occupied(folder), _recorded(folder):
            choices = OmegaConf.to_container(hydra_config.runtime.choices)
            metrics = train(config, own_overrides(config, keys_of_task), folder, choices)  # type: ignore[arg-type]
        return metrics.get(config.monitor)

    return _command("train", run)


def _check_started(config: DictConfig, folder: Path) -> None:
    """Refuse to begin in processes that would not train together; nothing is left of the run folder, which is new, nor
    of that of its day where it was the first one."""
    try:
        check_started(config.get("trainer"))
    except ConfigError as error:
        with suppress(OSError):  # another process has removed it, or it is no new one
            folder.rmdir()
        _remove_empty_day(config, folder)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            say(f"ConfigError: {error}")
        raise


@contextmanager
def _none_empty(config: DictConfig, folder: Path) -> Iterator[None]:
    """Context that removes a folder by date and time that nothing was written to: results are elsewhere, or there are
    none."""
    try:
        yield
    finally:
        if _by_date(config, folder):
            with suppress(OSError):
                folder.rmdir()
            _remove_empty_day(config, folder)


def _remove_empty_day(config: DictConfig, folder: Path) -> None:
    """Remove the folder of a run's day where it is empty: the run's would have been its first one."""
    if _by_date(config, folder):
        with suppress(OSError):
            folder.parent.rmdir()


def _by_date(config: DictConfig, folder: Path) -> bool:
    """True if a run folder was named by date and time, and by nobody."""
    return folder.parent.parent.resolve() == Path(config.paths.outputs).resolve()


def _command(name: str, run: Callable[[DictConfig], Any]) -> int:
    """``run`` with the command line's configuration, and the tables of sweeps of runs; returns the exit status."""
    try:
        return _guarded(_composed(name, run), name)
    finally:
        # also after a failed job: Hydra's on_multirun_end would not be called then
        for folder, config in _sweeps.items():
            _tell_of_sweep(folder, config)


@contextmanager
def _job_of_sweep(config: DictConfig, folder: Path) -> Iterator[None]:
    """Context of a job that makes a run folder: the console has a line on what it sets, and one on its end."""
    hydra_config = HydraConfig.get()
    log.info("job %s: %s", hydra_config.job.num, _job_text(hydra_config, folder), extra=HEADLINE)
    try:
        _sweeps[Path(hydra_config.sweep.dir).resolve()] = config
        with brief():
            yield
    except Interrupted as error:  # Hydra would start the next run
        raise Stop(error.signal) from error
    except GateError as error:
        log.error("job %s failed: %s: %s", hydra_config.job.num, type(error).__name__, error)
        raise


def _job_text(hydra_config: Any, folder: Path) -> str:
    """Settings of a job of a sweep that are not the same for all of them, and the place of its log."""
    own = [item for item in hydra_config.overrides.task if item not in sys.argv]
    return f"{' '.join(map(redacted_override, own)) or 'defaults'} ({folder / f'{hydra_config.job.name}.log'})"


def _composed(name: str, run: Callable[[DictConfig], Any]) -> Callable[[], None]:
    """``run`` with the configuration of the command line.

    An error goes round Hydra, which would print a line of its own about it. Not where Hydra has to know of it: other
    launchers run jobs in other processes, other sweepers decide by it what to run next.
    """
    failed: list[Exception] = []
    sweeps: list[bool] = []

    @hydra.main(version_base="1.3", config_path=str(config_folder()), config_name=name)
    def job(config: DictConfig) -> Any:
        logging.captureWarnings(True)
        try:
            return run(config)
        except Exception as error:  # raised again below
            plain = (str(getattr(HydraConfig.get(), part)._target_) for part in ("launcher", "sweeper"))
            if not all(target.startswith("hydra._internal.core_plugins.") for target in plain):
                raise
            failed.append(error)
            sweeps.append(HydraConfig.get().mode == RunMode.MULTIRUN)
            return None
        finally:
            logging.captureWarnings(False)

    def composed_and_run() -> None:
        job()
        if any(sweeps):
            raise GateError(f"{len(failed)} of the jobs failed: see above, and the status.json of their folders")
        if failed:
            raise failed[0]

    return composed_and_run


def _tell_of_sweep(folder: Path, config: DictConfig) -> None:
    """Write table and report of a sweep, unless it was stopped before its first run had begun."""
    from gate_lightning.callbacks.report import try_report
    from gate_lightning.engine.folder.description import publish_comparison
    from gate_lightning.tools.comparison.compare import compare

    if not any(folder.glob("*/status.json")):
        return
    try:
        log.info("%s", compare(runs=str(folder), output=str(folder)))
        publish_comparison(folder, config)
    except GateError as error:  # the runs themselves are told of, and the exit status is theirs
        log.warning("no table of the sweep in %s: %s", folder, error)
        return
    if OmegaConf.select(config, "callbacks.report") is not None:
        try_report(folder)


def eval_main() -> int:
    """``eval.py``; returns the exit status."""

    def run(config: DictConfig) -> None:
        from gate_lightning.engine.jobs.evaluation import evaluate, measures_untrained

        hydra_config = HydraConfig.get()
        overrides, folder = list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir)
        untrained = measures_untrained(config)
        # with output= the run folders are not those of the sweep
        swept = hydra_config.mode == RunMode.MULTIRUN and config.output is None and untrained
        if untrained:
            _check_started(config, folder)
        with _job_of_sweep(config, folder) if swept else nullcontext():
            if untrained:
                from gate_lightning.engine.jobs.untrained import keys_measured

                overrides = own_overrides(config, keys_measured)
            if runs_apart(config.get("trainer")):
                run_apart(folder, overrides)
                return
            with _recorded(folder) if swept else _none_empty(config, folder):
                evaluate(config, overrides, folder)

    return _command("eval", run)


class _recorded:  # noqa: N801 - reads as a statement
    """Write the failure of a run into its folder, so that a table of runs can tell why a row is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, KeyboardInterrupt):
            return  # stopped before there was a run
        before = runs.read_json(self.folder / "status.json") or {}
        if before.get("status") in ("done", "interrupted") and not isinstance(error, Interrupted):
            return  # e.g. a resume that was refused must not mark a finished run as failed
        if isinstance(error, Interrupted):
            self._write("interrupted", str(error))
            return
        message = f"{type(error).__name__}: {error}"
        self._write("failed", message)
        if not isinstance(error, GateError):
            # a single run's is raised once more, to the console
            own = {"file_only": HydraConfig.get().mode != RunMode.MULTIRUN}
            log.error("run %s failed: %s", self.folder, message, exc_info=error, extra=own)

    def _write(self, status: str, message: str) -> None:
        with suppress(CacheError):  # the disk is full, say: what went wrong first is what is said
            runs.write_json(self.folder / "status.json", {"status": status, "message": message})


def _guarded(job: Callable[..., Any], name: str = "train") -> int:
    """Our own errors and Hydra's are printed as a message; anything else is a bug and keeps its traceback.

    Args:
        job: what Hydra makes of the command's function.
        name: of the command, for ``--help``.

    Returns:
        The exit status.
    """
    # else Hydra prints a traceback of its own and exits before the message below
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason for tracebacks
    try:
        with stopping():
            if asked_help(sys.argv[1:]):
                sys.stdout.write(help_text(name, sys.argv[1:]) + "\n")
                return 0
            refuse_old_names(sys.argv[1:])
            refuse_secrets(sys.argv[1:])
            refuse_own_times(sys.argv[1:])
            sys.argv[1:] = with_data(sys.argv[1:])
            job()
    except (GateError, HydraException, OmegaConfBaseException) as error:
        # what Hydra wrapped says more than Hydra; an error of ours says all it has to
        wrapped = not isinstance(error, GateError) and isinstance(error.__cause__, GateError)
        detail = error.__cause__ if wrapped else error
        say(f"{type(detail).__name__}: {detail}{hint(error)}")
        return 128 + detail.signal if isinstance(detail, Interrupted) else 2
    except ValueError as error:
        if "Config group override must be" not in str(error):
            raise
        say(f"ConfigError: {without_choice(sys.argv[1:])}")
        return 2
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        say(f"{error.filename or 'a file'} cannot be written: {error.strerror}. Free space, or choose another folder")
        return 2
    except (KeyboardInterrupt, SystemExit) as error:
        number = stop_in(error)
        if number is None:
            raise
        say(f"{error.__cause__ or stopped_text(number)}")
        return 128 + number
    return 0
