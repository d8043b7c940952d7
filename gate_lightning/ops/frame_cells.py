"""Masks of a video's frames as labels of the cells of their feature maps, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gate_lightning.ops.propagation import labels_of, nearest, one_hot

__all__ = ["FrameCells"]


@dataclass(frozen=True)
class FrameCells:
    """Cells of a frame's feature map.

    Attributes:
        seen: (H, W) of the frame as the backbone sees it.
        stride: pixels of it per cell; the last row and column of cells may reach beyond the frame.
    """

    seen: tuple[int, int]
    stride: int

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns (h, w) of the feature map."""
        return -(-self.seen[0] // self.stride), -(-self.seen[1] // self.stride)

    def labels_of(self, mask: NDArray[np.uint8], objects: int) -> Tensor:
        """Labels (objects + 1, h, w) of a mask at the size of the frame's file: background, then objects 1 … n."""
        rows, columns = self.cells
        reach = (rows * self.stride / self.seen[0], columns * self.stride / self.seen[1])
        return one_hot(nearest(torch.from_numpy(mask), (rows, columns), reach), objects + 1)

    def mask_of(self, labels: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Mask of ``size`` (H, W) from labels (K, h, w) of the cells: the highest, see `labels_of`."""
        whole = (labels.shape[1] * self.stride, labels.shape[2] * self.stride)
        found = labels_of(labels, whole, self.seen).to(torch.uint8)
        return np.asarray(nearest(found, size).cpu().numpy())
