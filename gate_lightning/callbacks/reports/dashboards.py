"""Pictures and tables: files in the run folder, and dashboards where a logger has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image

__all__ = ["publish_picture", "publish_table"]


def publish_picture(trainer: Trainer, name: str, picture: NDArray[np.uint8], suffix: str = "") -> Path:
    """Write ``pictures/<name><suffix>.png`` into the run folder; show it on dashboards as ``name``.

    Args:
        trainer: its ``default_root_dir`` is the run folder.
        name: of the picture.
        picture: (H, W, 3) uint8 RGB.
        suffix: what tells several pictures of that name apart.
    """
    path = Path(trainer.default_root_dir) / "pictures" / f"{name}{suffix}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{name}", [picture])
    return path


def publish_table(trainer: Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show a table on dashboards as ``tables/<name>``."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(f"tables/{name}", columns=list(columns), data=[list(row) for row in rows])
