"""The Lightning trainer of a run, with its callbacks and loggers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from gate_lightning.engine.command.launch import check_here, check_started
from gate_lightning.engine.folder.description import described
from gate_lightning.engine.parts.building import built, built_group, call_with
from gate_lightning.errors import ConfigError
from gate_lightning.utils.console import leave_to_root

__all__ = ["trainer_of"]


def trainer_of(
    config: DictConfig, run_folder: str, more_callbacks: Sequence[Callback] = (), logged: bool = True
) -> Trainer:
    """Trainer of ``trainer``, with what ``callbacks`` and ``logger`` list; exact on a CPU where nothing else is asked.

    Args:
        config: resolved configuration.
        run_folder: where callbacks and loggers write.
        more_callbacks: besides those of ``callbacks``.
        logged: whether ``logger`` counts.
    """
    check_started(config.get("trainer"))
    check_here(config.get("trainer"))
    leave_to_root("lightning")
    callbacks = [*_listed(config, run_folder, "callbacks", Callback), *more_callbacks]
    description = partial(described, config, Path(run_folder))
    loggers = _listed(config, run_folder, "logger", Logger, description=description) if logged else []
    trainer: Trainer = built_group(
        config,
        "trainer",
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=run_folder,
        # our samplers shard by themselves and count every validation image exactly once
        use_distributed_sampler=False,
    )
    # with NaN, to find those who read it: nobody does
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if config.trainer.get("deterministic") is None:
        torch.use_deterministic_algorithms(isinstance(trainer.accelerator, CPUAccelerator), warn_only=True)
    return trainer


def _listed(config: DictConfig, run_folder: str, group: str, kind: type, **available: Callable[[], Any]) -> list[Any]:
    """Objects that a group lists, given what their constructors name: the run folder, and what ``available`` makes."""
    nodes = config.get(group) or {}
    made = []
    for name, node in nodes.items():
        if node is None or "_target_" not in node:
            continue
        one = built(node, f"{group}.{name}")
        if isinstance(one, partial):
            named = inspect.signature(one.func).parameters
            given = {name: make() for name, make in available.items() if name in named}
            one = call_with(one, run_folder=run_folder, **given)
        made.append(one)
        if not isinstance(made[-1], kind):
            raise ConfigError(f"{group}.{name} is a {type(made[-1]).__name__}, expected a {kind.__name__}")
    return made
