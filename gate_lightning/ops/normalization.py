"""Number of groups of a group normalisation."""

from __future__ import annotations

from gate_lightning.errors import ConfigError

__all__ = ["group_count"]


def group_count(channels: int, max_groups: int = 32, min_group_size: int = 8) -> int:
    """Largest number of groups that divides ``channels`` and keeps groups of a useful size.

    Over a 1×1 map (a pooled branch, a tiny image) a normalised group of two channels only tells which of them is
    larger, and one of a single channel is constant; so groups keep ``min_group_size`` channels where they can.

    Args:
        channels: channels to be normalised, at least 1.
        max_groups: upper limit of the answer (32 in the group normalisation paper, arXiv 1803.08494).
        min_group_size: least channels of a group, unless one group holds all channels.

    Returns:
        A divisor of ``channels`` in [1, max_groups].

    Raises:
        ConfigError: if an argument is below 1.
    """
    if min(channels, max_groups, min_group_size) < 1:
        raise ConfigError(
            f"group_count got channels={channels}, max_groups={max_groups}, min_group_size={min_group_size}; "
            "all must be at least 1"
        )
    limit = max(1, min(max_groups, channels // min_group_size))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)
