"""Settings of a run beside the defaults: ``settings.json`` of its folder, which reports read without Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.checks.redaction import redacted
from gate_lightning.engine.command.configuration import composed
from gate_lightning.engine.folder import run_folder as runs

__all__ = ["save_settings"]

#: what follows from the data set, and where results are written
UNTOLD = frozenset({"trained_on", "paths"})


def save_settings(config: DictConfig, folder: Path) -> None:
    """Write ``settings.json``: what is trained on what, the monitored metric, and all differences from the defaults.

    Defaults are those of ``python train.py`` without anything typed and without ``conf/local``, now: those of a later
    version may be others.

    Args:
        config: resolved configuration of the run.
        folder: of the run.
    """
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    # secrets are left out before values are compared, as they are in config.yaml
    before, now = dict(_leaves(redacted(_defaults()))), dict(_leaves(redacted(plain)))
    differences = [
        {"key": key, "value": value, **({"default": before[key]} if key in before else {})}
        for key, value in now.items()
        if key.split(".")[0] not in UNTOLD and (key not in before or before[key] != value)
    ]
    keeper = (plain.get("callbacks") or {}).get("checkpoint") or {}
    described = {
        "task": str(plain["task"]["_target_"]).rsplit(".", 1)[-1],
        "dataset": (plain.get("trained_on") or {}).get("name"),
        "monitor": plain.get("monitor"),
        "mode": keeper.get("mode", "max"),
        "seed": plain.get("seed"),
        "differences": differences,
    }
    runs.write_json(folder / "settings.json", described)


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """Resolved configuration of ``python train.py`` alone."""
    found = OmegaConf.to_container(runs.resolve(composed("~local")))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _leaves(node: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of whatever is no mapping, or an empty one."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
