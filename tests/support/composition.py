"""Compose the real configuration, shrunk so that a run takes seconds on a CPU."""

from __future__ import annotations

from gate_lightning.engine.configuration import composed

__all__ = ["SMALL", "composed"]

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
