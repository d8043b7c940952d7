"""From what ``techniques=`` says to branches."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch, check_branches
from gate_lightning.features.config.layer_presets import resolve_layers
from gate_lightning.features.config.techniques import (
    TECHNIQUES,
    Prompts,
    Settings,
    build_techniques,
    check_known,
    read_settings,
)
from gate_lightning.techniques.base import Technique

__all__ = ["TECHNIQUES", "build_branches"]

_BRANCH_KEYS = (
    *("name", "techniques", "backbone", "timestep", "layers", "noise_seed", "ensemble", "concatenated"),
    *("denoise_steps", "sampler", *TECHNIQUES),
)


def build_branches(
    techniques: str | Sequence[str | Mapping[str, Any]] | None,
    *,
    protocol: Prompts,
    backbone: Backbone | Mapping[str, Backbone],
    technique_settings: Mapping[str, Any] | None = None,
    timestep: int = 50,
    layers: str | Sequence[str] = "gate_segmentation",
    separate_noises: int = 1,
    ensemble: int = 1,
    seed: int = 0,
) -> list[Branch]:
    """Branches of one of the forms of ``techniques=``.

    * None, "none" or an empty list: one plain branch, told the data set's simple prompt.
    * a technique ("prompt", "controlnet", "lora", "inversion", "denoise") or a list of them: one branch with those.
    * "all": the recipe of the data set.
    * a list of mappings: one's own branches, ``{name, techniques, backbone, timestep, layers, noise_seed, ensemble,
      concatenated, prompt, controlnet, lora, inversion, denoise}``, all optional. The last five are settings of that
      technique for that branch, over ``technique_settings``; a list of them is several ControlNets or LoRAs in the
      branch. Without
      ``techniques`` those are used that have settings. ``denoise_steps: 10`` is ``denoise: {steps: 10}`` (``sampler``
      its sampler), ``inversion: true`` an inversion with the settings of ``technique_settings``; both add their
      technique.

    Args:
        techniques: see above.
        protocol: prompts and recipe of the data set.
        backbone: which layers and techniques there are. Of several by name, a branch reads the one it names, or the
            first.
        technique_settings: settings by technique, see ``features.settings.TECHNIQUES``.
        timestep: of branches that name none.
        layers: preset, layer id or list, of branches that name none.
        separate_noises: every branch is read this many times, each time under another noise.
        ensemble: noises whose features are averaged, of branches that name none.
        seed: of the run, for what is drawn in training.

    Raises:
        ConfigError: an unknown technique, key, backbone or layer; settings without effect, or that exclude each other.
        WeightsError: a LoRA without a file.
        DataError: a caption file that is missing or broken.
    """
    if isinstance(separate_noises, bool) or not isinstance(separate_noises, int) or separate_noises < 1:
        raise ConfigError(f"separate_noises={separate_noises}: expected an integer of 1 or more")
    backbones = backbone if isinstance(backbone, Mapping) else {"": backbone}
    shared = read_settings(technique_settings or {}, "technique")
    branches: list[Branch] = []
    for index, mapping in enumerate(_mappings(techniques, protocol)):
        where = f"branch {index}"
        check_known(mapping, _BRANCH_KEYS, where)
        own = read_settings(_own_settings(mapping, where), where)
        used = build_techniques(_names(mapping, own, where), own, shared, protocol, seed, where)
        chosen = _backbone(mapping.get("backbone"), backbones, where)
        branch = Branch(
            name=str(mapping.get("name") or _free_name(used, branches)),
            timestep=mapping.get("timestep", timestep),
            layers=resolve_layers(backbones[chosen], mapping.get("layers", layers)),
            techniques=tuple(used),
            prompt=protocol.prompt_simple,
            noise_seed=int(mapping.get("noise_seed", index)),
            ensemble=mapping.get("ensemble", ensemble),
            concatenated=bool(mapping.get("concatenated", False)),
            backbone=chosen,
        )
        branches += _draws(branch, separate_noises)
    check_branches(branches)
    return branches


def _mappings(techniques: Any, protocol: Prompts) -> list[Mapping[str, Any]]:
    if techniques is None or techniques == "none" or techniques == []:
        return [{"name": "none", "techniques": []}]
    if techniques == "all":
        if not protocol.branches:
            raise ConfigError(f"techniques=all: the data set {protocol.name} has no recipe; give a list of branches")
        return list(protocol.branches)
    listed = [techniques] if isinstance(techniques, str | Mapping) else list(techniques)
    mappings = [item for item in listed if isinstance(item, Mapping)]
    if len(mappings) == len(listed):
        return mappings
    if not all(isinstance(item, str) for item in listed):
        raise ConfigError(
            f"techniques={techniques!r} mixes names and branches; give one branch's techniques, or branches"
        )
    return [{"techniques": listed}]


def _own_settings(mapping: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A branch's settings by technique."""
    given = {name: mapping[name] for name in TECHNIQUES if name in mapping}
    if isinstance(given.get("inversion"), bool):
        given.pop("inversion")
    steps = {"steps": mapping.get("denoise_steps"), "sampler": mapping.get("sampler")}
    steps = {key: value for key, value in steps.items() if value is not None}
    if not steps:
        return given
    if "denoise" in given:
        raise ConfigError(f"{where} has denoise and denoise_steps or sampler; write it as one: denoise: {{steps: 10}}")
    if "steps" not in steps and "denoise" not in _listed(mapping):
        raise ConfigError(f"{where} has a sampler, but denoises no steps; add denoise_steps: 10")
    return {**given, "denoise": steps}


def _listed(mapping: Mapping[str, Any]) -> list[str]:
    names = mapping.get("techniques") or []
    return [names] if isinstance(names, str) else list(names)


def _names(mapping: Mapping[str, Any], own: Settings, where: str) -> list[str]:
    """Techniques of a branch: those listed, and those its settings add."""
    names = _listed(mapping)
    for name in names:
        if name not in TECHNIQUES:
            near = difflib.get_close_matches(str(name), [*TECHNIQUES, "none", "all"], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"technique {name!r}: {hint}expected none, all, or of {', '.join(TECHNIQUES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"techniques {names}: name each once")
    added = ["denoise"] if mapping.get("denoise_steps") is not None else []
    added += ["inversion"] if mapping.get("inversion") is True else []
    added += [] if "techniques" in mapping else list(own)
    names += [name for name in dict.fromkeys(added) if name not in names]
    idle = [name for name in own if name not in names]
    if idle:
        raise ConfigError(
            f"{where} has settings of {', '.join(idle)}, but its techniques are {names or 'none'}; add "
            f"{'it' if len(idle) == 1 else 'them'} to its techniques, or leave the settings out"
        )
    return names


def _backbone(name: Any, backbones: Mapping[str, Backbone], where: str) -> str:
    first = next(iter(backbones))
    if name is None:
        return first
    if name not in backbones:
        known = [other for other in backbones if other]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        there = f"there are {', '.join(known)}" if known else "there is one only"
        raise ConfigError(
            f"{where} reads the backbone {name!r}; {hint}{there}. "
            f"Add it: +backbone@backbones.{name}=<one of conf/backbone>"
        )
    return str(name)


def _free_name(techniques: Sequence[Technique], taken: Sequence[Branch]) -> str:
    name = "+".join(dict.fromkeys(technique.name for technique in techniques)) or "none"
    names = {branch.name.partition("#")[0] for branch in taken}
    return name if name not in names else f"{name}-{len(taken)}"


def _draws(branch: Branch, count: int) -> list[Branch]:
    if count == 1:
        return [branch]
    return [replace(branch, name=f"{branch.name}#{index}", noise_index=index) for index in range(count)]
