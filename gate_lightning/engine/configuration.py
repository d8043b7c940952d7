"""Where conf/ is, its resolvers, and composing it without a command line."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

__all__ = ["composed", "config_folder"]

# ${gate.first_set:a,b} in conf/ is a where a is set, else b
OmegaConf.register_new_resolver("gate.first_set", lambda value, fallback: value or fallback, replace=True)


def config_folder() -> Path:
    """``conf/`` beside the package in a checkout, else the copy inside the installed wheel."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "conf"
    return beside if (beside / "train.yaml").is_file() else package / "conf"


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The configuration that the command line would give, with its interpolations, open to new keys.

    Args:
        overrides: as on the command line.
        name: file of conf/ without its suffix: ``train``, ``eval``, ``backbone/sd15`` …
    """
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose(name, overrides=list(overrides))
    OmegaConf.set_struct(config, False)
    return config
