"""The configuration's components for users of the library, without a run."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gate_lightning.backbones.base import Backbone
from gate_lightning.engine.checks.precision import choose_types
from gate_lightning.engine.command.configuration import composed, config_folder
from gate_lightning.engine.parts.building import built_group
from gate_lightning.errors import ConfigError, first_line

__all__ = ["load_backbone"]


def load_backbone(name: str = "tiny", **settings: Any) -> Backbone:
    """A frozen backbone, as ``backbone=<name>`` on the command line gives it.

    Args:
        name: a file of ``conf/backbone``: tiny, sd15, sd21 …
        settings: what that file sets, otherwise: ``weights="<folder or hub id>"``, ``dtype="bfloat16"``,
            ``controlnets={"depth": "<folder>"}`` … Messages name them as on the command line: ``backbone.weights`` is
            the setting ``weights``. What a command chooses for its GPU is chosen by the caller: ``channels_last=True``.

    Raises:
        ConfigError: no such backbone or setting.
        WeightsError: weights missing, broken, or of another kind of model.
    """
    names = sorted(path.stem for path in (config_folder() / "backbone").glob("[!_]*.yaml"))
    if name not in names:
        raise ConfigError(f"there is no backbone {name!r}; expected one of {', '.join(names)}")
    node = composed(name=f"backbone/{name}").backbone
    known = sorted(key for key in node if not key.startswith("_"))
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        raise ConfigError(f"backbone {name} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        merged = OmegaConf.create({"backbone": OmegaConf.merge(node, settings)})
    except OmegaConfBaseException as error:
        raise ConfigError(f"backbone {name}: {', '.join(settings)} cannot be set so: {first_line(error)}") from error
    choose_types(merged)
    backbone: Backbone = built_group(merged, "backbone")
    return backbone
