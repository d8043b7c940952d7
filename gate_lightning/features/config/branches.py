"""Branches from the forms of ``techniques=``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch, check_names
from gate_lightning.features.config.techniques import Build, ConfiguredTechnique, configured_techniques
from gate_lightning.techniques.base import Card, Technique
from gate_lightning.techniques.lora import NoLoRAError
from gate_lightning.utils.checks import check_known, did_you_mean, whole_number

__all__ = ["build_branches"]

_BRANCH_KEYS = ("name", "techniques", "backbone", "timestep", "layers", "noise_seed", "ensemble", "concatenated")
#: by the name that ``techniques=`` uses
Known = Mapping[str, ConfiguredTechnique]


def build_branches(
    techniques: str | Sequence[str | Mapping[str, Any]] | None,
    *,
    card: Card,
    backbones: Sequence[str] = ("",),
    technique_settings: Mapping[str, Any] | None = None,
    timestep: int = 50,
    layers: str | Sequence[str] = "gate_segmentation",
    separate_noises: int = 1,
    ensemble: int = 1,
    seed: int = 0,
    build: Build | None = None,
) -> list[Branch]:
    """Branches for a value of ``techniques=``; layer names are resolved later, by the extractor.

    * None, "none" or an empty list: one plain branch with the data set's simple prompt.
    * a technique ("prompt", "controlnet", "lora", "guidance", … or one's own) or a list of them: one branch
      with those.
    * "all": the branches of the data set's card.
    * a list of mappings: one's own branches, ``{name, techniques, backbone, timestep, layers, noise_seed, ensemble,
      concatenated}`` and settings of techniques by their names, all optional. Settings override ``technique_settings``;
      a list gives the branch several ControlNets or LoRAs, ``true`` stands for the settings in ``technique_settings``.
      Without ``techniques``, a branch has the techniques with settings. ``denoise_steps: 10`` is
      ``denoise: {steps: 10}`` (``sampler`` its sampler), and adds the technique.

    Args:
        techniques: see above.
        card: prompts and branches of the data set.
        backbones: names of backbones; the first is the default of a branch.
        technique_settings: settings by technique; a technique of one's own has its class as ``_target_``.
        timestep: default timestep.
        layers: default layers: preset, layer id or list.
        separate_noises: number of copies of every branch, each with another noise.
        ensemble: default number of averaged noises.
        seed: seed of the run, for random choices in training.
        build: instantiates settings with a ``_target_``.

    Raises:
        ConfigError: an unknown technique, key or backbone; settings without effect, or that exclude each other.
        WeightsError: a LoRA without a file.
        DataError: a caption file that is missing or broken.
    """
    whole_number(separate_noises, "separate_noises", 1)
    known = configured_techniques(technique_settings or {}, build)
    shorthands = {key: name for name, one in known.items() for key in one.kind.shorthands}
    taken = [name for name in known if name in (*_BRANCH_KEYS, *shorthands, "none", "all")]
    if taken:
        raise ConfigError(
            f"technique.{taken[0]}: {taken[0]!r} means something else in techniques=; choose another name"
        )
    branches: list[Branch] = []
    without_file: list[str] = []
    for index, mapping in enumerate(_mappings(techniques, card)):
        where = f"branch {index}"
        check_known(mapping, (*_BRANCH_KEYS, *shorthands, *known), where)
        own = _own_settings(mapping, known, shorthands, where)
        names = _names(mapping, own, known, where)
        used: list[Technique] = []
        for name in names:
            try:
                used += known[name].made(own.get(name), card, seed, f"{where}.{name}")
            except NoLoRAError as error:  # all that are missing are named at once
                without_file += error.roles
        branch = Branch(
            name=str(mapping.get("name") or _free_name(names, branches)),
            timestep=mapping.get("timestep", timestep),
            layers=mapping.get("layers", layers),
            techniques=tuple(used),
            prompt=card.prompt_simple,
            noise_seed=mapping.get("noise_seed", index),
            ensemble=mapping.get("ensemble", ensemble),
            concatenated=bool(mapping.get("concatenated", False)),
            backbone=_backbone(mapping.get("backbone"), backbones, where),
        )
        branches += _noises(branch, separate_noises)
    if without_file:
        raise NoLoRAError(list(dict.fromkeys(without_file)), card.name)
    check_names([branch.name for branch in branches])
    return branches


def _mappings(techniques: Any, card: Card) -> list[Mapping[str, Any]]:
    if techniques == "auto":
        raise ConfigError(
            "techniques=auto is chosen on training images, by train.py; name techniques here, or measure candidates by "
            "python eval.py task=content_shift"
        )
    if techniques is None or techniques == "none" or techniques == []:
        return [{"name": "none", "techniques": []}]
    if techniques == "all":
        if not card.branches:
            raise ConfigError(f"techniques=all: the data set {card.name} has no recipe; give a list of branches")
        return list(card.branches)
    if not isinstance(techniques, str | Mapping | Sequence):
        raise ConfigError(f"techniques={techniques!r}: expected none, all, a technique, a list of them, or of branches")
    listed = [techniques] if isinstance(techniques, str | Mapping) else list(techniques)
    mappings = [item for item in listed if isinstance(item, Mapping)]
    if len(mappings) == len(listed):
        return mappings
    if not all(isinstance(item, str) for item in listed):
        raise ConfigError(
            f"techniques={techniques!r} mixes names and branches; give one branch's techniques, or branches"
        )
    return [{"techniques": listed}]


def _own_settings(
    mapping: Mapping[str, Any], known: Known, shorthands: Mapping[str, str], where: str
) -> dict[str, list[dict[str, Any]] | None]:
    """Settings of a branch by technique; None for ``true``, the shared ones."""
    given = {name: mapping[name] for name in known if name in mapping and mapping[name] is not False}
    short: dict[str, dict[str, Any]] = {}
    for key, name in shorthands.items():
        if mapping.get(key) is not None:
            short.setdefault(name, {})[known[name].kind.shorthands[key]] = mapping[key]
    for name, settings in short.items():
        keys = [key for key in shorthands if mapping.get(key) is not None and shorthands[key] == name]
        if name in given:
            raise ConfigError(f"{where} has {name} and {' and '.join(keys)}; write it as one: {name}: {settings}")
        kind = known[name].kind
        if kind.short not in settings and name not in _listed(mapping):
            adds = next(key for key, field in kind.shorthands.items() if field == kind.short)
            raise ConfigError(f"{where} has {keys[0]}, but does not {name}; add {adds}, or {name} to its techniques")
    own: dict[str, list[dict[str, Any]] | None] = {name: [settings] for name, settings in short.items()}
    for name, value in given.items():
        own[name] = None if value is True else known[name].read(value, f"{where}.{name}")
    return own


def _listed(mapping: Mapping[str, Any]) -> list[str]:
    names = mapping.get("techniques") or []
    return [names] if isinstance(names, str) else list(names)


def _names(mapping: Mapping[str, Any], own: Mapping[str, Any], known: Known, where: str) -> list[str]:
    """Names of a branch's techniques: listed ones, and ones added by settings."""
    names = _listed(mapping)
    for name in names:
        if name not in known:
            near = did_you_mean(name, [*known, "none", "all"])
            raise ConfigError(f"technique {name!r}: {near}expected none, all, or of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"techniques {names}: name each once")
    # a list of techniques is complete but for `true` and shorthands, which name the technique themselves
    added = [name for name in own if "techniques" not in mapping or own[name] is None or name not in mapping]
    names += [name for name in added if name not in names]
    idle = [name for name in own if name not in names]
    if idle:
        raise ConfigError(
            f"{where} has settings of {', '.join(idle)}, but its techniques are {names or 'none'}; add "
            f"{'it' if len(idle) == 1 else 'them'} to its techniques, or leave the settings out"
        )
    return names


def _backbone(name: Any, backbones: Sequence[str], where: str) -> str:
    if name is None:
        return backbones[0]
    if name not in backbones:
        known = [other for other in backbones if other]
        there = f"there are {', '.join(known)}" if known else "there is one only"
        raise ConfigError(
            f"{where} reads the backbone {name!r}; {did_you_mean(name, known)}{there}. "
            f"Add it: +backbone@backbones.{name}=<one of conf/backbone>"
        )
    return str(name)


def _free_name(techniques: Sequence[str], taken: Sequence[Branch]) -> str:
    name = "+".join(techniques) or "none"
    names = {branch.name.partition("#")[0] for branch in taken}
    return name if name not in names else f"{name}-{len(taken)}"


def _noises(branch: Branch, count: int) -> list[Branch]:
    if count == 1:
        return [branch]
    return [replace(branch, name=f"{branch.name}#{index}", noise_index=index) for index in range(count)]
