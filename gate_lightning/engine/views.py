"""What ``cache.augmented_views`` asks for: training on views whose features were stored before."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig

from gate_lightning.callbacks.fill_views import FillViews
from gate_lightning.errors import ConfigError
from gate_lightning.features.caches.augmented_views import AugmentedFeatureCache, StoredViews, describe
from gate_lightning.structures import SegmentationBatch

__all__ = ["train_on_stored_views", "view_count", "view_settings"]


def view_count(config: DictConfig) -> int:
    """K of ``cache.augmented_views``, 0 for none.

    Raises:
        ConfigError: not a whole number from 0.
    """
    count = config.cache.augmented_views
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigError(f"cache.augmented_views={count!r}: expected a number of views, or 0 for none")
    return count


def view_settings(config: DictConfig, datamodule: Any) -> dict[str, Any] | None:
    """What decides how the training views look, JSON-able; None where none are to be stored.

    Args:
        config: resolved configuration.
        datamodule: of the run.

    Raises:
        ConfigError: see `view_count`; or data without augmented images.
    """
    if not view_count(config):
        return None
    if datamodule.batch_type is not SegmentationBatch:
        raise ConfigError(
            f"cache.augmented_views is for images with masks; {type(datamodule).__name__} gives none, leave it out"
        )
    settings = {"augmentation": datamodule.train_transform, "seed": datamodule.seed}
    # mixed precision decides in which numbers the backbone computes
    settings["precision"] = str((config.get("trainer") or {}).get("precision", "32-true"))
    described: dict[str, Any] = describe(settings)
    return described


def train_on_stored_views(
    config: DictConfig, task: Any, datamodule: Any, trainer: Trainer, run_folder: str | Path
) -> None:
    """Have the views filled when training starts, and the head trained on them; nothing where ``cached_views`` is 0.

    Args:
        config: resolved configuration.
        task, datamodule, trainer: of the run.
        run_folder: of the run.

    Raises:
        ConfigError: a task that does not train on images, or images that are the same in every epoch.
    """
    count = view_count(config)
    if not count:
        return
    if task.batch_type is not SegmentationBatch:
        raise ConfigError(
            f"cache.augmented_views={count}: {type(task).__name__} does not train on images with masks; leave it out"
        )
    if not datamodule.training_views().random:
        raise ConfigError(
            f"cache.augmented_views={count}: the training images of {datamodule.card.name} are not augmented: "
            "all their views would be equal. Leave it out (cache.memory_gib and cache.folder keep plain images), "
            "or augment them (dataset.augment=true)"
        )
    views: Any = task.extractor
    while not isinstance(views, AugmentedFeatureCache):
        views = views.extractor
    datamodule.view_cycle = count
    datamodule.stored_views = partial(StoredViews, store=views.store, multiple=views.backbone.size_multiple)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks.append(FillViews(views, datamodule, count, run_folder))
