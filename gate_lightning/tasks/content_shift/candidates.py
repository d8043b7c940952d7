"""Candidates that are compared: branches, a plain one among them, and their rows of shuffled captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.layer_presets import resolve_layers

__all__ = ["PLAIN", "SHUFFLED", "Candidate", "Candidates", "listed_candidates", "shuffled"]

PLAIN = "none"
SHUFFLED = " (shuffled)"


@dataclass(frozen=True)
class Candidates:
    """Branches that were asked for, and those that cannot be built.

    Attributes:
        branches: one for each candidate.
        left_out: name of a candidate → why there is no branch of it.
    """

    branches: tuple[Branch, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A row of the ranking.

    Attributes:
        name: of the row.
        branch: how features are read; its timestep is replaced.
        kind: ``plain``, ``candidate``, ``noises`` (plain features averaged over several noises: the control of equal
            cost), ``shuffled`` (a candidate whose images have each other's captions: the control of what texts say) or
            ``ceiling`` (images that were encoded and decoded, and not noised).
        of: the candidate that a shuffled row is the control of; "" for others.
        timesteps: at which it is read whatever timestep is compared: clean latents (-1), or several whose features are
            concatenated; () for the one that is compared.
    """

    name: str
    branch: Branch
    kind: str = "candidate"
    of: str = ""
    timesteps: tuple[int, ...] = ()

    def read_at(self, timestep: int) -> tuple[int, ...]:
        """Timesteps that are read where ``timestep`` is compared; 0, of references, is itself."""
        return self.timesteps if self.timesteps and timestep != 0 else (timestep,)


def listed_candidates(
    branches: Sequence[Branch],
    backbones: Mapping[str, Backbone],
    noises: Sequence[int] = (),
    fused: Sequence[Sequence[int]] = (),
) -> tuple[list[Candidate], dict[str, str]]:
    """The plain branch of every backbone, the branches that are given, then plain ones of several timesteps or noises.

    All see the same noise, and all of a backbone read the same layers: those that any of them names.

    Args:
        branches: at least one; one without techniques is the plain one. One of clean latents (timestep -1) stays so.
        backbones: by the names that branches give.
        noises: numbers of noises of the controls of equal cost.
        fused: lists of timesteps whose plain features are concatenated: a candidate each.

    Returns:
        The rows; and why some cannot be read: their names → reasons (weights that are missing, a backbone that
        does not take the technique).

    Raises:
        ConfigError: nothing is left besides plain branches although more was asked for, or names that clash.
    """
    _require_names([one.name for one in branches])
    layers: dict[str, tuple[str, ...]] = {}
    for branch in branches:
        own = resolve_layers(backbones[branch.backbone], branch.layers)
        layers[branch.backbone] = tuple(dict.fromkeys([*layers.get(branch.backbone, ()), *own]))
    found: list[Candidate] = []
    plains: list[Branch | None] = []
    left_out: dict[str, str] = {}
    for backbone, names in layers.items():
        own_plain = next((one for one in branches if one.backbone == backbone and _is_plain(one)), None)
        first = next(one for one in branches if one.backbone == backbone)
        plain = own_plain or replace(
            first, name=_name(PLAIN, backbone, backbones), techniques=(), ensemble=1, timestep=0
        )
        found.append(Candidate(plain.name, _read(plain, names), "plain"))
        plains.append(own_plain)
    for branch in (one for one in branches if not any(one is plain for plain in plains)):
        try:
            for technique in branch.techniques:
                technique.prepare(backbones[branch.backbone])
        except (WeightsError, ConfigError) as error:
            left_out[branch.name] = str(error)
            continue
        clean = (branch.timestep,) if branch.timestep < 0 else ()
        found.append(Candidate(branch.name, _read(branch, layers[branch.backbone]), timesteps=clean))
    for plain_row in [one for one in found if one.kind == "plain"]:
        found += _controls(plain_row, noises, fused)
    _require_names([*(one.name for one in found), *left_out])
    return found, left_out


def _require_names(names: Sequence[str]) -> None:
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(
            f"several candidates are named {', '.join(doubled)}; give each another name ({PLAIN}: plain features)"
        )


def _controls(plain: Candidate, noises: Sequence[int], fused: Sequence[Sequence[int]]) -> list[Candidate]:
    """Rows of plain features of several timesteps, then of several noises."""
    made = []
    for timesteps in fused:
        name = f"{plain.name} at {'+'.join(map(str, timesteps))}"
        made.append(Candidate(name, replace(plain.branch, name=name), timesteps=tuple(timesteps)))
    for count in noises:
        name = f"{plain.name} x{count}"
        made.append(Candidate(name, replace(plain.branch, name=name, ensemble=count), "noises"))
    return made


def shuffled(candidate: Candidate) -> Candidate:
    """The row whose images have each other's captions."""
    return replace(candidate, name=candidate.name + SHUFFLED, kind="shuffled", of=candidate.name)


def _is_plain(branch: Branch) -> bool:
    return not branch.techniques and branch.ensemble == 1 and branch.timestep >= 0


def _name(name: str, backbone: str, backbones: Mapping[str, Backbone]) -> str:
    return name if backbone == next(iter(backbones)) else f"{name} {backbone}"


def _read(branch: Branch, layers: tuple[str, ...]) -> Branch:
    return replace(branch, layers=layers, noise_seed=0, noise_index=0, concatenated=False)
