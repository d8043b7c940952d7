"""From what ``techniques=`` says to branches."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch, check_branches
from gate_lightning.features.presets import resolve_layers
from gate_lightning.techniques.base import Technique
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt

__all__ = ["TECHNIQUES", "build_branches"]

TECHNIQUES = ("prompt", "controlnet", "lora")
_BRANCH_KEYS = ("name", "techniques", "timestep", "layers", "noise_seed", "concatenated", *TECHNIQUES)
_KNOBS = {
    "prompt": ("source", "text"),
    "controlnet": ("name", "scale", "low", "high", "blur_sigma", "normalize"),
    "lora": ("weights", "role", "scale"),
}
_SOURCES = ("caption", "fine", "simple")


class Prompts(Protocol):
    """What is read of a data set's protocol."""

    @property
    def name(self) -> str: ...

    @property
    def prompt_simple(self) -> str: ...

    @property
    def prompt_fine(self) -> str: ...

    @property
    def recipe(self) -> Sequence[Mapping[str, Any]]: ...


def build_branches(
    techniques: str | Sequence[str | Mapping[str, Any]] | None,
    *,
    protocol: Prompts,
    backbone: Backbone,
    knobs: Mapping[str, Any] | None = None,
    timestep: int = 50,
    layers: str | Sequence[str] = "gate_segmentation",
    noise_draws: int = 1,
) -> list[Branch]:
    """Branches of one of the forms of ``techniques=``.

    * None, "none" or an empty list: one plain branch, told the data set's simple prompt.
    * "prompt", "controlnet", "lora", or a list of them: one branch with those.
    * "all": the recipe of the data set.
    * a list of mappings: one's own branches, ``{name, techniques, timestep, layers, noise_seed, concatenated, prompt,
      controlnet, lora}``, all optional; the last three override the knobs of that technique for that branch.

    Args:
        techniques: see above.
        protocol: prompts and recipe of the data set.
        backbone: which layers and techniques there are.
        knobs: settings by technique: ``prompt {source: caption | fine | simple, text}``, ``controlnet {name, scale,
            low, high, blur_sigma, normalize}``, ``lora {weights: {role: path}, role, scale}``.
        timestep: of branches that name none.
        layers: preset, layer id or list, of branches that name none.
        noise_draws: every branch is read this many times, each time under another noise.

    Raises:
        ConfigError: an unknown technique, key or layer.
        WeightsError: a LoRA without a file.
    """
    if isinstance(noise_draws, bool) or not isinstance(noise_draws, int) or noise_draws < 1:
        raise ConfigError(f"noise_draws={noise_draws}: expected an integer of 1 or more")
    settings = _check_knobs(knobs or {}, "technique")
    branches: list[Branch] = []
    for index, mapping in enumerate(_mappings(techniques, protocol)):
        _known(mapping, _BRANCH_KEYS, f"branch {index}")
        given = {key: value for key, value in mapping.items() if key not in TECHNIQUES and key != "techniques"}
        own = _check_knobs({name: mapping[name] for name in TECHNIQUES if name in mapping}, f"branch {index}")
        used = [_build(name, {**settings.get(name, {}), **own.get(name, {})}, protocol) for name in _names(mapping)]
        branch = Branch(
            name=str(given.get("name") or _free_name(used, branches)),
            timestep=given.get("timestep", timestep),
            layers=resolve_layers(backbone, given.get("layers", layers)),
            techniques=tuple(used),
            prompt=protocol.prompt_simple,
            noise_seed=int(given.get("noise_seed", index)),
            concatenated=bool(given.get("concatenated", False)),
        )
        branches += _draws(branch, noise_draws)
    check_branches(branches)
    return branches


def _mappings(techniques: Any, protocol: Prompts) -> list[Mapping[str, Any]]:
    if techniques is None or techniques == "none" or techniques == []:
        return [{"name": "none", "techniques": []}]
    if techniques == "all":
        if not protocol.recipe:
            raise ConfigError(f"techniques=all: the data set {protocol.name} has no recipe; give a list of branches")
        return list(protocol.recipe)
    listed = [techniques] if isinstance(techniques, str | Mapping) else list(techniques)
    mappings = [item for item in listed if isinstance(item, Mapping)]
    if len(mappings) == len(listed):
        return mappings
    if not all(isinstance(item, str) for item in listed):
        raise ConfigError(
            f"techniques={techniques!r} mixes names and branches; give one branch's techniques, or branches"
        )
    return [{"techniques": listed}]


def _names(mapping: Mapping[str, Any]) -> list[str]:
    names = mapping.get("techniques") or []
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in TECHNIQUES:
            near = difflib.get_close_matches(str(name), [*TECHNIQUES, "none", "all"], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"technique {name!r}: {hint}expected none, all, or of {', '.join(TECHNIQUES)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"techniques {names}: name each once")
    return names


def _build(name: str, settings: Mapping[str, Any], protocol: Prompts) -> Technique:
    if name == "prompt":
        return _prompt(settings, protocol)
    if name == "controlnet":
        own = dict(settings)
        return ControlNet(control=str(own.pop("name", "canny")), **own)
    return _lora(settings, protocol)


def _prompt(settings: Mapping[str, Any], protocol: Prompts) -> Prompt:
    text = settings.get("text")
    if text is not None:
        return Prompt(str(text))
    source = settings.get("source", "caption")
    if source not in _SOURCES:
        raise ConfigError(f"technique.prompt.source={source}: expected one of {', '.join(_SOURCES)}")
    if source == "caption":
        return Prompt(None, fallback=protocol.prompt_fine or None)
    return Prompt(protocol.prompt_fine if source == "fine" else protocol.prompt_simple)


def _lora(settings: Mapping[str, Any], protocol: Prompts) -> LoRA:
    role = str(settings.get("role", "moderate"))
    weights = settings.get("weights")
    path = weights.get(role) if isinstance(weights, Mapping) else weights
    if not path:
        raise WeightsError(
            f"the lora technique has no weights of the role {role!r} for {protocol.name}: set "
            f"technique.lora.weights.{role}=<file.safetensors>. Train one on about 30 of its pictures with: "
            f"python train.py experiment=lora backbone=<yours> dataset.root=<folder of the pictures>"
        )
    return LoRA(adapter=role.replace(".", "_"), weights=str(path), scale=float(settings.get("scale", 1.0)))


def _check_knobs(knobs: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    _known(knobs, TECHNIQUES, where)
    checked = {}
    for name, value in knobs.items():
        # a branch may write `prompt: a red house` for `prompt: {text: a red house}`
        own = {"text": value} if name == "prompt" and isinstance(value, str) else dict(value or {})
        _known(own, _KNOBS[name], f"{where}.{name}")
        checked[name] = own
    return checked


def _known(mapping: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    for key in mapping:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}expected of {', '.join(keys)}")


def _free_name(techniques: Sequence[Technique], taken: Sequence[Branch]) -> str:
    name = "+".join(technique.name for technique in techniques) or "none"
    names = {branch.name.partition("#")[0] for branch in taken}
    return name if name not in names else f"{name}-{len(taken)}"


def _draws(branch: Branch, count: int) -> list[Branch]:
    if count == 1:
        return [branch]
    return [replace(branch, name=f"{branch.name}#{draw}", draw=draw) for draw in range(count)]
