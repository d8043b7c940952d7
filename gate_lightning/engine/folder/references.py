"""Keys of a configuration that are made of others (``captions: ${captions}``), so that they follow a later change.

``config.yaml`` of a run holds values alone. What they were made of is in ``references.json`` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.folder import run_folder as runs

__all__ = ["REFERENCES", "follow", "references_in", "save_references"]

REFERENCES = "references.json"

#: a value that is another key's, which may lack one
_REFERENCE = re.compile(r"\$\{(?:oc\.select:\s*)?([\w.]+)\s*(?:,[^{}]*)?\}")
#: what draws the split of the images, too: a run is evaluated and resumed on the images that it was trained on
_STAYING = ("seed",)


def references_in(config: DictConfig) -> dict[str, list[str]]:
    """Key → dotted keys whose values are its own, of a configuration that is not resolved."""
    found: dict[str, list[str]] = {}
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    for key, value in _leaves(OmegaConf.to_container(own, resolve=False)):
        matched = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if matched is not None:
            found.setdefault(_absolute(matched[1], key), []).append(key)
    return found


def _leaves(node: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield above, node
        return
    for name, value in node.items():
        yield from _leaves(value, f"{above}.{name}" if above else str(name))


def _absolute(reference: str, key: str) -> str:
    """A reference, which counts levels by leading points, from the root."""
    name = reference.lstrip(".")
    levels = len(reference) - len(name)
    return ".".join([*key.split(".")[:-levels], name]) if levels else name


def save_references(config: DictConfig, folder: Path) -> None:
    """Write ``references.json`` of a new run, from its configuration as composed."""
    runs.write_json(folder / REFERENCES, references_in(config))


def follow(saved: DictConfig, patched: DictConfig, overrides: Sequence[str], folder: Path) -> DictConfig:
    """A run's configuration with its overrides, in which the keys that are made of an overridden one follow it.

    Those that have been given a value of their own, then or now, keep it; so do all that ``seed`` is copied to, as the
    split of the images is drawn by it.

    Args:
        saved: configuration of the run.
        patched: the same with the overrides, see `run_folder.patch`.
        overrides: Hydra's, of the command line.
        folder: the run.
    """
    references: Mapping[str, list[str]] = runs.read_json(folder / REFERENCES) or {}
    typed = {one.split("=", 1)[0].lstrip("+~") for one in overrides}
    result = DictConfig(OmegaConf.to_container(patched))
    waiting = [key for key in typed if key not in _STAYING]
    while waiting:
        key = waiting.pop()
        before, now = OmegaConf.select(saved, key), OmegaConf.select(result, key)
        for copy in references.get(key, []):
            if copy in typed or before == now or OmegaConf.select(saved, copy, default=now) != before:
                continue
            OmegaConf.update(result, copy, now, merge=False)
            waiting.append(copy)
    return result
