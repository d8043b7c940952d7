"""The configuration's components for users of the library, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gate_lightning.backbones.base import Backbone
from gate_lightning.engine.cli import config_folder, register_resolvers
from gate_lightning.engine.components import Components
from gate_lightning.errors import ConfigError

__all__ = ["load_backbone"]


def load_backbone(name: str = "tiny", **settings: Any) -> Backbone:
    """A frozen backbone, as ``backbone=<name>`` on the command line gives it.

    Args:
        name: a file of ``conf/backbone``: tiny, sd15, sd21 …
        settings: what that file sets, otherwise: ``weights="<folder or hub id>"``, ``dtype="bfloat16"``,
            ``controlnets={"depth": "<folder>"}`` …

    Raises:
        ConfigError: no such backbone or setting.
        WeightsError: weights missing, broken, or of another kind of model.
    """
    folder = Path(config_folder())
    names = sorted(path.stem for path in (folder / "backbone").glob("*.yaml"))
    if name not in names:
        raise ConfigError(f"there is no backbone {name!r}; expected one of {', '.join(names)}")
    register_resolvers()
    with initialize_config_dir(str(folder), version_base="1.3"):
        node = compose(f"backbone/{name}").backbone
    OmegaConf.set_struct(node, False)  # mappings, such as controlnets, take new keys
    unknown = sorted(settings.keys() - node.keys())
    if unknown:
        raise ConfigError(f"backbone {name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(node))}")
    return Components(OmegaConf.create({"backbone": OmegaConf.merge(node, settings)}), run_folder="").backbone
