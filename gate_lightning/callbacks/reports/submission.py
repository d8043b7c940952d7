"""Predictions in a benchmark's submission format: one PNG per image, with the server's class values."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.utils.files import write_image

__all__ = ["SubmissionWriter"]

log = logging.getLogger(__name__)


class SubmissionWriter(Callback):
    """Writes the label maps of ``trainer.predict`` into one folder: 8-bit PNGs named like the images.

    Args:
        folder: for the files; created. Everything in it belongs to the submission, so that it can be zipped.
        values: file value of every class (``ClassLabels.submission``).
        images: all files that will be predicted.

    Raises:
        ConfigError: no values: the data set has no server.
        DataError: two images of one name, or the folder holds files of something else.
    """

    def __init__(self, folder: Path, values: Sequence[int], images: Sequence[Path]) -> None:
        if not values:
            raise ConfigError("this data set has no submission format; use input=<images> for masks and overlays")
        self.folder, self.table = folder, np.array(values, dtype=np.uint8)
        names = Counter(f"{path.stem}.png" for path in images)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise DataError(f"two images would both be written to {twice[0]}; a submission has one folder")
        folder.mkdir(parents=True, exist_ok=True)
        # a hidden file is half a PNG of a run that was killed, and will be written again
        strange = sorted(p.name for p in folder.iterdir() if p.name not in names and not p.name.startswith("."))
        if strange:
            raise DataError(
                f"{folder} holds {len(strange)} files of something else (first {strange[0]}), which a server would "
                "refuse; give output=<new folder>"
            )

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Write the label maps (B, H, W) of a batch of image files."""
        for labels, path in zip(outputs, batch.paths, strict=True):
            write_image(self.folder / f"{Path(path).stem}.png", Image.fromarray(self.table[labels.cpu().numpy()]))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of masks and the folder."""
        if trainer.is_global_zero:
            count = sum(1 for _ in self.folder.glob("*.png"))
            log.info("submission: %d masks in %s; zip the files of this folder and upload them", count, self.folder)
