"""Run a tool: what ``eval.py tool=<name>`` does."""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.building import built
from gate_lightning.errors import ConfigError, GateError
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.console import ConsoleHandler
from gate_lightning.utils.processes import run_in_processes

__all__ = ["run_tool"]

log = logging.getLogger(__name__)

#: what a function of a tool may name, and is given then: components, and the run of ``run``
PARTS = ("backbone", "extractor", "amalgamation", "required_inputs", "parts_of", "datamodule", "trained")


def run_tool(
    config: DictConfig, output: Path, trained: Callable[[], Any] | None = None, overrides: Sequence[str] = ()
) -> None:
    """Call the function of ``tool`` with the components it names, in ``tool.processes`` processes where that is set.

    Args:
        config: composed configuration.
        output: where the tool writes if its own ``output`` is null.
        trained: loads the run that ``run`` names, for tools that read one.
        overrides: command-line overrides that ``config`` was composed with.

    Raises:
        ConfigError: processes that cannot be started, or one of them failed.
    """
    resolved = runs.resolve(config)
    if resolved.tool.get("output", "absent") is None:
        resolved.tool.output = str(output)
    processes = resolved.tool.pop("processes", 1)
    whole_number(processes, "tool.processes", 1)
    if processes == 1:
        _call(resolved, trained, overrides)
    elif "WORLD_SIZE" in os.environ:
        raise ConfigError("tool.processes is for one command that starts all processes; torchrun has started them")
    else:
        status = run_in_processes(_process, [(resolved, rank, processes) for rank in range(processes)])
        if status:
            raise ConfigError(f"one of {processes} processes failed (exit status {status}); see above")


def _call(resolved: DictConfig, trained: Callable[[], Any] | None = None, overrides: Sequence[str] = ()) -> None:
    node = OmegaConf.create({**OmegaConf.to_container(resolved.tool), "_partial_": True})  # type: ignore[dict-item]
    function: Callable[..., Any] = built(node, "tool")
    named = inspect.signature(function.func).parameters  # type: ignore[attr-defined]
    wanted = [name for name in PARTS if name in named and name not in function.keywords]  # type: ignore[attr-defined]
    report = function(**_parts(resolved, wanted, trained, overrides) if wanted else {})
    if report is not None:
        log.info("%s", report)


def _parts(
    resolved: DictConfig, wanted: Sequence[str], trained: Callable[[], Any] | None, overrides: Sequence[str]
) -> dict[str, Any]:
    from gate_lightning.engine.parts.components import Components  # slow to import, and some tools want none
    from gate_lightning.engine.parts.feature_parts import ComposedParts

    components = Components(resolved, run_folder="")
    makers: dict[str, Callable[[], Any]] = {
        "trained": trained or (lambda: None),
        "parts_of": lambda: ComposedParts(resolved, overrides),
        "datamodule": lambda: None if resolved.get("dataset") is None else components.datamodule,
    }
    return {name: makers[name]() if name in makers else getattr(components, name) for name in wanted}


def _process(resolved: DictConfig, rank: int, count: int) -> None:
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)})
    logging.basicConfig(level=logging.INFO, handlers=[ConsoleHandler()])
    try:
        _call(resolved)
    except GateError as error:
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        raise SystemExit(2) from None
