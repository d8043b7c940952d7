"""Features of a branch from passes over parts of an ensemble and of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from gate_lightning.errors import DataError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.steering import SteeredBranch
from gate_lightning.ops.rows import rows_of
from gate_lightning.structures import BranchFeatures

__all__ = ["GatheredFeatures"]


class GatheredFeatures:
    """Features of one branch for a whole batch, gathered from passes over some of its draws and images.

    The draws of an ensemble are summed as they arrive, in at least float32.
    """

    def __init__(self, branch: Branch) -> None:
        self.branch = branch
        self._parts: dict[tuple[int, ...], BranchFeatures] = {}

    def add(self, steered: SteeredBranch, features: BranchFeatures) -> None:
        """Add the features (R, C, h, w) of R images from one draw."""
        if self.branch.ensemble == 1:
            self._parts[steered.rows] = features
            return
        sums = self._parts.setdefault(steered.rows, {})
        for layer, value in features.items():
            if layer in sums:
                sums[layer] += value
            else:
                # a copy: it is a view of the pass's whole batch
                sums[layer] = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)

    def result(self, dtype: torch.dtype) -> BranchFeatures:
        """Layer → features (B, C, h, w), averaged over the draws, in the branch's order of layers.

        Raises:
            DataError: a layer whose shape follows the length of the prompt, where lengths differ in the batch.
        """
        return {layer: self._joined(layer).to(dtype) for layer in self.branch.layers}

    def _joined(self, layer: str) -> Tensor:
        parts = [features[layer] for features in self._parts.values()]
        shapes = {part.shape[1:] for part in parts}
        if len(shapes) > 1:
            raise DataError(
                f"branch {self.branch.name!r}: the size of {layer} follows the number of tokens, and the prompts of "
                f"this batch differ in length (shapes {', '.join(str(tuple(shape)) for shape in sorted(shapes))}); "
                f"give all images prompts of one length, or read them one by one"
            )
        joined = parts[0]
        if len(parts) > 1:
            order = [row for rows in self._parts for row in rows]
            joined = rows_of(torch.cat(parts), sorted(range(len(order)), key=order.__getitem__))
        return joined / self.branch.ensemble if self.branch.ensemble > 1 else joined
