"""Training on a few augmented views that come again, as ``cache.augmented_views`` asks for."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import whole_number

__all__ = ["stored_views", "view_count"]


def view_count(config: DictConfig) -> int:
    """K of ``cache.augmented_views``, 0 for none.

    Raises:
        ConfigError: not a whole number from 0.
    """
    return whole_number(config.cache.augmented_views, "cache.augmented_views")


def stored_views(config: DictConfig, datamodule: Any) -> int:
    """Number of augmented training views, K of every image.

    Args:
        config: resolved configuration.
        datamodule: of the run, told already what the techniques need.

    Raises:
        ConfigError: K out of range, or data whose training images are not augmented.
    """
    count = view_count(config)
    if not count:
        return 0
    views = getattr(datamodule, "training_views", None)
    if views is None:
        raise ConfigError(
            f"cache.augmented_views={count} is for images with masks; {type(datamodule).__name__} gives none, leave it "
            "out"
        )
    training = views()
    if not training.random:
        raise ConfigError(
            f"cache.augmented_views={count}: the training images of {datamodule.card.name} are not augmented: "
            "all their views would be equal. Leave it out (cache.memory_gib and cache.folder keep plain images), "
            "or augment them (dataset.augment=true)"
        )
    return count * len(training)
