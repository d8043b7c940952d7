"""Groups and keys of a configuration that a run reads: others are refused on the command line and not recorded.

A key that is read is named from the top (``optimizer``), with all below it; one of a group that is read in part, with
its group (``dataset.root``).

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
    "takes_dataset",
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
#: of ``dataset``: the key that is referred to, none of the whole node
_OF_DATASET = re.compile(r"\$\{(?:[a-z_.]+:)?dataset\b(?:\.([a-z0-9_]+))?")


def automatic_keys(config: DictConfig) -> tuple[str, ...]:
    """Keys of ``techniques``, ``timestep`` and ``layers`` that are to be chosen."""
    return tuple(key for key in _CHOSEN if config.get(key) == AUTO)


def keys_of_task(config: DictConfig) -> frozenset[str]:
    """Keys that a training run reads.

    Args:
        config: composed configuration, interpolations unresolved where those are to count.
    """
    raw = _raw(config)
    components = _named_by(raw["task"]["_target_"], raw["task"])
    repeated = {"repeats"} if "split_seed" in (raw["task"].get("data") or {}) else set()
    choice = {"auto"} if automatic_keys(config) else set()
    return _with_dataset_in_part(_closure(raw, {*_TRAINING, *components, *repeated, *choice}), raw)


def keys_of_tool(config: DictConfig) -> frozenset[str]:
    """Keys that ``tool=<name>`` reads; see `keys_of_task`."""
    raw = _raw(config)
    components = _named_by(raw["tool"]["_target_"], raw["tool"])
    if "trained" in components:  # of a run: whatever it was trained with may be overridden
        return _closure(raw, {"tool", "run", "checkpoint", "control_images", *raw, *components})
    if {"datamodule", "dataset"} & components:
        components |= {"datamodule", "task"}
    return _closure(raw, {"tool", "seed", *components})


def keys_of_run(saved: DictConfig, config: DictConfig) -> frozenset[str]:
    """Keys that resuming or evaluating a run reads: its own, and those of a data set named anew.

    Args:
        saved: configuration of the run folder.
        config: composed configuration; see `keys_of_task`.
    """
    read = frozenset(map(str, saved)) | COLLECTIONS | INVOCATION_KEYS | _closure(_raw(config), {"datamodule"})
    own, dataset = (saved.get("task") or {}).get("data"), saved.get("dataset")
    if own is None or not dataset or not takes_dataset(own):
        return read
    # keys of the run's own, and of what the command line is composed with, which need not be the same data set
    keys = {**dict.fromkeys(map(str, config.get("dataset") or ())), **dict.fromkeys(map(str, dataset))}
    return _with_dataset_in_part(
        read, {"task": {"data": own}, "dataset": {**keys, "_target_": dataset.get("_target_")}}
    )


def check_overrides(overrides: Sequence[str], read: Iterable[str], reader: str) -> None:
    """Refuse what was set on the command line although nothing reads it.

    Args:
        overrides: Hydra's, e.g. ``["head=segformer", "+note=x", "callbacks/average=ema"]``.
        read: keys that are read.
        reader: task or tool, as on the command line.

    Raises:
        ConfigError: names the overrides, and what is read.
    """
    known = {*read}
    found = unread(overrides, known)
    if found:
        roots = {name.partition(".")[0] for name in known}
        # of a group that is read in part, the key of it
        named = [key if _root(key) in roots else _root(key) for key in map(_key, found)]
        # of the components, those that are called as the key they are made from
        reads = sorted(name for name in known - {"dataset._target_"} if name not in READS or name in READS[name])
        raise ConfigError(
            f"{', '.join(found)}: {reader} reads no {', '.join(dict.fromkeys(named))}, so it would change nothing; "
            f"leave it out. It reads {', '.join(reads)}"
        )


def unread(overrides: Iterable[str], read: Collection[str]) -> list[str]:
    """Hydra's overrides that set nothing of what is read."""
    known = {*read} | _ALWAYS
    parts = [name for name in known if "." in name]

    def is_read(key: str) -> bool:
        # ``dataset=folder`` sets ``dataset.root``, and so does ``dataset.root.x=y``
        return _root(key) in known or any(
            f"{part}.".startswith(f"{key}.") or key.startswith(f"{part}.") for part in parts
        )

    return [override for override in overrides if not is_read(_key(override))]


def recorded(config: DictConfig, read: Iterable[str]) -> DictConfig:
    """The configuration without what nothing reads, for the run folder."""
    kept = {*read} | (_ALWAYS - _UNSAVED)
    in_part: dict[str, list[str]] = {}
    for group, _, key in (name.partition(".") for name in kept if "." in name):
        in_part.setdefault(group, []).append(key)
    made = OmegaConf.masked_copy(config, [str(key) for key in config if key in kept or key in in_part])
    OmegaConf.set_struct(made, False)
    for group, keys in in_part.items():
        made[group] = OmegaConf.masked_copy(made[group], [key for key in made[group] if key in keys])
    return made


def _with_dataset_in_part(read: frozenset[str], raw: Mapping[str, Any]) -> frozenset[str]:
    """Keys read where a task reads data sets in its own way: of ``dataset``, those that this way reads.

    A data module of a task (``task.data``) that is given the data set names the settings that it leaves out in
    ``ignored_settings``; one that is not is told what its own settings refer to.
    """
    own, dataset = raw["task"].get("data"), raw.get("dataset")
    if "dataset" not in read or not own or not dataset or own.get("_target_") in (None, dataset.get("_target_")):
        return read
    referred = set(_references({name: node for name, node in raw.items() if name != "dataset"}, _OF_DATASET))
    if "" in referred:
        return read
    if takes_dataset(own):
        left_out = {*getattr(get_object(own["_target_"]), "ignored_settings", ())} - referred
        if not left_out & {*dataset}:
            return read
        parts = {*dataset} - left_out
    else:
        parts = {"_target_"} | referred
    return (read - {"dataset"}) | {f"dataset.{key}" for key in parts}


def takes_dataset(own: Mapping[str, Any]) -> bool:
    """True if the constructor of a task's data module takes ``dataset``.

    Raises:
        ConfigError: there is no such class.
    """
    return "dataset" in _parameters(own["_target_"])


def _parameters(target: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(get_object(target)).parameters
    except (ImportError, TypeError, ValueError) as error:
        raise ConfigError(f"_target_={target}: {' '.join(str(error).split())}") from error


def _named_by(target: str, settings: Mapping[str, Any]) -> set[str]:
    """Components that a constructor or function asks for and that its settings do not give."""
    wanted = _parameters(target)
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


def _references(node: Any, pattern: re.Pattern[str] = _REFERENCE) -> Iterator[str]:
    """Keys that the strings of a node refer to: those at the top, or what else a pattern finds."""
    if isinstance(node, str):
        yield from pattern.findall(node)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value, pattern)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value, pattern)


def _raw(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _key(override: str) -> str:
    """The key that an override sets: ``head.decode.channels``; ``x.y`` of ``+head@x.y=fcn``."""
    return override.split("=", 1)[0].lstrip("+~").split("@")[-1].replace("/", ".")


def _root(key: str) -> str:
    return key.partition(".")[0]
