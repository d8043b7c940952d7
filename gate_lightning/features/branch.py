"""A branch: one steered way to read features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gate_lightning.errors import ConfigError
from gate_lightning.techniques.base import Technique

__all__ = ["Branch", "check_branches"]


@dataclass(frozen=True)
class Branch:
    """One way to read features: at which timestep, under which techniques, from which layers, with which noise.

    Attributes:
        name: key of its features; unique among the branches of an extractor.
        timestep: DDPM training timestep the image is noised to and the denoiser is told.
        layers: layer ids, in the order in which the features are given.
        techniques: applied by their documented order (prompt, controlnet, lora, inversion, denoise), however given.
        prompt: what the denoiser is told where no technique says otherwise.
        noise_seed: branches with different seeds see different noise; ignored where all branches share one noise.
        noise_index: which of several noises; unlike ``noise_seed`` it counts under shared noise too.
        ensemble: noises whose features are averaged, as DIFT does; those that ``noise_index`` = 0 … ensemble - 1
        would see
            one by one (a further ``noise_index`` sees the next ones).
        concatenated: not fused with the other branches but concatenated to the pyramid after amalgamation.
        backbone: name of the one it reads where there are several (``features.fused``); "" for the only one.
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
        if not self.layers:
            raise ConfigError(f"branch {self.name!r} reads no layers; name at least one layer id or preset")
        doubled = sorted({layer for layer in self.layers if self.layers.count(layer) > 1})
        if doubled:
            raise ConfigError(f"branch {self.name!r} names {', '.join(doubled)} more than once; name each layer once")
        if [technique.name for technique in self.techniques].count("prompt") > 1:
            raise ConfigError(f"branch {self.name!r} has several prompt techniques; only one prompt can be told")
        walks = [technique.name for technique in self.techniques if technique.name in ("inversion", "denoise")]
        if len(walks) > 1:
            raise ConfigError(
                f"branch {self.name!r} has {' and '.join(walks)}, which both decide the latents that are read: "
                f"inversion ends at the timestep read, denoising from above starts from drawn noise. Choose one"
            )
        for key, least in (("noise_index", 0), ("ensemble", 1)):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"branch {self.name!r}: {key}={value!r}; expected an integer of {least} or more")
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "techniques", tuple(sorted(self.techniques, key=_order)))

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


def check_branches(branches: Sequence[Branch]) -> None:
    """Raise ConfigError unless there are branches, with different names."""
    names: Collection[str] = [branch.name for branch in branches]
    if not names:
        raise ConfigError("no branches; an extractor needs at least one")
    doubled = sorted({name for name in names if list(names).count(name) > 1})
    if doubled:
        raise ConfigError(f"several branches are named {', '.join(doubled)}; give each its own name")


def _order(technique: Technique) -> int:
    return technique.order
