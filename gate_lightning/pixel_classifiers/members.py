"""Stopping single members of a stacked module: the others train on in smaller tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gate_lightning.errors import ConfigError, ResumeError

__all__ = ["Members", "narrow_members"]


@torch.no_grad()
def narrow_members(module: nn.Module, keep: Tensor, optimizer: Optimizer | None = None) -> None:
    """Remove members from a module whose parameters and buffers all have the members as first axis.

    Parameters stay the same objects, so the optimiser keeps them; its state is narrowed too. The remaining members
    train exactly as before, in smaller tensors.

    Args:
        module: to be narrowed in place. Gradients are dropped.
        keep: bool (M,), or the numbers of the members to keep.
        optimizer: of the module's parameters.
    """
    rows = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
    for tensor in _tensors(module).values():
        values = tensor.data[rows.to(tensor.device)]
        state = optimizer.state.get(tensor, {}) if optimizer is not None else {}
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                state[name] = value[rows.to(value.device)]
        _replace(tensor, values)


class Members:
    """Members of a stacked module: active ones in the module, and the saved values of stopped ones.

    ``module`` holds the active members in the order of their numbers. A checkpoint needs the (narrowed) state of the
    module, the state of its optimiser, and ``state_dict`` of this object.

    Args:
        module: parameters and buffers have the members as first axis, all of them at first.
        members: M.

    Raises:
        ConfigError: if a tensor of the module has another first axis.
    """

    def __init__(self, module: nn.Module, members: int) -> None:
        wrong = [name for name, value in _tensors(module).items() if value.dim() == 0 or len(value) != members]
        if wrong:
            raise ConfigError(f"{', '.join(wrong)} have no first axis of {members} members")
        self.module, self.members = module, members
        #: (A,) numbers of the members that are in the module
        self.active = torch.arange(members)
        self._stopped: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def stop(self, stopped: Tensor, optimizer: Optimizer | None = None) -> None:
        """Take members out of the module, keeping their values.

        Args:
            stopped: bool (A,), as ``StoppingRule.update`` returns it. The last member cannot be taken out of the module
                (there would be nothing left); once all have stopped nothing is narrowed and training is over.
            optimizer: of the module's parameters.
        """
        if not bool(stopped.any()) or bool(stopped.all()):
            return
        for row in stopped.nonzero().flatten().tolist():
            values = {name: value[row].detach().cpu().clone() for name, value in _tensors(self.module).items()}
            self._stopped[int(self.active[row])] = values
        narrow_members(self.module, ~stopped, optimizer)
        self.active = self.active[~stopped]

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The module with all members in the order of their numbers, as long as the context lasts; for prediction."""
        tensors = _tensors(self.module)
        narrowed = {name: value.data for name, value in tensors.items()}
        for name, value in tensors.items():
            _replace(value, self._all_rows(name, value))
        try:
            yield self.module
        finally:
            for name, value in tensors.items():
                _replace(value, narrowed[name])

    def state_dict(self) -> dict[str, Any]:
        """State of the members: which of them train, and the values of the others."""
        return {"members": self.members, "active": self.active.clone(), "stopped": dict(self._stopped)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; narrows the module, so call it before the module's state is loaded.

        Raises:
            ResumeError: if it was taken of another number of members.
        """
        if state["members"] != self.members:
            raise ResumeError(
                f"the checkpoint has {state['members']} members, this run {self.members}; resume with the same number"
            )
        with self.whole():
            everything = {name: value.data for name, value in _tensors(self.module).items()}
        for name, value in _tensors(self.module).items():
            _replace(value, everything[name][state["active"].to(value.device)])
        self.active, self._stopped = state["active"].clone(), dict(state["stopped"])

    def _all_rows(self, name: str, value: Tensor) -> Tensor:
        rows = dict(zip(self.active.tolist(), value.data, strict=True))
        stopped = {number: values[name].to(value.device, value.dtype) for number, values in self._stopped.items()}
        return torch.stack([(rows | stopped)[number] for number in range(self.members)])


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _replace(tensor: Tensor, values: Tensor) -> None:
    """Give a parameter or buffer values of another shape; its gradient is dropped."""
    tensor.grad = None
    if tensor.requires_grad:
        # a graph that is still referred to (by a loss that was logged) keeps the place gradients of this parameter go
        # to, and with it the old shape; torch forgets it when the dtype changes, not when the shape does
        other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = values
