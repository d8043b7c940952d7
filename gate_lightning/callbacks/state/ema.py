"""Exponential moving average of the trainable weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from gate_lightning.errors import ConfigError

__all__ = ["WeightAverage", "averaged_weights", "with_average"]


class WeightAverage(Callback):
    """Keeps an average of the trainable weights; evaluation and export see the average, training does not.

    average ← d · average + (1 − d) · weights after every optimiser step n, with d = min(decay, (1 + n) / (10 + n)), so
    that the random initial weights are forgotten. The statistics that normalisations of these weights keep (running
    mean and variance) are averaged with them, so that they fit. The average is part of the checkpoint.

    Lightning's ``WeightAveraging`` (2.6) does none of the following, and each of its hooks would have to be replaced:
    it copies the whole module and saves the copy, frozen parts included; its first update is a copy, so there is no
    rise of the decay from the initial weights; it measures the average in validation but not in test, and also where
    a checkpoint is evaluated, whose weights it then replaces; a validation that breaks off leaves the average in the
    module, as the end of training does.

    Args:
        decay: share of the old average kept at each optimiser step, in [0, 1).

    Raises:
        ConfigError: ``decay`` is out of range.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"decay is {decay}; expected 0 <= decay < 1, for example 0.999.")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._last_step = -1
        self._kept: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the present weights, or move a restored average to the module's device."""
        tensors = dict(_averaged(pl_module))
        if not self._average:
            self._average = {name: value.detach().clone() for name, value in tensors.items()}
        lacking, unknown = tensors.keys() - self._average.keys(), self._average.keys() - tensors.keys()
        if lacking or unknown:
            raise ConfigError(
                f"the restored weight average lacks {len(lacking)} trainable weights (first {sorted(lacking)[:1]}) "
                f"and has {len(unknown)} others (first {sorted(unknown)[:1]}); resume with the configuration of the run"
            )
        self._average = {name: a.to(tensors[name].device) for name, a in self._average.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step: a resumed trainer knows it only now, after its loops were restored."""
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Move the average one step, once per optimiser step (not per accumulated batch)."""
        step = trainer.global_step
        if step == self._last_step:
            return
        self._last_step = step
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        names, values = zip(*_averaged(pl_module), strict=True)
        torch._foreach_lerp_([self._average[n] for n in names], [v.detach() for v in values], 1.0 - decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average into the module, unless a checkpoint is evaluated: it holds what is to be measured."""
        if trainer.state.fn == TrainerFn.FITTING or trainer.ckpt_path is None:
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the trained weights back."""
        self._swap_out(pl_module)

    on_test_start, on_test_end = on_validation_start, on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the trained weights back if a validation is interrupted."""
        self._swap_out(pl_module)

    @contextmanager
    def averaged(self, pl_module: LightningModule) -> Iterator[None]:
        """Context in which the module holds the average."""
        self._swap_in(pl_module)
        try:
            yield
        finally:
            self._swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The average, for the checkpoint."""
        return {"average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the moving average of a checkpoint."""
        self._average = dict(state_dict["average"])

    @torch.no_grad()
    def _swap_in(self, pl_module: LightningModule) -> None:
        if self._kept or not self._average:
            return
        for name, value in _averaged(pl_module):
            self._kept[name] = value.detach().clone()
            value.copy_(self._average[name])

    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        for name, value in _averaged(pl_module):
            if name in self._kept:
                value.copy_(self._kept[name])
        self._kept.clear()


def with_average(trainer: Trainer, pl_module: LightningModule) -> AbstractContextManager[None]:
    """Context in which the module holds the average that the trainer keeps, or its own weights where it keeps none."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    average = next((c for c in callbacks if isinstance(c, WeightAverage)), None)
    return nullcontext() if average is None else average.averaged(pl_module)


def averaged_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The average that a full checkpoint holds, by name in the module; empty where there is none."""
    average: dict[str, Tensor] = checkpoint.get("callbacks", {}).get(WeightAverage.__name__, {}).get("average", {})
    return average


def _averaged(module: LightningModule) -> Iterator[tuple[str, Tensor]]:
    """Trainable parameters, and floating-point buffers beside them in the same layer."""
    for prefix, layer in module.named_modules():
        own = [(name, p) for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
        tensors = [
            *own,
            *((name, b) for name, b in layer.named_buffers(recurse=False) if own and b.is_floating_point()),
        ]
        yield from ((f"{prefix}.{name}" if prefix else name, value) for name, value in tensors)
