"""Check of a data set before training: broken pairs, unknown labels, sizes, empty classes."""

from __future__ import annotations

from pathlib import Path

from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.files.report import DataReport
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.files import write_atomically

__all__ = ["check_data"]


def check_data(datamodule: ImageDataModule | None, level: str = "full", output: str | None = None) -> DataReport:
    """Check all splits of a data set.

    Args:
        datamodule: the data set.
        level: ``full`` decodes every file, ``quick`` all headers and some files.
        output: folder for ``check_data.txt``; None writes nothing.

    Returns:
        The report; ``str(report)`` is its text.

    Raises:
        DataError: the data set is broken; the message is the whole report.
        ConfigError: there is no data set, or one that cannot be checked.
    """
    if datamodule is None:
        raise ConfigError("tool=check_data needs a data set: dataset=<name> (see conf/dataset/)")
    if not isinstance(datamodule, ImageDataModule):
        raise ConfigError(
            f"tool=check_data cannot check {type(datamodule).__name__}: it has no fixed set of images; use "
            "dataset=folder, ade20k, cityscapes, scenes, horse21 or spair71k"
        )
    report = datamodule.check(level)
    if output is not None:
        write_atomically(Path(output) / "check_data.txt", f"{report}\n".encode())
    if report.errors:
        raise DataError(f"{report}")
    return report
