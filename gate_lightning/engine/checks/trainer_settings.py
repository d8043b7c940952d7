"""Checks of ``trainer``: accelerator, strategy and devices, before anything is loaded and in words of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice, whole_number

__all__ = ["check_trainer", "devices_of"]

#: Lightning's own accelerators; others can be registered
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")


def check_trainer(trainer: Mapping[str, Any] | None) -> None:
    """Check names and numbers, whatever this machine has.

    Args:
        trainer: node of the resolved configuration, or None.

    Raises:
        ConfigError: an accelerator, a strategy or devices that there cannot be; says what is expected.
    """
    trainer = trainer or {}
    accelerator, strategy = trainer.get("accelerator", "auto"), trainer.get("strategy", "auto")
    if accelerator not in _ACCELERATORS and not isinstance(accelerator, Mapping):
        from lightning.pytorch.accelerators import AcceleratorRegistry  # takes seconds, and most tools have no trainer

        names = dict.fromkeys([*_ACCELERATORS, *AcceleratorRegistry.available_accelerators()])
        check_choice(accelerator, "trainer.accelerator", names)
    if strategy != "auto" and not isinstance(strategy, Mapping):
        from lightning.pytorch.strategies import StrategyRegistry

        name = strategy.lower() if isinstance(strategy, str) else strategy  # as Lightning reads it
        check_choice(name, "trainer.strategy", ["auto", *StrategyRegistry.available_strategies()])
    whole_number(trainer.get("num_nodes", 1), "trainer.num_nodes", 1)
    devices_of(trainer)


def devices_of(trainer: Mapping[str, Any]) -> list[int] | int:
    """Numbers of devices, or how many of them: -1 for all, 0 for ``auto``.

    Raises:
        ConfigError: neither.
    """
    given = found = trainer.get("devices", "auto")
    if found == "auto":
        return 0
    if isinstance(found, str):  # "2", or the numbers "0,2"
        parts = [one.strip() for one in found.split(",") if one.strip()]
        if all(one.removeprefix("-").isdecimal() for one in parts):
            found = [int(one) for one in parts] if "," in found or not parts else int(parts[0])
    if type(found) is int and (found > 0 or found == -1):
        return found
    distinct = isinstance(found, Sequence) and 0 < len(found) == len(set(map(str, found)))
    if distinct and all(type(one) is int and one >= 0 for one in found):
        return [*found]
    raise ConfigError(
        f"trainer.devices={given!r}: expected how many devices, 1 or more, auto for all of them, or the numbers of "
        "GPUs, as [0,2]"
    )
