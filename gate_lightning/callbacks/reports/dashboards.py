"""Images and tables: files in the run folder, and dashboards where a logger has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image

__all__ = ["publish_image", "publish_table"]


def publish_image(trainer: Trainer, name: str, image: NDArray[np.uint8], suffix: str = "") -> Path:
    """Write ``images/<name><suffix>.png`` into the run folder; show it on dashboards as ``name``.

    Args:
        trainer: its ``default_root_dir`` is the run folder.
        name: of the image.
        image: (H, W, 3) uint8 RGB.
        suffix: what tells several images of that name apart.
    """
    path = Path(trainer.default_root_dir) / "images" / f"{name}{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"images/{name}", [image])
    return path


def publish_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show a table on dashboards as ``tables/<name>``."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(f"tables/{name}", columns=list(columns), data=[list(row) for row in rows])
