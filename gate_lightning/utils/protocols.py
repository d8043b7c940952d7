"""Attributes that an object lacks of a protocol."""

from __future__ import annotations

import inspect
from typing import Protocol

__all__ = ["is_protocol", "missing_members"]


def is_protocol(kind: type) -> bool:
    """True if a class is a protocol itself, and no class that has what one asks for."""
    return Protocol in kind.__bases__


def missing_members(thing: object, protocol: type) -> list[str]:
    """Names of the attributes that ``protocol`` and its bases declare and ``thing`` lacks, sorted.

    Not ``isinstance``: since Python 3.12 that overlooks the submodules, parameters and buffers of networks.
    """
    # since Python 3.14 a class need not have its annotations among its variables
    declared = {name for one in protocol.__mro__ for name in inspect.get_annotations(one) if name[0] != "_"}
    return sorted(name for name in declared if not hasattr(thing, name))
