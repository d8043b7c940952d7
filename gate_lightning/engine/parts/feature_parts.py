"""Frozen features for a tool that asks for them when it needs them, and again with other settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.backbones.base import Backbone
from gate_lightning.engine.command.command_help import described_choices
from gate_lightning.engine.command.configuration import chosen_option, composed
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError
from gate_lightning.tools.matching import FeatureParts

__all__ = ["ComposedParts"]


class ComposedParts:
    """Parts of ``eval.py``'s command line, or of another one, which is composed as the first was; see `PartsOf`.

    Backbones are kept, and used again where the next command line describes the same ones.

    Args:
        config: resolved configuration of the command line.
        overrides: that it was composed with.
    """

    def __init__(self, config: DictConfig, overrides: Sequence[str]) -> None:
        self._config = config
        of_hydra = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else ()
        self.overrides = (*(one for one in of_hydra if one.startswith("hydra.searchpath=")), *overrides)
        self._loaded: tuple[Any, dict[str, Backbone]] | None = None

    def __call__(self, overrides: Sequence[str] | None = None) -> FeatureParts:
        """Parts of the command line, or of another one; a backbone that both have is loaded once."""
        config = self._config if overrides is None else _resolved(overrides)
        components = Components(config, run_folder="")
        nodes = OmegaConf.to_container(OmegaConf.masked_copy(config, ["backbone", "backbones"]))
        if self._loaded is not None and self._loaded[0] == nodes:
            loaded = self._loaded[1]
            vars(components).update(backbones=loaded, backbone=next(iter(loaded.values())))
        else:
            self._loaded = None  # its memory is free before the next one is loaded
            self._loaded = nodes, components.backbones
        prompt = components.trained_on.prompt_simple
        return FeatureParts(components.extractor, components.amalgamation, components.required_inputs, prompt)

    def value(self, key: str) -> Any:
        """Value of a key of the first level, as plain data."""
        found = self._config[key]
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found

    def choice(self, group: str) -> str:
        """The option of a group that the command line chooses."""
        return chosen_option(group, *self.overrides, name="eval")

    def choices(self, group: str) -> list[tuple[str, str]]:
        """Choices of a group, with a sentence on each."""
        return described_choices(group)


def _resolved(overrides: Sequence[str]) -> DictConfig:
    try:
        return runs.resolve(composed(*overrides, name="eval"))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
