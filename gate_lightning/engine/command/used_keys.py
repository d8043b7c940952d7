"""Groups and keys of a configuration that a run reads: others are refused on the command line and not recorded.

What a component of `Components` is made from is declared once, in READS. A task reads what the components named by its
constructor read, a tool what those named by its function do; and both read whatever their own settings refer to by
interpolation (``${captions}`` in a data set's file, say).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.folder.run_folder import COLLECTIONS, INVOCATION_KEYS
from gate_lightning.errors import ConfigError

__all__ = [
    "AUTO",
    "ONLY_TRAINING",
    "READS",
    "automatic_keys",
    "check_overrides",
    "keys_of_run",
    "keys_of_task",
    "keys_of_tool",
    "recorded",
    "unread",
]

_BRANCHES = ("backbone", "backbones", "technique", "techniques", "timestep", "layers", "separate_noises", "ensemble")
_INPUTS = (*_BRANCHES, "cache", "seed", "datamodule")
_ABLATIONS = ("edge_channels", "caption_channels", "ablation")
_LABELS = ("datamodule",)
#: component → top-level keys of the configuration, and other components, that it is made from
READS: Mapping[str, tuple[str, ...]] = {
    "datamodule": ("dataset",),
    "card": ("datamodule",),
    "labels": _LABELS,
    "backbone": ("backbone", "tf32"),
    "backbones": ("backbone", "backbones", "tf32"),
    "candidates": (*_BRANCHES, "seed", "datamodule"),
    "required_inputs": (*_INPUTS, "edge_channels"),
    # a row of the controls study sets keys of the extractor
    "extractor": (*_INPUTS, "noise", "posterior", "backbone_scale", "features", *_ABLATIONS),
    "amalgamation": ("amalgamation", "extractor"),
    "parts_of": ("extractor", "amalgamation", "required_inputs"),
    "backbone_groups": ("amalgamation", "extractor"),
    "head": ("head", "amalgamation", "labels"),
    "auxiliary_head": ("head", "amalgamation", "labels"),
    "loss": ("loss", "labels"),
    "auxiliary_loss": _LABELS,
    "optimizer": ("optimizer",),
    "scheduler": ("scheduler",),
}
#: components that a task is made without where it is only measured
ONLY_TRAINING = frozenset({"loss", "optimizer", "scheduler"})
#: what every run of train.py reads
_TRAINING = ("task", "datamodule", "trainer", "callbacks", "logger", "seed", "monitor", "tf32")
#: what steers an invocation, or sets keys that are checked themselves
_ALWAYS = frozenset(
    {"hydra", "resume", "allow_changes", "experiment", "local", "debug", "paths", "tool", "trained_on", "trust"}
)
#: of these, what a run folder does not record
_UNSAVED = frozenset({"tool", "trust"})
#: value of ``techniques``, ``timestep`` and ``layers`` that are chosen before training
AUTO = "auto"
_CHOSEN = ("techniques", "timestep", "layers")
_REFERENCE = re.compile(r"\$\{(?:[a-z_.]+:)?\.*([a-z_]+)")


def automatic_keys(config: DictConfig) -> tuple[str, ...]:
    """Which of ``techniques``, ``timestep`` and ``layers`` are to be chosen."""
    return tuple(key for key in _CHOSEN if config.get(key) == AUTO)


def keys_of_task(config: DictConfig) -> frozenset[str]:
    """Top-level keys that a training run reads.

    Args:
        config: composed configuration, interpolations unresolved where those are to count.
    """
    raw = _raw(config)
    components = _named_by(raw["task"]["_target_"], raw["task"])
    repeated = {"repeats"} if "split_seed" in (raw["task"].get("data") or {}) else set()
    choice = {"auto"} if automatic_keys(config) else set()
    return _closure(raw, {*_TRAINING, *components, *repeated, *choice})


def keys_of_tool(config: DictConfig) -> frozenset[str]:
    """Top-level keys that ``tool=<name>`` reads; see `keys_of_task`."""
    raw = _raw(config)
    components = _named_by(raw["tool"]["_target_"], raw["tool"])
    if "trained" in components:  # of a run: whatever it was trained with may be overridden
        return _closure(raw, {"tool", "run", "checkpoint", "control_images", *raw, *components})
    if {"datamodule", "dataset"} & components:
        components |= {"datamodule", "task"}
    return _closure(raw, {"tool", "seed", *components})


def keys_of_run(saved: DictConfig, config: DictConfig) -> frozenset[str]:
    """Top-level keys that resuming or evaluating a run reads: its own, and those of a data set named anew.

    Args:
        saved: configuration of the run folder.
        config: composed configuration; see `keys_of_task`.
    """
    return frozenset(map(str, saved)) | COLLECTIONS | INVOCATION_KEYS | _closure(_raw(config), {"datamodule"})


def check_overrides(overrides: Sequence[str], read: Iterable[str], reader: str) -> None:
    """Refuse what was set on the command line although nothing reads it.

    Args:
        overrides: Hydra's, e.g. ``["head=segformer", "+note=x", "callbacks/average=ema"]``.
        read: top-level keys that are read.
        reader: task or tool, as on the command line.

    Raises:
        ConfigError: names the overrides, and what is read.
    """
    known = {*read}
    found = unread(overrides, known)
    if found:
        named = ", ".join(dict.fromkeys(map(_root, found)))
        # of the components, those that are called as the key they are made from
        reads = sorted(name for name in known if name not in READS or name in READS[name])
        raise ConfigError(
            f"{', '.join(found)}: {reader} reads no {named}, so it would change nothing; leave it out. "
            f"It reads {', '.join(reads)}"
        )


def unread(overrides: Iterable[str], read: Collection[str]) -> list[str]:
    """Those of Hydra's overrides that set a top-level key which is not among those that are read."""
    return [override for override in overrides if _root(override) not in {*read} | _ALWAYS]


def recorded(config: DictConfig, read: Iterable[str]) -> DictConfig:
    """The configuration without what nothing reads, for the run folder."""
    kept = {*read} | (_ALWAYS - _UNSAVED)
    made = OmegaConf.masked_copy(config, [str(key) for key in config if key in kept])
    OmegaConf.set_struct(made, False)
    return made


def _named_by(target: str, settings: Mapping[str, Any]) -> set[str]:
    """Components that a constructor or function asks for and that its settings do not give."""
    try:
        wanted = inspect.signature(get_object(target)).parameters
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"_target_={target}: {' '.join(str(error).split())}") from error
    return {name for name in (*READS, "trained", "dataset") if name in wanted and name not in settings}


def _closure(raw: Mapping[str, Any], names: set[str]) -> frozenset[str]:
    """Everything that ``names`` read, directly, through components and by interpolation."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [*READS.get(name, ()), *_references(raw.get(name))]
    return frozenset(found)


def _references(node: Any) -> Iterator[str]:
    """Top-level keys that the strings of a node refer to."""
    if isinstance(node, str):
        yield from _REFERENCE.findall(node)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _raw(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _root(override: str) -> str:
    """The top-level key that an override sets: ``head``, of ``head.decode.channels=16`` or ``+head@x.y=fcn`` that x."""
    key = override.split("=", 1)[0].lstrip("+~").split("@")[-1]
    return re.split(r"[./]", key, maxsplit=1)[0]
