"""Images and tables of a run or a sweep: files in its folder, and copies on the dashboards of its loggers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from PIL import Image

from gate_lightning.data.card import ClassLabels
from gate_lightning.utils.files import write_csv, write_image
from gate_lightning.utils.text import read_csv
from gate_lightning.visualization.predictions import PredictedImage

__all__ = ["publish_image", "publish_predictions", "publish_sweep", "publish_table"]


def publish_image(trainer: Trainer, name: str, image: NDArray[np.uint8], shown: str | None = None) -> Path:
    """Write ``images/<name>.png`` into the run folder; show it on dashboards as ``images/<shown>``.

    Args:
        trainer: its ``default_root_dir`` is the run folder.
        name: of the file.
        image: (H, W, 3) uint8 RGB.
        shown: name that files of one thing at several steps have in common; None for that of the file.
    """
    path = Path(trainer.default_root_dir) / "images" / f"{name}.png"
    write_image(path, Image.fromarray(image))
    key = f"images/{shown or name}"
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [image], step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, image, trainer.global_step, dataformats="HWC")
    return path


def publish_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write ``<name>.csv`` into the run folder; show it on dashboards as ``tables/<name>``."""
    path = Path(trainer.default_root_dir) / f"{name}.csv"
    write_csv(path, columns, rows)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            data = [list(row) for row in rows]
            logger.log_table(f"tables/{name}", columns=list(columns), data=data, step=trainer.global_step)
        elif isinstance(logger, TensorBoardLogger):
            lines = [columns, ["---"] * len(columns), *rows]
            text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
            logger.experiment.add_text(f"tables/{name}", text, trainer.global_step)
    return path


def publish_predictions(trainer: Trainer, name: str, rows: Sequence[PredictedImage], labels: ClassLabels) -> None:
    """Show images on Weights & Biases as ``predictions/<name>``, with masks one can switch on and off; nowhere else.

    Args:
        trainer: its loggers are the dashboards.
        name: of the images.
        rows: images with their true and predicted labels; their titles are the captions.
        labels: names of the classes.
    """
    loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
    if not rows or not loggers:
        return
    titles = {**dict(enumerate(labels.classes)), labels.ignore_index: "not labelled"}
    masks = [
        {
            key: {"mask_data": values.astype(np.uint8), "class_labels": titles}
            for key, values in (("ground_truth", row.truth), ("prediction", row.prediction))
        }
        for row in rows
    ]
    for logger in loggers:
        images, captions = [row.image for row in rows], [row.title for row in rows]
        logger.log_image(f"predictions/{name}", images, trainer.global_step, caption=captions, masks=masks)


def publish_sweep(folder: Path, logger: WandbLogger) -> None:
    """Show tables and charts of a sweep (``comparison*.csv``, ``comparison*.png``) in a run of their own.

    Args:
        folder: of the sweep, after its runs were compared.
        logger: of that run.
    """
    for path in sorted(folder.glob("comparison*.csv")):
        rows = read_csv(path)
        columns = list(rows[0]) if rows else []
        cells = [_typed([row[name] for row in rows]) for name in columns]
        logger.log_table(f"tables/{path.stem}", columns, [list(row) for row in zip(*cells, strict=True)], step=0)
    for path in sorted(folder.glob("comparison*.png")):
        logger.log_image(f"images/{path.stem}", [str(path)], step=0)


def _typed(cells: list[str]) -> list[Any]:
    """Cells of a column as numbers where all are; None for an empty one. A column of a wandb table has one type."""
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return list(cells)
