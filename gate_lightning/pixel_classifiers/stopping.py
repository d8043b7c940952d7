"""Early stopping of single ensemble members (ddpm-segmentation's rule)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gate_lightning.errors import ConfigError, ResumeError
from gate_lightning.utils.checks import whole_number

__all__ = ["StoppingRule"]


class StoppingRule:
    """Early stopping by the loss of single batches, for each member by itself.

    From epoch ``start_epoch`` on (0-based; 4 in the paper's code: four full epochs always run), a member stops at batch
    ``patience`` + 1 in a row without a new minimum of its loss. ``max_epochs`` is left to the trainer.

    Args:
        members: M.
        patience: most batches in a row without a new minimum.
        start_epoch: first epoch that counts.

    Raises:
        ConfigError: if a number is out of range.
    """

    def __init__(self, members: int, patience: int = 50, start_epoch: int = 4) -> None:
        whole_number(patience, "patience")
        whole_number(start_epoch, "start_epoch")
        self.patience, self.start_epoch = patience, start_epoch
        #: (M,) lowest loss since counting started
        self.best = torch.full((members,), torch.inf, dtype=torch.float64)
        #: (M,) batches since the lowest loss
        self.waited = torch.zeros(members, dtype=torch.int64)
        #: (M,) steps of each member, including those before ``start_epoch``
        self.steps = torch.zeros(members, dtype=torch.int64)
        #: (M,) bool, members that still train
        self.active = torch.ones(members, dtype=torch.bool)

    @property
    def finished(self) -> bool:
        """True if all members have stopped."""
        return not bool(self.active.any())

    def fewest_steps(self, batches: int) -> int:
        """Least steps of every member with ``batches`` per epoch; the first step that counts is a minimum."""
        return self.start_epoch * batches + 1 + self.patience + 1

    def update(self, losses: Tensor, epoch: int) -> Tensor:
        """Members that stop after a step.

        Args:
            losses: (A,) losses of the members that still train, in the order of their numbers.
            epoch: 0-based epoch of the step.

        Returns:
            Bool (A,) on the CPU: True for the members that stop; they are absent from the next call's ``losses``.

        Raises:
            ConfigError: if there are not as many losses as members that train.
        """
        active = self.active.nonzero().flatten()
        if losses.shape != active.shape:
            raise ConfigError(f"got losses {tuple(losses.shape)}; expected ({len(active)},): {len(active)} still train")
        self.steps[active] += 1
        if epoch < self.start_epoch:
            return torch.zeros(len(active), dtype=torch.bool)  # without looking: on a GPU that would wait for the step
        values = losses.detach().double().cpu()
        better = values < self.best[active]
        self.best[active] = torch.where(better, values, self.best[active])
        self.waited[active] = torch.where(better, torch.zeros_like(active), self.waited[active] + 1)
        stopped = self.waited[active] > self.patience
        self.active[active[stopped]] = False
        return stopped

    def state_dict(self) -> dict[str, Any]:
        """Copies of the best losses, waiting times, steps and active members, for ``load_state_dict``."""
        names = ("best", "waited", "steps", "active")
        return {name: getattr(self, name).clone() for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a rule.

        Raises:
            ResumeError: if it had another number of members.
        """
        if len(state["active"]) != len(self.active):
            raise ResumeError(
                f"the checkpoint has {len(state['active'])} members, this run {len(self.active)}; resume with the "
                "same number of members"
            )
        for name, value in state.items():
            setattr(self, name, value.clone())
