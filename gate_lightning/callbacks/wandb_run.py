"""A run on Weights & Biases: online where that works, else into files of the run folder; it never stops a training."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shlex
import ssl
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from gate_lightning.callbacks.description import RunDescription
from gate_lightning.errors import Interrupted, first_line
from gate_lightning.utils.text import read_csv

__all__ = ["RECORDS", "WandbRun", "close_dashboards", "closing_dashboards", "sync_command"]

log = logging.getLogger(__name__)

#: folder inside a run's that has the dashboard's files
RECORDS = "wandb"
#: seconds to find the server, to begin a run on it, and to wait for uploads at the end
FIND, BEGIN, FINISH = 3.0, 20.0, 60.0
#: exit status by which Weights & Biases calls a run killed
KILLED = 255
MODES = ("online", "offline", "disabled", "dryrun", "run")
#: variable, and the place it replaces: another variable, or a folder in HOME
_CACHES = (
    ("WANDB_CACHE_DIR", "XDG_CACHE_HOME", ".cache"),
    ("WANDB_CONFIG_DIR", "XDG_CONFIG_HOME", ".config"),
    ("WANDB_DATA_DIR", "XDG_DATA_HOME", ".local/share"),
)
#: why this process goes on offline although there is a key: said once
_offline_because: list[str] = []


class WandbRun(WandbLogger):
    """Weights & Biases, begun when the trainer is set up.

    A row is a step of the training. A resumed run continues the same run: steps that it does again are not written
    again.

    Args:
        folder: run folder; ``wandb/`` in it has the files.
        project: on the server.
        run_id: of the run there.
        description: name, group, tags and settings.
        name: of the run, instead of that of the description.
        resumed: whether the run was begun before.
    """

    def __init__(
        self,
        folder: Path,
        project: str,
        run_id: str,
        description: RunDescription,
        name: str | None = None,
        resumed: bool = False,
    ) -> None:
        super().__init__(project=project, name=name or description.name, save_dir=folder, id=run_id)
        self.description = description
        self._first_step = _last_logged(folder) if resumed else 0
        self._step, self._begun = 0, False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, begun on first use in the first process; None where that failed."""
        if self._experiment is None and not self._begun:
            self._begun = True
            self._experiment = _begin(self)
            self._step = 0 if self._experiment is None else self._experiment.step
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write to the row of ``step``, or to the last one where that is written already."""
        run = self.experiment
        number = self._step if step is None else step
        if run is None or number < self._first_step:
            return
        self._step = max(number, self._step)
        run.log(dict(metrics), step=self._step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run in a process that ends with the training, which Lightning has started for it."""
        super().finalize(status)
        if multiprocessing.parent_process() is not None and "wandb" in sys.modules:
            close_dashboards(0 if status == "success" else 1)
            sys.modules["wandb"].teardown()  # wait until all is written

    @property
    def init_arguments(self) -> dict[str, Any]:
        """Arguments of ``wandb.init`` but for the mode."""
        told = self.description
        wanted = {name: self._wandb_init[name] for name in ("name", "project", "dir", "id", "resume")}
        config = {**told.values, "settings": dict(told.settings)}
        return {**wanted, "group": told.group, "job_type": told.job_type, "tags": list(told.tags), "config": config}


def close_dashboards(exit_code: int = 0) -> None:
    """End the run that wandb has open in this process, if any; say where it is.

    Args:
        exit_code: 0 for a run that went well.
    """
    wandb: Any = sys.modules.get("wandb")
    run = None if wandb is None else wandb.run
    if run is None:
        return
    place = _place(run)
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:  # of any kind: the training is done, and its files are there
        log.warning("wandb: the end of the run was not written (%s)", error)
    if place:
        log.info("wandb: %s", place)


@contextmanager
def closing_dashboards() -> Iterator[None]:
    """End the run that is begun inside, as failed or killed where that ends so."""
    try:
        yield
    except BaseException as error:
        close_dashboards(KILLED if isinstance(error, KeyboardInterrupt | SystemExit | Interrupted) else 1)
        raise
    close_dashboards()


def sync_command(folder: Path) -> str:
    """Command that uploads the offline files of a run, or of a sweep or protocol with all its runs."""
    places = [place for place in ("", "*/", "*/split*/", "split*/") if any(folder.glob(f"{place}wandb_id.txt"))]
    return f"wandb sync {' '.join(f'{shlex.quote(str(folder))}/{place}wandb' for place in places)}"


def _place(run: Any) -> str:
    """Address or folder of a run, and how it gets to the server from there; empty where it is switched off."""
    if run.disabled:
        return ""
    if not run.offline:
        return f"online, {run.url}"
    folder = Path(run.settings.sync_dir).parent.parent
    return f"offline, in {folder / 'wandb'}; upload it by: {sync_command(folder)}"


def _begin(logger: WandbRun) -> Any:
    """Begin the run: online, else offline, else not at all (None); one warning says why."""
    close_dashboards()  # another run of this process, that nobody has ended
    os.environ.setdefault("WANDB_SILENT", "true")  # what is to be known is said here
    _keep_caches_writable()
    mode = _mode()
    run = None
    if mode == "online":
        try:
            run = _init(logger, mode)
        except Exception as error:  # of any kind: a service must not stop a training
            _go_offline(f"the run could not begin on the server: {first_line(error)}")
            sys.modules["wandb"].teardown()  # what is left of the attempt holds the run's id
            mode = "offline"
    if run is None:
        try:
            run = _init(logger, mode)
        except Exception as error:  # the same
            _warn(f"nothing is written for it: {first_line(error)}")
            return None
    best = logger.description.monitor
    if best is not None:
        # a dot would lead into a nested value: PCK_0.10
        run.define_metric(best.replace(".", "\\."), summary=f"{logger.description.mode},last")
    place = _place(run)
    if place and logger.description.job_type == "train":  # else it ends at once, and that is said
        log.info("wandb: %s", place)
    return run


def _init(logger: WandbRun, mode: Any) -> Any:
    import wandb

    limits = {"init_timeout": BEGIN, "finish_timeout": FINISH}
    chosen = {name: value for name, value in limits.items() if f"WANDB_{name.upper()}" not in os.environ}
    return wandb.init(mode=mode, settings=wandb.Settings(**chosen), **logger.init_arguments)


def _mode() -> str:
    """Mode of the run: that of ``WANDB_MODE``; online only where there is a key and the server answers."""
    said = os.environ.get("WANDB_MODE")
    if said is not None and said not in MODES:
        _warn(f"WANDB_MODE is {said!r}, expected online, offline or disabled; the run goes on offline")
        said = os.environ["WANDB_MODE"] = "offline"  # wandb refuses to work with any other value
    if said in ("offline", "dryrun", "disabled") or _offline_because:
        return "disabled" if said == "disabled" else "offline"
    import wandb

    try:
        known = wandb.login(prompt=False, verify=False)
        server = str(wandb.setup().settings.base_url)
    except Exception as error:  # of any kind, a setting it cannot read for example
        _go_offline(first_line(error))
        return "offline"
    if not known:
        if said is not None:
            _go_offline("there is no key: wandb login")
        return "offline"
    reason = _unreachable(server)
    if reason is not None:
        _go_offline(f"{server} does not answer: {reason}")
        return "offline"
    return "online"


def _unreachable(server: str) -> str | None:
    """Reason why nothing answers at an address; None where something does, whatever it says."""
    try:
        urllib.request.urlopen(server, timeout=FIND).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        # certificates are wandb's business, which may have others
        return None if isinstance(reason, ssl.SSLError) else str(reason)
    return None


def _go_offline(reason: str) -> None:
    """Note for all runs of this process, and warn once."""
    if not _offline_because:
        _warn(f"{reason}; the run goes on offline")
    _offline_because.append(reason)


def _warn(text: str) -> None:
    log.warning("wandb: %s", text)


def _keep_caches_writable() -> None:
    """Send what wandb keeps in HOME to the folder for temporary files, where HOME cannot be written."""
    for name, xdg, usual in _CACHES:
        folder = Path(os.environ.get(xdg) or f"~/{usual}")
        try:
            folder = folder.expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except (OSError, RuntimeError):  # no such user
            writable = False
        if not writable:
            os.environ.setdefault(name, str(Path(tempfile.gettempdir()) / f"wandb-{os.getuid()}"))


def _last_logged(folder: Path) -> int:
    """The last step of ``metrics.csv``, 0 where there is none."""
    path = folder / "metrics.csv"
    rows = read_csv(path, columns=("step",)) if path.is_file() else []
    return int(rows[-1]["step"]) if rows else 0
