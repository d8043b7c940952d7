"""Compose the real configuration, shrunk so that a run takes seconds on a CPU."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gate_lightning.engine.cli import config_folder, register_resolvers

#: random weights of the embedded architecture, few images, few steps
SMALL = (
    "backbone.weights=random",
    "dataset.train=8",
    "dataset.val=4",
    "dataset.test=4",
    "dataset.batch_size=4",
    "head.decode.channels=16",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.accelerator=cpu",
    "callbacks=quiet",
    "logger=csv",
)


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """The configuration that the command line would give, interpolations unresolved."""
    register_resolvers()
    with initialize_config_dir(config_folder(), version_base="1.3"):
        config = compose(name, overrides=list(overrides))
    OmegaConf.set_struct(config, False)
    return config
