"""Attention weights from hooked queries and keys; the network itself keeps its fused kernel.

Hooks are classes, not closures: a module must stay picklable whatever is registered on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gate_lightning.backbones.specs import LayerSpec

__all__ = ["AttentionWeights", "AveragedAttention", "Keep"]

#: receiver of an activation: (layer, tensor)
Keep = Callable[[str, Tensor], None]

#: most scores of one sample that are computed at once: 64 MiB in float32
SCORES_AT_ONCE = 2**24


class _Listener:
    """Hooks on the query and key projections of an attention layer, LoRA included."""

    def __init__(self, attention: nn.Module) -> None:
        assert isinstance(attention, Attention)
        self.heads, self.scale = int(attention.heads), float(attention.scale)
        self.queries: Tensor | None = None

    def listen(self, attention: nn.Module) -> Iterator[RemovableHandle]:
        """Register the hooks; yields their handles."""
        yield attention.get_submodule("to_q").register_forward_hook(self._keep_queries)
        yield attention.get_submodule("to_k").register_forward_hook(self._take_keys)

    def _keep_queries(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.queries = output

    def _take_keys(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert self.queries is not None  # attention processors project queries first
        queries, self.queries = self.queries, None
        self.finish(queries, output)

    def finish(self, queries: Tensor, keys: Tensor) -> None:
        """Process queries (B, N, C) and keys (B, M, C) of one pass."""
        raise NotImplementedError

    def weights(self, queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
        """Softmax over M of the scaled scores (B, some heads, N, M), float32, a few heads at a time."""
        # float32, as the softmax of half-precision scores is too coarse
        split = [x.unflatten(2, (self.heads, -1)).transpose(1, 2).float() for x in (queries, keys)]
        # independent of B, so that sums over heads are made in the same order whatever the batch
        count = max(1, SCORES_AT_ONCE // (queries.shape[1] * keys.shape[1]))
        for query, key in zip(*(x.split(count, dim=1) for x in split), strict=True):
            yield torch.matmul(query * self.scale, key.transpose(2, 3)).softmax(dim=-1)


class AttentionWeights(_Listener):
    """Records the weights (B, heads, N, M) of one attention layer, in the dtype of the network."""

    def __init__(self, keep: Keep, layer: str, attention: nn.Module) -> None:
        super().__init__(attention)
        self.keep, self.layer = keep, layer

    def finish(self, queries: Tensor, keys: Tensor) -> None:
        """Record the weights of all heads."""
        self.keep(self.layer, torch.cat([part.to(queries.dtype) for part in self.weights(queries, keys)], dim=1))


class AveragedAttention:
    """Means of the weights over heads and over the layers of a size, as maps (B, M of all sizes, h, w) in float32.

    Sums run along with the pass, so that memory holds one map (B, N, M) per size instead of one per layer.

    Args:
        keep: called with ``layer`` and its map after the last source.
        layer: layer id.
        spec: its sources, and the stride it is resized to.
        image_size: called during the pass for (height, width) of the image in pixels.
    """

    def __init__(self, keep: Keep, layer: str, spec: LayerSpec, image_size: Callable[[], tuple[int, int]]) -> None:
        self.keep, self.layer, self.spec, self.image_size = keep, layer, spec, image_size
        self.sums: dict[int, Tensor] = {}
        self.missing = self._count

    @property
    def _count(self) -> int:
        return sum(map(len, self.spec.sources))

    def listen(self, denoiser: nn.Module) -> Iterator[RemovableHandle]:
        """Register the hooks of every source; yields their handles."""
        for size, sources in enumerate(self.spec.sources):
            for source in sources:
                attention = denoiser.get_submodule(source.module)
                yield from _Source(self, size, attention).listen(attention)

    def add(self, size: int, mean: Tensor) -> None:
        """Add the mean over heads (B, N, M) of one source."""
        self.sums[size] = self.sums[size] + mean if size in self.sums else mean
        self.missing -= 1
        if self.missing == 0:
            maps = [self._map(size, sources) for size, sources in enumerate(self.spec.sources)]
            self.sums, self.missing = {}, self._count
            self.keep(self.layer, torch.cat(maps, dim=1))

    def _map(self, size: int, sources: tuple[LayerSpec, ...]) -> Tensor:
        mean = self.sums.pop(size) / len(sources)
        maps = mean.transpose(1, 2).unflatten(2, sources[0].grid(*self.image_size()))
        return F.interpolate(maps, self.spec.grid(*self.image_size()))  # nearest, as in the released code


class _Source(_Listener):
    def __init__(self, average: AveragedAttention, size: int, attention: nn.Module) -> None:
        super().__init__(attention)
        self.average, self.size = average, size

    def finish(self, queries: Tensor, keys: Tensor) -> None:
        # a running sum: what is held is one map, and a few heads' weights
        total = reduce(torch.add, (part.sum(dim=1) for part in self.weights(queries, keys)))
        self.average.add(self.size, total / self.heads)
