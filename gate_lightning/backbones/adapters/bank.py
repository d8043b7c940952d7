"""Adapters beside a frozen network: per-sample low-rank branches by forward hooks, learned tokens, learned prompts.

The network is not changed: weights, module paths and state dict stay those of the file. During a pass one hook per
adapted module adds scale · up(down(x)) to the rows of the samples that use the adapter, so that samples with different
adapters, scales, or none share a batch exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gate_lightning.backbones.specs import Adapters
from gate_lightning.errors import ConfigError

__all__ = ["Adapter", "AdapterBank", "LowRank"]


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


@dataclass
class _AddBranches:
    """Forward hook that adds low-rank branches to their rows; a class so that modules stay picklable."""

    branches: list[tuple[LowRank, float, slice]]

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # in place on views: nothing else holds the fresh output of a linear layer or convolution, and copies cost more
        # than the low-rank products themselves
        for branch, scale, rows in self.branches:
            output[rows].add_(branch(inputs[0][rows]), alpha=scale * branch.strength)


class AdapterBank(nn.Module):
    """The adapters loaded beside one set of weights, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict()

    def __contains__(self, name: str) -> bool:
        return name in self.adapters

    def __getitem__(self, name: str) -> Adapter:
        adapter = self.adapters[name]
        assert isinstance(adapter, Adapter)
        return adapter

    def add(self, name: str, adapter: Adapter) -> None:
        """Keep ``adapter`` under ``name``."""
        self.adapters[name] = adapter.requires_grad_(False)

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
        hooks = self._hooks(part, rows or ())
        handles = []
        try:
            for path, hook in hooks.items():
                # before other hooks, which then see the steered output
                handles.append(root.get_submodule(path).register_forward_hook(hook, prepend=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

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
