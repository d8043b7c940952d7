"""Adapters beside a frozen network: per-sample low-rank branches by forward hooks, learned tokens, learned prompts.

The network is not changed: weights, module paths and state dict stay those of the file. During a pass one hook per
adapted module adds scale · up(down(x)) to the rows of the samples that use the adapter, so that samples with different
adapters, scales, or none share a batch exactly. On a GPU the branches of a linear layer are one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.backbones.specs import Adapters
from gate_lightning.errors import ConfigError

__all__ = ["Adapter", "AdapterBank", "LowRank"]

#: passes whose hooks are kept: guided ones, the last batch of an epoch …
_PLANS = 16


class LowRank(nn.Module):
    """One low-rank branch: x → up(down(x)), for a linear layer or a convolution.

    Args:
        base: the frozen layer it is added to; its stride, padding and dilation apply to ``down``.
        down: (rank, in) or (rank, in, kh, kw).
        up: (out, rank) or (out, rank, 1, 1).
        strength: alpha / rank, or alpha / √rank for rank-stabilised LoRA; not applied by ``forward``.
    """

    down: Tensor
    up: Tensor

    def __init__(self, base: nn.Linear | nn.Conv2d, down: Tensor, up: Tensor, strength: float) -> None:
        super().__init__()
        self.register_buffer("down", down.to(base.weight))
        self.register_buffer("up", up.to(base.weight))
        self.strength = strength
        self.geometry = (base.stride, base.padding, base.dilation) if isinstance(base, nn.Conv2d) else None

    def forward(self, inputs: Tensor) -> Tensor:
        """up(down(x)), to be multiplied by strength and scale and added to the frozen layer's output."""
        if self.geometry is None:
            return F.linear(F.linear(inputs, self.down), self.up)
        stride, padding, dilation = self.geometry
        return F.conv2d(F.conv2d(inputs, self.down, None, stride, padding, dilation), self.up)


class Adapter(nn.Module):
    """Content of one adapter file: a LoRA, learned tokens, both, or a learned prompt.

    Args:
        source: file it was read from.
        digest: hash of the file.
        parts: low-rank branches by part ("unet", "text_encoder", "text_encoder_2") and module path.
        tokens: text encoder's part → token as it appears in prompts → vectors (n, C) that replace it.
        prompt: embeddings (T, C) that replace the text encoder's output, or None.

    Attributes:
        paths: part → adapted module paths.
    """

    def __init__(
        self,
        source: str,
        digest: str,
        parts: Mapping[str, Mapping[str, LowRank]],
        tokens: Mapping[str, Mapping[str, Tensor]] | None = None,
        prompt: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.digest = digest
        self.tokens = {part: dict(learned) for part, learned in (tokens or {}).items() if learned}
        self.prompt = prompt
        self.paths: dict[str, tuple[str, ...]] = {part: tuple(layers) for part, layers in parts.items() if layers}
        # module paths contain dots, which names of submodules may not: kept by position instead
        self.layers = nn.ModuleDict({part: nn.ModuleList(parts[part].values()) for part in self.paths})

    def changes(self, part: str) -> bool:
        """True if it acts on this part; a learned prompt acts on the first text encoder."""
        return part in self.paths or part in self.tokens or (part == "text_encoder" and self.prompt is not None)

    def branches(self, part: str) -> Iterator[tuple[str, LowRank]]:
        """(module path, low-rank branch) of one part."""
        for index, path in enumerate(self.paths.get(part, ())):
            branch = self.get_submodule(f"layers.{part}.{index}")
            assert isinstance(branch, LowRank)
            yield path, branch


@dataclass(frozen=True)
class _Product:
    """Low-rank branches of G runs of R rows each, as one batched product; strength and scale are part of ``up``."""

    rows: slice
    down: Tensor  # (G, C, rank)
    up: Tensor  # (G, rank, O)


@dataclass
class _AddBranches:
    """Forward hook that adds low-rank branches to their rows; a class so that modules stay picklable."""

    branches: list[tuple[LowRank, float, slice]]
    _products: list[_Product] | None = field(default=None, repr=False)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # in place on views: nothing else holds the fresh output of a linear layer or convolution, and copies cost more
        # than the low-rank products themselves
        if isinstance(module, nn.Linear) and _bound_by_launches(output):
            self._add_products(inputs[0], output)
            return
        for branch, scale, rows in self.branches:
            output[rows].add_(branch(inputs[0][rows]), alpha=scale * branch.strength)

    def _add_products(self, inputs: Tensor, output: Tensor) -> None:
        """The branches of a linear layer as batched products: two kernels for all, instead of three for each."""
        if self._products is None:
            self._products = _stacked(self.branches)
        for product in self._products:
            count = len(product.down)
            inner = torch.bmm(inputs[product.rows].reshape(count, -1, inputs.shape[-1]), product.down.to(inputs.dtype))
            runs = output[product.rows].view(count, -1, output.shape[-1])
            runs.baddbmm_(inner.to(output.dtype), product.up.to(output.dtype))

    def weights(self) -> Iterator[Tensor]:
        """Weights of its products, once they are made."""
        for product in self._products or ():
            yield from (product.down, product.up)


def _bound_by_launches(tensor: Tensor) -> bool:
    """True if kernels this small take less time than their launch; a CPU's features stay what they are to the bit."""
    return not tensor.is_cpu


def _stacked(branches: Sequence[tuple[LowRank, float, slice]]) -> list[_Product]:
    """One product for runs of equal length that lie one after the other; ranks are filled up with zeros."""
    runs: dict[tuple[int, int], list[tuple[LowRank, float]]] = {}
    for branch, scale, rows in branches:
        runs.setdefault((rows.start, rows.stop), []).append((branch, scale))
    groups: list[list[tuple[int, int]]] = []
    for start, stop in runs:
        last = groups[-1][-1] if groups else (0, 0)
        if groups and last[1] == start and last[1] - last[0] == stop - start:
            groups[-1].append((start, stop))
        else:
            groups.append([(start, stop)])
    return [_product(slice(group[0][0], group[-1][1]), [runs[one] for one in group]) for group in groups]


def _product(rows: slice, runs: Sequence[Sequence[tuple[LowRank, float]]]) -> _Product:
    downs = [torch.cat([branch.down for branch, _ in run]) for run in runs]
    ups = [torch.cat([scale * branch.strength * branch.up for branch, scale in run], dim=1).T for run in runs]
    rank = max(map(len, downs))
    down, up = (torch.stack([F.pad(one, (0, 0, 0, rank - len(one))) for one in parts]) for parts in (downs, ups))
    return _Product(rows, down.transpose(1, 2), up)


class AdapterBank(nn.Module):
    """The adapters loaded beside one set of weights, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()
        #: root, part and rows → the root, which keeps its id taken, and modules with their hooks
        self._plans: dict[tuple[object, ...], tuple[nn.Module, list[tuple[nn.Module, _AddBranches]]]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_plans": {}}  # copies are of other networks

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # every conversion of a module comes through here
        self._plans.clear()
        return super()._apply(fn, recurse)

    def __contains__(self, name: str) -> bool:
        return name in self.adapters

    def __getitem__(self, name: str) -> Adapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def add(self, name: str, adapter: Adapter) -> None:
        """Keep ``adapter`` under ``name``."""
        self.adapters[name] = adapter.requires_grad_(False)
        self._plans.clear()

    def acting_on(self, part: str, adapters: Adapters) -> Adapters:
        """Subset of ``adapters`` with an effect on ``part``: those that act on it at a scale other than 0."""
        return tuple((name, scale) for name, scale in adapters if scale != 0.0 and self[name].changes(part))

    def tokens(self, part: str, adapters: Adapters) -> dict[str, Tensor]:
        """Learned tokens that prompts may use under ``adapters``: token → vectors (n, C).

        Raises:
            ConfigError: two of the adapters learned the same token.
        """
        known: dict[str, tuple[str, Tensor]] = {}
        for name, _ in self.acting_on(part, adapters):
            for token, vectors in self[name].tokens.get(part, {}).items():
                other, there = known.setdefault(token, (name, vectors))
                if not torch.equal(there, vectors):
                    raise ConfigError(
                        f"the adapters {other!r} and {name!r} both learned the token {token}, each its own: rename it "
                        f"in one of the files, or use one of them in a branch"
                    )
        return {token: vectors for token, (_, vectors) in known.items()}

    def learned_prompt(self, adapters: Adapters) -> Tensor | None:
        """The learned prompt embeddings (T, C) among ``adapters``, or None.

        Raises:
            ConfigError: there are several.
        """
        found = [name for name, scale in adapters if scale != 0.0 and self[name].prompt is not None]
        if len(found) > 1:
            raise ConfigError(f"{' and '.join(found)} are learned prompts; a branch has one prompt")
        return self[found[0]].prompt if found else None

    @contextmanager
    def applied(self, root: nn.Module, part: str, rows: Sequence[Adapters] | None) -> Iterator[None]:
        """Context in which row i of every batch through ``root`` is steered by the adapters ``rows[i]``."""
        handles = []
        try:
            for module, hook in self._plan(root, part, tuple(rows or ())):
                # before other hooks, which then see the steered output
                handles.append(module.register_forward_hook(hook, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _plan(self, root: nn.Module, part: str, rows: tuple[Adapters, ...]) -> list[tuple[nn.Module, _AddBranches]]:
        """Modules of ``root`` with their hooks; kept for the next pass: finding them takes longer than using them."""
        key = (id(root), part, rows)
        if key not in self._plans:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            hooks = self._hooks(part, rows)
            self._plans[key] = root, [(root.get_submodule(path), hook) for path, hook in hooks.items()]
        return self._plans[key][1]

    def products(self) -> Iterator[Tensor]:
        """Weights of batched products, of the passes whose hooks are kept."""
        for _, plan in self._plans.values():
            for _, hook in plan:
                yield from hook.weights()

    def _hooks(self, part: str, rows: Sequence[Adapters]) -> dict[str, _AddBranches]:
        hooks: dict[str, _AddBranches] = {}
        start = 0
        for adapters, run in groupby(rows):  # branches lie one after the other, so runs are long
            end = start + len(list(run))
            for name, scale in self.acting_on(part, adapters):
                for path, branch in self[name].branches(part):
                    hooks.setdefault(path, _AddBranches([])).branches.append((branch, scale, slice(start, end)))
            start = end
        return hooks
