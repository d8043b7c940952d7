"""Mean labels of the most similar cells, collected block by block."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TopLabels"]


class TopLabels:
    """The most similar cells of some cells, and their labels, collected block by block.

    Args:
        top_k: how many count.
        temperature: weights are exp(similarity / temperature).
        count: of the cells, q.
        like: has the device, type and number of labels.
    """

    def __init__(self, top_k: int, temperature: float, count: int, like: Tensor) -> None:
        self.top_k, self.temperature = top_k, temperature
        self._values = like.new_empty(count, 0)
        self._labels = like.new_empty(count, 0, like.shape[-1])
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, similarity: Tensor, labels: Tensor) -> None:
        """Take the best of similarities (q, n) to cells with labels (n, K); one more than counts, to see a tie."""
        values, index = similarity.topk(min(self.top_k + 1, similarity.shape[1]), dim=1)
        values, known = torch.cat([self._values, values], dim=1), torch.cat([self._labels, labels[index]], dim=1)
        self._values, order = values.topk(min(self.top_k + 1, values.shape[1]), dim=1)
        self._labels = known.gather(1, order[..., None].expand(-1, -1, known.shape[2]))

    @property
    def tied(self) -> bool:
        """True if further cells are as similar as the last one that counts, of any cell."""
        return bool(self._ties.any())

    @property
    def _ties(self) -> Tensor:
        if self._values.shape[1] <= self.top_k:
            return torch.zeros(len(self._values), dtype=torch.bool, device=self._values.device)
        least, next_one = self._values[:, -2], self._values[:, -1]
        return (least == next_one) & least.isfinite()

    def add_tied(self, similarity: Tensor, labels: Tensor) -> None:
        """Weigh all cells that are as similar as the last one that counts, for the cells with a tie."""
        tied = self._ties
        similarity = similarity[tied]
        weights = self._weights(similarity, tied).masked_fill_(similarity < self._values[tied, -2, None], 0)
        sums, totals = (0, 0) if self._sums is None else self._sums
        self._sums = sums + weights @ labels, totals + weights.sum(dim=1, keepdim=True)

    def labels(self) -> Tensor:
        """Weighted means (q, K) of the labels."""
        weights = self._weights(self._values[:, : self.top_k], slice(None))
        means = torch.einsum(
            "qk,qkc->qc", weights / weights.sum(dim=1, keepdim=True), self._labels[:, : weights.shape[1]]
        )
        if self._sums is not None:
            means[self._ties] = self._sums[0] / self._sums[1]
        return means

    def _weights(self, similarity: Tensor, rows: Tensor | slice) -> Tensor:
        """exp(similarity / temperature), over that of the most similar cell: the quotients are the same."""
        return ((similarity - self._values[rows, :1]) / self.temperature).exp()
