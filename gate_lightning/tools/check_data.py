"""Look at a data set before training on it: broken pairs, unknown labels, sizes, empty classes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gate_lightning.data.core.datamodule import SegmentationDataModule
from gate_lightning.data.files.checks import DataReport
from gate_lightning.errors import ConfigError, DataError

__all__ = ["check_data"]


def check_data(
    dataset: SegmentationDataModule | Mapping[str, Any], level: str = "full", output: str | None = None
) -> DataReport:
    """Check all splits of a data set.

    Args:
        dataset: a data module, or its configuration: ``_target_`` and arguments.
        level: ``full`` decodes every file, ``quick`` all headers and some files.
        output: folder for ``check_data.txt``; None writes nothing.

    Returns:
        The report; ``str(report)`` is its text.

    Raises:
        DataError: the data set is broken; the message is the whole report.
        ConfigError: ``dataset`` is no segmentation data set.
    """
    datamodule = dataset if isinstance(dataset, SegmentationDataModule) else _build(dataset)
    report = datamodule.check(level)
    if output is not None:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "check_data.txt").write_text(f"{report}\n", encoding="utf-8")
    if report.errors:
        raise DataError(f"{report}")
    return report


def _build(config: Mapping[str, Any]) -> SegmentationDataModule:
    made = _made(config)
    if not isinstance(made, SegmentationDataModule):
        known = "folder, ade20k, cityscapes, scenes or horse21"
        raise ConfigError(f"tool=check_data cannot check {config.get('_target_')!r}; use dataset={known}")
    return made


def _made(config: Mapping[str, Any]) -> Any:
    """The object of a configuration, or None where its class is none of ours; a wrapped data set is made first."""
    module, _, name = str(config.get("_target_", "")).rpartition(".")
    if not module.startswith("gate_lightning.data"):
        return None
    arguments = {str(key): value for key, value in config.items() if not str(key).startswith("_")}
    inner = arguments.get("dataset")
    if isinstance(inner, Mapping):
        arguments["dataset"] = _build(inner)
    return getattr(importlib.import_module(module), name)(**arguments)
