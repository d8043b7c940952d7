"""What objects have of a protocol of attributes."""

from __future__ import annotations

__all__ = ["missing_members"]


def missing_members(thing: object, protocol: type) -> list[str]:
    """Names of the attributes that ``protocol`` and its bases declare and ``thing`` lacks, sorted.

    Not ``isinstance``: since Python 3.12 that overlooks the submodules, parameters and buffers of networks.
    """
    declared = {name for one in protocol.__mro__ for name in vars(one).get("__annotations__", {}) if name[0] != "_"}
    return sorted(name for name in declared if not hasattr(thing, name))
