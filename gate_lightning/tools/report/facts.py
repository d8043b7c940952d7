"""Facts of a run for its report, from its JSON files: cost, environment, frozen weights, branches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from gate_lightning.tools.comparison.run_files import column_of
from gate_lightning.utils.text import read_json
from gate_lightning.utils.units import GIB, duration, human_size

__all__ = ["branches_of", "cost_of", "environment_of", "read_mapping", "weights_of"]

PACE = "train/images_per_second"


def read_mapping(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file that holds a mapping; None where there is no file.

    Raises:
        DataError: it is damaged.
    """
    return dict(read_json(path)) if path.is_file() else None


def cost_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Time and memory, in words."""
    found = {name: float(value) for name, value in (read_mapping(folder / "cost.json") or {}).items()}
    seconds, steps = found.get("trained_seconds"), found.get("trained_steps")
    if seconds is not None and steps:
        yield "training", f"{duration(seconds)} for {steps:.0f} steps, validation included"
        yield "a step", f"{duration(seconds / steps)} on average, validation included"
    if "seconds_per_step" in found:
        yield "a step at the beginning", f"{duration(found['seconds_per_step'])}, without validation"
    paces = column_of(folder / "metrics.csv", PACE)
    if paces:
        yield "images a second", f"{median(paces):.3g} (median of the training)"
    for name, title in (("memory_peak_gib", "memory at most"), ("device_peak_gib", "accelerator's memory at most")):
        if name in found:
            yield title, human_size(found[name] * GIB)
    if "checkpoints_gib" in found:
        yield "checkpoints", human_size(found["checkpoints_gib"] * GIB)


def environment_of(folder: Path) -> dict[str, str]:
    """Environment of the run, in words."""
    found = read_mapping(folder / "environment.json") or {}
    packages, command = found.pop("packages", {}), found.pop("command", [])
    said = {"command": " ".join(map(str, command)) if isinstance(command, list) else str(command)}
    said |= {"gate_lightning": found.pop("version", "?"), **{key: str(value) for key, value in sorted(found.items())}}
    return said | ({str(key): str(value) for key, value in packages.items()} if isinstance(packages, dict) else {})


def weights_of(node: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Part, name and revision, digest of all frozen weights in ``frozen.json``, adapters and control networks too."""
    if not isinstance(node, dict):
        return
    if isinstance(node.get("digest"), str):
        identity = " ".join(str(node[key]) for key in ("name", "revision") if node.get(key))
        yield name, identity, node["digest"]
        for part in ("adapters", "controlnets"):
            found = node.get(part)
            for key, digest in found.items() if isinstance(found, dict) else ():
                yield part.removesuffix("s"), str(key), str(digest)
        return
    for key, value in node.items():
        yield from weights_of(value, str(key))


def branches_of(node: Any) -> Iterator[dict[str, str]]:
    """Name, timestep, layers, techniques and prompt of the branches in ``frozen.json``."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key != "branches" or not isinstance(value, list):
            yield from branches_of(value)
            continue
        for branch in (one for one in value if isinstance(one, dict)):
            techniques = [_technique(one) for one in branch.get("techniques") or [] if isinstance(one, dict)]
            yield {
                "branch": str(branch.get("name", "")),
                "timestep": str(branch.get("timestep", "")),
                "techniques": ", ".join(techniques) or "none",
                "layers": ", ".join(map(str, branch.get("layers") or [])),
                "prompt": str(branch.get("prompt", "")),
            }


def _technique(found: dict[str, Any]) -> str:
    name = str(found.get("technique", "?"))
    detail = found.get("adapter") or found.get("name")
    return f"{name} ({detail})" if detail else name
