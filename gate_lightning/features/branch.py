"""A branch: one steered way to read features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gate_lightning.errors import ConfigError
from gate_lightning.techniques.base import Technique
from gate_lightning.utils.checks import whole_number

__all__ = ["Branch", "check_names"]


@dataclass(frozen=True)
class Branch:
    """One way to read features: at which timestep, under which techniques, from which layers, with which noise.

    Attributes:
        name: key of its features; unique among the branches of an extractor.
        timestep: DDPM training timestep the image is noised to and the denoiser is told.
        layers: layer ids, aliases or presets ("practical"), in the order in which the features are given; one name or
            several. An extractor resolves presets on its backbone.
        techniques: applied by their order (prompt, controlnet, lora, inversion, denoise), however given.
        prompt: what the denoiser is told where no technique says otherwise.
        noise_seed: branches with different seeds see different noise; ignored where all branches share one noise.
        noise_index: which of several noises; unlike ``noise_seed`` it counts under shared noise too.
        ensemble: noises whose features are averaged, as DIFT does; those that ``noise_index`` = 0 … ensemble - 1 would
            see one by one (a further ``noise_index`` sees the next ones).
        concatenated: not fused with the other branches but concatenated to the pyramid after amalgamation.
        backbone: name of the one it reads where there are several; "" for the only one.

    Raises:
        ConfigError: no layers, one twice, a technique that is none, or several that decide the same.
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
        where = f"branch {self.name!r}"
        names: Any = self.layers
        layers = (names,) if isinstance(names, str) else tuple(map(str, names))
        if not layers:
            raise ConfigError(f"{where} reads no layers; name at least one layer id or preset")
        doubled = sorted({layer for layer in layers if layers.count(layer) > 1})
        if doubled:
            raise ConfigError(f"{where} names {', '.join(doubled)} more than once; name each layer once")
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "techniques", _ordered(self.techniques, where))
        for key, low in (("timestep", 0), ("noise_index", 0), ("ensemble", 1)):
            object.__setattr__(self, key, whole_number(getattr(self, key), f"{where}: {key}", low))
        object.__setattr__(self, "noise_seed", int(self.noise_seed))

    @property
    def description(self) -> dict[str, object]:
        """What its features depend on, JSON-able."""
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


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError unless there are branches, each with a name of its own."""
    if not names:
        raise ConfigError("no branches; an extractor needs at least one")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"several branches are named {', '.join(doubled)}; give each its own name")


def _ordered(techniques: object, where: str) -> tuple[Technique, ...]:
    """By rising order; refused where one is no technique, or two decide the same."""
    if not isinstance(techniques, list | tuple):
        raise ConfigError(
            f"{where}: techniques={techniques!r}; expected a tuple of techniques, such as (Prompt('a cat'),)"
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
