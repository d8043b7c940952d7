"""Techniques from plain settings.

A technique's class is its schema: its fields are its settings, its class attributes declare how it is named and
combined (`techniques.base.Technique`).
"""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from gate_lightning.errors import ConfigError
from gate_lightning.techniques.base import Card, Technique
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.guidance import Guidance
from gate_lightning.techniques.inversion import Inversion
from gate_lightning.techniques.ip_adapter import IPAdapter
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from gate_lightning.utils.checks import check_known, did_you_mean

__all__ = ["Build", "ConfiguredTechnique", "configured_techniques"]

#: instantiates a mapping with ``_target_``
Build = Callable[[Mapping[str, Any]], Any]
#: known without ``_target_``; a further one names its class in ``technique.<name>._target_``
_OWN = (Prompt, ControlNet, LoRA, IPAdapter, Guidance, Inversion, Denoise)


class ConfiguredTechnique:
    """Class of a technique, and settings shared by all branches: the key ``technique.<name>``.

    Args:
        name: name in ``techniques=``.
        node: settings, with the class as ``_target_``; a bare value (see ``Technique.short``); or a list of these if a
            branch may have several.
        build: instantiates settings with a ``_target_`` of their own.

    Raises:
        ConfigError: no class, one that is no technique, or an unknown setting.
    """

    def __init__(self, name: str, node: Any, build: Build) -> None:
        self.name, self._build = name, build
        target = node.get("_target_") if isinstance(node, Mapping) else None
        self.kind = _technique_class(name, target)
        self.fields: dict[str, Field[Any]] = {one.name: one for one in fields(self.kind) if one.init}  # type: ignore[arg-type]
        self.shared = self.read(node, f"technique.{name}")

    def read(self, node: Any, where: str) -> list[dict[str, Any]]:
        """Settings with short forms expanded, one mapping per technique."""
        if isinstance(node, list | tuple) and (not self.kind.several or not node):
            raise ConfigError(f"{where}={node!r}: expected {'at least one' if self.kind.several else 'no list'}")
        items = node if isinstance(node, list | tuple) else [node]
        return [one for item in items for one in self._expanded(self._item(item, where), where)]

    def _item(self, node: Any, where: str) -> dict[str, Any]:
        if isinstance(node, Mapping):
            item = {str(key): value for key, value in node.items() if key not in ("_target_", "_convert_")}
        elif node is None:
            item = {}
        elif self.kind.short and not isinstance(node, bool):
            item = {self.kind.short: node}
        else:
            raise ConfigError(f"{where}={node!r}: expected a mapping of {', '.join(self.fields)}")
        check_known(item, self.fields, where)
        return item

    def _expanded(self, item: dict[str, Any], where: str) -> list[dict[str, Any]]:
        """Expand ``name: [canny, depth]`` to two items."""
        several = item.get(self.kind.several)
        if not isinstance(several, list | tuple):
            return [item]
        single = [key for key in self.kind.exclusive if item.get(key)]
        if single or not several:
            raise ConfigError(
                f"{where}: {several!r} with {', '.join(single) or f'no {self.kind.several}'}; give a list of mappings "
                f"instead"
            )
        return [{**item, self.kind.several: one} for one in several]

    def made(self, own: Sequence[Mapping[str, Any]] | None, card: Card, seed: int, where: str) -> list[Technique]:
        """The techniques of one branch.

        Args:
            own: settings of the branch, which override the shared ones; None for the shared ones alone.
            card: card of the data set.
            seed: seed of the run.
            where: key of the branch, for errors.
        """
        techniques: list[Technique] = []
        for item in self.shared if own is None else own:
            settings = item if own is None else self._merged(item)
            technique = self._technique(settings, where)
            idle = [] if own is None else [key for key in item if key in technique.without_effect()]
            if idle:
                rest = {key: value for key, value in settings.items() if key not in idle and value is not None}
                raise ConfigError(f"{where} sets {', '.join(idle)}, without effect beside {rest}; leave it out")
            if technique in techniques:
                raise ConfigError(f"{where}: {dict(settings)} is there twice; raise its scale instead")
            techniques.append(technique)
        return [technique.bound(card, seed) for technique in techniques]

    def _merged(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of a branch merged over the shared ones, of the same ControlNet or LoRA if there are several."""
        key = self.kind.several
        same = [item for item in self.shared if not key or key not in own or item.get(key) == own[key]]
        base = dict(same[0] if same else self.shared[0] if len(self.shared) == 1 else {})
        exclusive = self.kind.exclusive
        if not same or any(setting in own for setting in exclusive):
            base = {setting: value for setting, value in base.items() if setting not in exclusive}
        return {**base, **own}

    def _technique(self, settings: Mapping[str, Any], where: str) -> Technique:
        given = {key: self._value(key, value) for key, value in settings.items() if value is not None}
        missing = [
            key
            for key, one in self.fields.items()
            if key not in given and one.default is MISSING and one.default_factory is MISSING
        ]
        if missing:
            raise ConfigError(f"{where} needs {', '.join(missing)}: technique.{self.name}.{missing[0]}=<value>")
        return self.kind(**given)

    def _value(self, key: str, value: Any) -> Any:
        if isinstance(value, Mapping) and "_target_" in value:
            return self.kind.configured(key, self._build(value), json.dumps(value, sort_keys=True))
        return tuple(value) if isinstance(value, list) else value


def configured_techniques(nodes: Mapping[str, Any], build: Build | None = None) -> dict[str, ConfiguredTechnique]:
    """Techniques by the names that ``techniques=`` may use: those of this package and those of ``nodes``.

    Args:
        nodes: ``technique`` of the configuration.
        build: instantiates settings with a ``_target_``, such as control functions; None refuses them.

    Raises:
        ConfigError: an unknown technique without class, or unknown settings.
    """
    build = build or _refuse
    names = dict.fromkeys([*(kind.kind for kind in _OWN), *map(str, nodes)])
    return {name: ConfiguredTechnique(name, nodes.get(name), build) for name in names}


def _technique_class(name: str, target: Any) -> type[Technique]:
    own: dict[str, type[Technique]] = {kind.kind: kind for kind in _OWN}
    if target is None:
        if name not in own:
            raise ConfigError(
                f"technique: unknown key {name!r}; {did_you_mean(name, own)}expected of {', '.join(own)}. A technique "
                f"of your own names its class: technique.{name}._target_=<module>.<class>"
            )
        return own[name]
    where = f"technique.{name}._target_={target}"
    try:
        found: Any = pkgutil.resolve_name(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}: {error}; expected <module>.<class> of an installed module, or of one beside train.py"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Technique) and hasattr(found, "__dataclass_fields__")):
        raise ConfigError(
            f"{where} is no technique; expected a dataclass derived from {Technique.__module__}.Technique"
        )
    return found


def _refuse(node: Mapping[str, Any]) -> Any:
    raise ConfigError(f"{dict(node)} is a mapping; objects are built from `_target_` by the command lines only")
