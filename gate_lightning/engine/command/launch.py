"""Several processes of one command: who starts them, how many train together, and where they write.

Lightning starts the others of ``trainer.devices=4`` by the command line of the first; torchrun and srun start all of
them; the re-splits of a protocol are shared out by ``engine.resplits``.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from gate_lightning.engine.checks.trainer_settings import devices_of
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.errors import ConfigError, GateError, Interrupted
from gate_lightning.tools.comparison.run_files import metrics_of
from gate_lightning.utils.commands import quoted
from gate_lightning.utils.signals import STOPPING, Stop

__all__ = [
    "agreed",
    "check_here",
    "check_started",
    "device_count",
    "refuse_own_times",
    "run_apart",
    "runs_apart",
    "started",
    "visible_devices",
]

#: seconds that processes wait for what the first one decides
PATIENCE = 600
#: settings of Hydra that make a sweep of a command line
_OF_SWEEPS = ("hydra.mode", "hydra.run.dir", "hydra.sweep", "hydra/sweeper", "hydra.launcher", "hydra/launcher")
_numbers = itertools.count()


def started() -> tuple[int, int] | None:
    """(rank, number of processes) of one job that torchrun or srun started; None for a process started by itself."""
    for mark, rank, size in (("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE"), ("SLURM_PROCID",) * 2 + ("SLURM_NTASKS",)):
        if mark in os.environ and int(os.environ.get(size, 1)) > 1:
            return int(os.environ[rank]), int(os.environ[size])
    return None


def device_count(trainer: Mapping[str, Any] | None) -> int:
    """Processes that Lightning trains with, one per device: those of ``trainer.devices`` on all nodes.

    Args:
        trainer: node of the configuration, or None.
    """
    trainer = trainer or {}
    devices: Any = trainer.get("devices", "auto")
    if str(devices) in ("auto", "-1", "None"):
        devices = 1
        if trainer.get("accelerator", "auto") not in ("cpu", "mps"):
            import torch  # slow to import

            devices = max(torch.cuda.device_count(), 1)
    elif isinstance(devices, str):  # "2", or the numbers of devices: "0,2"
        devices = int(devices) if devices.strip().isdigit() else len([*filter(None, devices.split(","))])
    elif isinstance(devices, Sequence):
        devices = len(devices)
    return int(devices) * int(trainer.get("num_nodes") or 1)


def visible_devices(trainer: Mapping[str, Any]) -> list[str]:
    """Names for CUDA_VISIBLE_DEVICES of the devices of this machine that Lightning would train on, each alone."""
    devices: Any = trainer.get("devices", "auto")
    if isinstance(devices, str) and "," in devices:
        devices = [int(one) for one in devices.split(",") if one]
    if isinstance(devices, str | int) or devices is None:
        devices = range(device_count(trainer))
    seen = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return [seen[one] if one < len(seen) else str(one) for one in devices]


def check_here(trainer: Mapping[str, Any] | None) -> None:
    """Check, before a run, that this machine has the devices that ``trainer`` asks for.

    Args:
        trainer: node of the resolved configuration, or None.

    Raises:
        ConfigError: it has not; says what there is.
    """
    trainer = trainer or {}
    accelerator = trainer.get("accelerator", "auto")
    if accelerator not in ("auto", "cpu", "gpu", "cuda") or started() is not None:
        return  # torchrun and srun may show every process one GPU
    import torch

    if accelerator in ("auto", "gpu") and torch.backends.mps.is_available():
        return
    gpus = torch.cuda.device_count() if accelerator != "cpu" and torch.cuda.is_available() else 0
    if not gpus and accelerator in ("gpu", "cuda"):
        raise ConfigError(f"trainer.accelerator={accelerator}: torch finds no GPU here; on the CPU: trainer=cpu")
    devices, given = devices_of(trainer), f"trainer.devices={trainer.get('devices', 'auto')}"
    if not gpus and (devices == -1 or isinstance(devices, list)):
        raise ConfigError(f"{given} on a CPU: expected a number of processes, or auto for one")
    most = max(devices) + 1 if isinstance(devices, list) else devices
    if gpus and most > gpus:
        there = "is 1 GPU here, number 0" if gpus == 1 else f"are {gpus} GPUs here, numbers 0 to {gpus - 1}"
        raise ConfigError(f"{given}: there {there}; trainer.devices=auto takes all")


def check_started(trainer: Mapping[str, Any] | None) -> None:
    """Refuse processes that were started together and would not train together: each would train, into one folder.

    Raises:
        ConfigError: torchrun or srun started more or fewer than ``trainer.devices`` says.
    """
    place = started()
    if place is None or device_count(trainer) == place[1]:
        return
    trainer = trainer or {}
    own = f"trainer.devices={trainer.get('devices', 'auto')}"
    if trainer.get("num_nodes", 1) != 1:
        own += f" trainer.num_nodes={trainer['num_nodes']}"
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or place[1] // int(os.environ.get("SLURM_NNODES", 1)))
    wanted = f"trainer.devices={here} ++trainer.strategy=ddp"
    if here != place[1]:
        wanted += f" ++trainer.num_nodes={place[1] // here}"
    by = "torchrun (WORLD_SIZE" if "TORCHELASTIC_RUN_ID" in os.environ else "srun (SLURM_NTASKS"
    raise ConfigError(
        f"{by}={place[1]}) started {place[1]} processes, and {own} makes {device_count(trainer)}: they would not train "
        f"together, but each by itself into one folder. Use {wanted}, or start one process"
    )


def refuse_own_times(arguments: Sequence[str]) -> None:
    """Refuse folders named by the time, which each of the processes of a job would read from its own clock.

    Raises:
        ConfigError: ``hydra.run.dir`` or ``hydra.sweep.dir`` holds ``${now:…}``, and torchrun or srun started several.
    """
    for one in arguments:
        if started() is not None and one.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) and "${now:" in one:
            raise ConfigError(
                f"{one}: every process would read its own clock, and make its own folder; name one without ${{now:…}}, "
                "or leave it out: then the first process names it"
            )


def agreed(make: Callable[[], str]) -> str:
    """Text made by the first of the processes that were started together; of a process started by itself, its own.

    All of them have to ask equally often.

    Raises:
        ConfigError: the first process could not make it.
    """
    place = started()
    if place is None:
        return make()
    store, key = _store(*place), f"gate_lightning/{next(_numbers)}"
    if place[0] > 0:
        found = str(store.get(key).decode())
        if not found:
            raise ConfigError("the first process of this job could not make the run folder; see its message")
        return found
    made = ""
    try:
        made = make()
    finally:
        store.set(key, made)
    return made


def _store(rank: int, size: int, kept: list[Any] = []) -> Any:  # noqa: B006 - of the process
    """The store that processes of a job meet at, which torch's process group uses too."""
    if not kept:
        from datetime import timedelta

        from torch.distributed.rendezvous import rendezvous

        if "TORCHELASTIC_RUN_ID" not in os.environ:
            from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

            _ = SLURMEnvironment().main_address, SLURMEnvironment().main_port  # set MASTER_ADDR and MASTER_PORT
        kept += next(rendezvous("env://", rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE)))[:1]
    return kept[0]


def runs_apart(trainer: Mapping[str, Any] | None) -> bool:
    """True if this job of a sweep is run as a command of its own: Lightning has other processes to start for it.

    It starts them by the command line, which of a sweep would be the whole sweep, once in every process.

    Raises:
        ConfigError: the job is not run in the process that has the command line.
    """
    job = HydraConfig.get()
    if job.mode != RunMode.MULTIRUN or started() is not None or device_count(trainer) == 1:
        return False
    if not str(job.launcher._target_).startswith("hydra._internal.core_plugins."):
        raise ConfigError(
            f"trainer.devices={(trainer or {}).get('devices')} in a sweep needs Hydra's own launcher "
            f"(hydra/launcher=basic); with {job.runtime.choices.get('hydra/launcher')} use trainer.devices=1"
        )
    return True


def run_apart(folder: Path, overrides: Sequence[str]) -> dict[str, float]:
    """Run the job of a sweep that is under way by ``train.py`` or ``eval.py`` of its own; its metrics.

    Args:
        folder: of the job.
        overrides: of its task configuration.

    Raises:
        Interrupted: a signal has stopped it.
        GateError: it failed; its own message is in its ``status.json``.
    """
    asked: Stop | None = None
    with subprocess.Popen(_command(folder, overrides)) as child:
        while child.poll() is None:
            try:
                child.wait()
            except Stop as error:  # the child saves its state first
                asked = error
                child.send_signal(error.signal)
    status = runs.read_json(folder / "status.json") or {}
    if child.returncode == 0:
        return metrics_of(folder / "metrics.json") or {}
    number = child.returncode - 128 if asked is None else asked.signal
    if number in STOPPING:
        number = signal.Signals(number)
        raise Interrupted(str(status.get("message", f"stopped by {number.name}")), number)
    if status.get("status") != "failed":  # it was killed
        status = {"status": "failed", "message": f"its command ended with status {child.returncode}; see above"}
        runs.write_json(folder / "status.json", status)
    raise GateError(str(status["message"]))


def _command(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Command line of the job of a sweep, alone."""
    module = sys.modules["__main__"].__spec__
    script = [str(Path(sys.argv[0]).absolute())] if module is None else ["-m", module.name]
    given = HydraConfig.get().overrides
    flags = [word for word in sys.argv[1:] if word.startswith("-") or ("=" not in word and not word.startswith("~"))]
    flags = [word for word in flags if word not in ("-m", "--multirun")]
    own = [word for word in given.hydra if not word.lstrip("+~").startswith(_OF_SWEEPS)]
    return [sys.executable, *script, *flags, *own, *overrides, f"hydra.run.dir={quoted(str(folder))}"]
