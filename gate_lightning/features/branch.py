"""Branches: timestep, techniques, layers and noise of one set of features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Technique
from gate_lightning.utils.checks import check_type, shown, whole_number

__all__ = ["CATEGORY", "Branch", "check_branches", "check_names"]

#: stands for the image's category in a branch's prompt
CATEGORY = "{category}"


@dataclass(frozen=True)
class Branch:
    """One set of features: timestep, techniques, layers and noise.

    Attributes:
        name: key of its features; unique among the branches of an extractor.
        timestep: training timestep of the noised image and of the denoiser's time input; -1: clean latents.
        layers: layer ids, aliases or presets ("practical"), one or several, in the order of the features. Extractors
            resolve presets on their backbone.
        techniques: sorted by ``Technique.order`` (prompt, controlnet, lora, ip_adapter …).
        prompt: prompt in the absence of a prompt technique; {category} in it stands for the image's category.
        noise_seed: seed of the branch's noise; without effect if all branches share one noise.
        noise_index: index of the noise among several; in contrast to ``noise_seed`` also with shared noise.
        ensemble: number E of noises whose features are averaged, as in DIFT: the noises E · noise_index + 0 … E - 1.
        concatenated: True to concatenate the features to the pyramid after amalgamation instead of fusing them.
        backbone: name of its backbone if there are several; "" for the only one.

    Raises:
        ConfigError: no layers, a repeated layer, no technique object, or two techniques that decide the same.
    """

    name: str
    timestep: int
    layers: tuple[str, ...]
    techniques: tuple[Technique, ...] = ()
    prompt: str = ""
    noise_seed: int = 0
    noise_index: int = 0
    ensemble: int = 1
    concatenated: bool = False
    backbone: str = ""

    def __post_init__(self) -> None:
        check_type(self.name, "name of a branch", str, "a text")
        where = f"branch {self.name!r}"
        names: Any = self.layers
        check_type(names, f"{where}: layers", str | Sequence, "a preset, a layer id, or a list of them")
        check_type(self.prompt, f"{where}: prompt", str, "a text; a prompt for each image is Prompt()")
        layers = (names,) if isinstance(names, str) else tuple(map(str, names))
        if not layers:
            raise ConfigError(f"{where} reads no layers; name at least one layer id or preset")
        doubled = sorted({layer for layer in layers if layers.count(layer) > 1})
        if doubled:
            raise ConfigError(f"{where} names {', '.join(doubled)} more than once; name each layer once")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "techniques", _ordered(self.techniques, where))
        for key, low in (("timestep", -1), ("noise_index", 0), ("ensemble", 1), ("noise_seed", 0)):
            object.__setattr__(self, key, whole_number(getattr(self, key), f"{where}: {key}", low))

    def prompts(self, conditions: Conditions) -> tuple[str, ...]:
        """Prompts of the images of a batch in the absence of a prompt technique.

        Raises:
            DataError: the prompt names the category, and the images have none.
        """
        decided = any(technique.decides == "prompt" for technique in self.techniques)
        if CATEGORY not in self.prompt or decided:
            return (self.prompt,) * len(conditions)
        if conditions.categories is None:
            raise DataError(
                f"branch {self.name!r}: the prompt {self.prompt!r} names the category, but these images have none; "
                "give one text for all by the prompt technique: Prompt(<text>) (techniques=[prompt] "
                "technique.prompt.text=<text>)"
            )
        return tuple(self.prompt.replace(CATEGORY, name) for name in conditions.categories)

    @property
    def description(self) -> dict[str, object]:
        """All fields that the features depend on, JSON-able."""
        return {
            "name": self.name,
            "timestep": self.timestep,
            "layers": list(self.layers),
            "techniques": [technique.description for technique in self.techniques],
            "prompt": self.prompt,
            "noise_seed": self.noise_seed,
            "noise_index": self.noise_index,
            "ensemble": self.ensemble,
        }


def check_branches(branches: Any) -> list[Branch]:
    """Branches as a list; ConfigError unless there are some, each with a name of its own."""
    several = isinstance(branches, Iterable) and not isinstance(branches, str)
    given = list(branches) if several else [branches]
    for one in given:
        if not isinstance(one, Branch) or not several:
            raise ConfigError(f"branches: found {shown(one)}, expected a list of Branch objects")
    check_names([branch.name for branch in given])
    return given


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError unless there are branches, each with a name of its own."""
    if not names:
        raise ConfigError("no branches; an extractor needs at least one")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"several branches are named {', '.join(doubled)}; give each its own name")


def _ordered(techniques: object, where: str) -> tuple[Technique, ...]:
    """Techniques by rising order, checked."""
    if not isinstance(techniques, list | tuple):
        raise ConfigError(
            f"{where}: techniques={shown(techniques)}; expected a tuple of techniques, such as (Prompt('a cat'),)"
        )
    for technique in techniques:
        if not isinstance(technique, Technique):
            hint = "; build its class, such as Prompt('a cat')" if isinstance(technique, str | type) else ""
            raise ConfigError(f"{where} has the technique {technique!r}, which is no Technique object{hint}")
    deciding: dict[str, list[str]] = {}
    for technique in techniques:
        deciding.setdefault(technique.decides, []).append(technique.kind)
    for part, kinds in deciding.items():
        if part and len(kinds) > 1:
            raise ConfigError(f"{where} has {' and '.join(kinds)}, which both decide the {part} of a pass; choose one")
    return tuple(sorted(techniques, key=lambda technique: technique.order))
