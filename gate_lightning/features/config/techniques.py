"""From settings (plain mappings) to techniques."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.techniques.base import Technique
from gate_lightning.techniques.controlnet import CannyEdges, ControlFunction, ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt

__all__ = ["TECHNIQUES", "Prompts", "Settings", "build_techniques", "check_known", "read_settings"]

#: what ``techniques=`` may name, and the settings of each
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "prompt": ("source", "text", "file", "template", "fallback", "embedding", "tokens"),
    "controlnet": (
        *("name", "scale", "low", "high", "blur_sigma", "normalize"),
        *("function", "folder", "image", "dropout"),
    ),
    "lora": ("weights", "role", "scale"),
    "inversion": ("stride", "first", "last"),
    "denoise": ("steps", "sampler", "stride"),
}
#: what a bare value means: ``controlnet: depth`` is ``controlnet: {name: depth}``
_SHORT = {"prompt": "text", "controlnet": "name", "lora": "role", "denoise": "steps"}
#: techniques of which a branch may have several, and the setting that tells them apart
_SEVERAL = {"controlnet": "name", "lora": "role"}
#: settings that exclude each other: a branch that gives one of them drops the shared others
_CHOICES = {"prompt": ("source", "text", "file", "embedding"), "controlnet": ("function", "folder", "image")}
_SOURCES = ("caption", "fine", "simple", "category", "classes")
_CANNY = ("low", "high", "blur_sigma", "normalize")

DEFAULT_TEMPLATE = "a photo of a {category}"

#: technique → its settings, one mapping for each time it is used
Settings = dict[str, list[dict[str, Any]]]


class Prompts(Protocol):
    """What is read of a data set's protocol."""

    @property
    def name(self) -> str: ...

    @property
    def prompt_simple(self) -> str: ...

    @property
    def prompt_fine(self) -> str: ...

    @property
    def branches(self) -> Sequence[Mapping[str, Any]]: ...


def read_settings(given: Mapping[str, Any], where: str) -> Settings:
    """The settings by technique, short forms written out.

    Args:
        given: technique → mapping of settings, a bare value (see ``_SHORT``), or for several ControlNets or LoRAs a
            list of these.
        where: for errors.

    Raises:
        ConfigError: an unknown technique or setting, or a list where there can be one only.
    """
    check_known(given, TECHNIQUES, where)
    settings: Settings = {}
    for name, value in given.items():
        here = f"{where}.{name}"
        if isinstance(value, list | tuple) and (name not in _SEVERAL or not value):
            raise ConfigError(f"{here}={value!r}: expected {'at least one' if name in _SEVERAL else 'no list'}")
        items = value if isinstance(value, list | tuple) else [value]
        settings[name] = [one for item in items for one in _items(name, item, here)]
    return settings


def build_techniques(
    names: Sequence[str], own: Settings, shared: Settings, protocol: Prompts, seed: int, where: str
) -> list[Technique]:
    """The techniques of one branch.

    Args:
        names: which ones.
        own: settings of the branch, which go before the shared ones.
        shared: settings of all branches.
        protocol: prompts of the data set.
        seed: of the run.
        where: which branch, for errors.

    Raises:
        ConfigError: settings that contradict each other.
        WeightsError: a LoRA without a file.
        DataError: a caption file that is missing or broken.
    """
    built: list[Technique] = []
    for name in names:
        common = shared.get(name, [{}])
        for item in own.get(name, common):
            merged = _merged(name, item, common) if name in own else item
            technique = _BUILDERS[name](merged, protocol, seed, f"{where}.{name}")
            if technique in built:
                raise ConfigError(f"{where}.{name}: {merged} is there twice; raise its scale instead")
            if isinstance(technique, ControlNet) and name in own:
                _check_canny(item, technique, f"{where}.{name}")
            built.append(technique)
    return built


def check_known(mapping: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    """Raise ConfigError for a key that is not among ``keys``, naming the nearest."""
    for key in mapping:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}expected of {', '.join(keys)}")


def _items(name: str, value: Any, where: str) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        item = {str(key): setting for key, setting in value.items()}
    elif value is None:
        item = {}
    elif name in _SHORT and not isinstance(value, bool):
        item = {_SHORT[name]: value}
    else:
        raise ConfigError(f"{where}={value!r}: expected a mapping of {', '.join(TECHNIQUES[name])}")
    check_known(item, TECHNIQUES[name], where)
    several = item.get(_SEVERAL.get(name, ""))
    if not isinstance(several, list | tuple):
        return [item]
    single = [key for key in _CHOICES.get(name, ()) if item.get(key)]
    if single or not several:
        raise ConfigError(
            f"{where}: {several!r} with {', '.join(single) or 'no name'}; give a list of mappings instead"
        )
    return [{**item, _SEVERAL[name]: one} for one in several]


def _merged(name: str, own: Mapping[str, Any], shared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A branch's settings over the shared ones: those of the same ControlNet or LoRA where there are several."""
    key = _SEVERAL.get(name)
    same = [item for item in shared if key is None or key not in own or item.get(key) == own[key]]
    base = dict(same[0] if same else shared[0] if len(shared) == 1 else {})
    choices = _CHOICES.get(name, ())
    if not same or any(choice in own for choice in choices):
        base = {setting: value for setting, value in base.items() if setting not in choices}
    return {**base, **own}


def _prompt(settings: Mapping[str, Any], protocol: Prompts, seed: int, where: str) -> Technique:
    source = settings.get("source") or "caption"
    if source not in _SOURCES:
        raise ConfigError(f"technique.prompt.source={source}: expected one of {', '.join(_SOURCES)}")
    given = {key: str(settings[key]) for key in ("text", "file", "embedding") if settings.get(key) is not None}
    if len(given) > 1 or (given and source != "caption"):
        named = [f"{key}={value!r}" for key, value in given.items()]
        raise ConfigError(f"{where} has {' and '.join([*named, f'source={source}'])}; leave out all but one")
    tokens, fallback = settings.get("tokens") or (), settings.get("fallback")
    learned = (tokens,) if isinstance(tokens, str) else tuple(map(str, tokens))
    if given:
        own = Prompt(given.get("text"), file=given.get("file"), embedding=given.get("embedding"), tokens=learned)
        return replace(own, fallback=fallback) if "file" in given else own
    if source == "category":
        return Prompt(None, fallback, template=str(settings.get("template") or DEFAULT_TEMPLATE), tokens=learned)
    if source == "caption":
        return Prompt(None, fallback or protocol.prompt_fine or None, tokens=learned)
    if source == "classes":
        return Prompt(_class_names(protocol), tokens=learned)
    return Prompt(protocol.prompt_fine if source == "fine" else protocol.prompt_simple, tokens=learned)


def _class_names(protocol: Prompts) -> str:
    # runs of earlier versions did not save them, tools without a data set have none
    classes = getattr(protocol, "classes", None)
    if not classes:
        raise ConfigError(
            f"technique.prompt.source=classes, but {protocol.name} has no list of classes here; give the prompt as "
            f"technique.prompt.text=<text>"
        )
    return ", ".join(classes)


def _controlnet(settings: Mapping[str, Any], protocol: Prompts, seed: int, where: str) -> Technique:
    given = {key: value for key, value in settings.items() if value is not None}
    function = given.get("function")
    if isinstance(function, Mapping):
        raise ConfigError(f"{where}.function is a mapping; a function is built by the configuration (`_target_`) only")
    if callable(function) and not isinstance(function, ControlFunction):
        given["function"] = ControlFunction(function)
    for key in ("scale", "dropout", "low", "high", "blur_sigma"):
        if isinstance(given.get(key, 0), bool) or not isinstance(given.get(key, 0), int | float):
            raise ConfigError(f"{where}.{key}={given[key]!r}: expected a number")
    return ControlNet(control=str(given.pop("name", "canny")), seed=seed if given.get("dropout") else 0, **given)


def _check_canny(own: Mapping[str, Any], technique: ControlNet, where: str) -> None:
    idle = [key for key in _CANNY if key in own]
    if idle and not isinstance(technique.source(), CannyEdges):
        raise ConfigError(
            f"{where} sets {', '.join(idle)} for {technique.control!r}, whose control images are not Canny edges; "
            f"leave them out, or add function: canny"
        )


def _lora(settings: Mapping[str, Any], protocol: Prompts, seed: int, where: str) -> Technique:
    role = str(settings.get("role", "moderate"))
    weights = settings.get("weights")
    path = weights.get(role) if isinstance(weights, Mapping) else weights
    if not path:
        new = "++" if isinstance(weights, Mapping) and role not in weights else ""  # Hydra wants to be told so
        raise WeightsError(
            f"the lora technique has no weights of the role {role!r} for {protocol.name}: set "
            f"{new}technique.lora.weights.{role}=<file.safetensors>. Train one on about 30 of its images with: "
            f"python train.py experiment=lora backbone=<yours> dataset.root=<folder of the images>"
        )
    return LoRA(adapter=role.replace(".", "_"), weights=str(path), scale=float(settings.get("scale", 1.0)))


def _inversion(settings: Mapping[str, Any], protocol: Prompts, seed: int, where: str) -> Technique:
    return Inversion(**settings)


def _denoise(settings: Mapping[str, Any], protocol: Prompts, seed: int, where: str) -> Technique:
    return Denoise(**settings)


_BUILDERS: dict[str, Callable[[Mapping[str, Any], Prompts, int, str], Technique]] = {
    "prompt": _prompt,
    "controlnet": _controlnet,
    "lora": _lora,
    "inversion": _inversion,
    "denoise": _denoise,
}
