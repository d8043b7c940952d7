"""Comparison of saved weights with those of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["misfits"]


def misfits(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> list[str]:
    """Reasons why tensors of a file do not fit a network: a line for each that is absent, surplus or of another shape.

    Args:
        saved: name → tensor of the file.
        own: the network's.
        source: the file in a word or two, for the lines: "the checkpoint".

    Returns:
        Nothing where all of them fit.
    """
    found = [f"{name}: absent in {source}" for name in own if name not in saved]
    found += [f"{name}: only in {source}" for name in saved if name not in own]
    return found + [
        f"{name}: {tuple(saved[name].shape)} in {source}, {tuple(value.shape)} here"
        for name, value in own.items()
        if name in saved and saved[name].shape != value.shape
    ]
