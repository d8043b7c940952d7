"""Attributes of protocols, and that no protocol of attributes is asked for by isinstance."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from torch import Tensor, nn

import gate_lightning
from gate_lightning.utils.protocols import is_protocol, missing_members

Value = TypeVar("Value", covariant=True)


class Named(Protocol):
    name: str


class Scaled(Named, Protocol):
    inner: nn.Module
    scale: Tensor


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.scale = nn.Parameter(self.inner.weight.detach())


def test_submodules_and_parameters_count() -> None:
    network = Network()
    assert missing_members(network, Scaled) == ["name"]
    network.name = "a"  # type: ignore[assignment]
    assert missing_members(network, Scaled) == []
    assert missing_members(object(), Scaled) == ["inner", "name", "scale"]


class Sized(Protocol[Value]):
    def size(self) -> Value: ...


class Box(Sized[int]):
    def size(self) -> int:
        return 1


def test_protocols_are_told_from_classes() -> None:
    assert [is_protocol(one) for one in (Named, Scaled, Sized, Box, Network)] == [True, True, True, False, False]


def test_annotations_that_are_no_variable_of_their_class_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Python 3.14, which finds them when they are asked for."""
    lazy = type("Lazy", (), {})
    assert missing_members(object(), lazy) == []
    known = inspect.get_annotations
    monkeypatch.setattr(inspect, "get_annotations", lambda one: {"found": int} if one is lazy else known(one))
    assert missing_members(object(), lazy) == ["found"]


def test_isinstance_asks_for_methods_alone() -> None:
    """Since Python 3.12 it overlooks what a network's ``__getattr__`` finds."""
    own: list[type] = []
    for module in pkgutil.walk_packages(gate_lightning.__path__, "gate_lightning."):
        spec = importlib.util.find_spec(module.name)
        # those without are not imported: some need packages that are installed for them alone
        if spec is None or spec.origin is None or "runtime_checkable" not in Path(spec.origin).read_text("utf-8"):
            continue
        things = vars(importlib.import_module(module.name)).values()
        checkable = [one for one in things if isinstance(one, type) and getattr(one, "_is_runtime_protocol", False)]
        own += [one for one in checkable if one.__module__ == module.name]
    assert own
    attributes = {one.__name__: missing_members(object(), one) for one in own}
    assert not any(attributes.values()), attributes
