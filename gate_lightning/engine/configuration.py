"""Where conf/ is, its resolvers, and composing it without a command line."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.run_lock import new_folder

__all__ = ["composed", "config_folder"]

# ${gate.run_folder:a,b} in conf/ is a, the folder of a resumed run, where that is set, else b, made anew
OmegaConf.register_new_resolver(
    "gate.run_folder", lambda resumed, wanted: resumed or new_folder(wanted), replace=True, use_cache=True
)


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
