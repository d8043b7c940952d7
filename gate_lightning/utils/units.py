"""Numbers of bytes, seconds and metrics as people read them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

__all__ = ["GIB", "duration", "few", "human_size", "measured"]

#: bytes of a GiB
GIB = 2**30

#: metrics that are shares: in percent where people read them, fractions in files and on dashboards
_SHARE = re.compile(
    r"(?:IoU|Acc)(?:_ddpm)?(?:_std)?$|^val/(?:kind|color|both)$|/PCK_|/homography_accuracy_|/MMA_|/pose_AUC_"
)

#: metrics that one line shows; of more, the monitored one and ``_OTHERS``
_MOST, _OTHERS = 6, 3


def few(names: Iterable[str], monitor: str | None) -> list[str]:
    """Names of the metrics that fit on a line: all in their order, or the monitored one and three others.

    The others are those that end like it: a name's end is its definition.

    >>> names = [f"val/PCK_{alpha}_{of}_le" for of in ("bbox", "img") for alpha in (0.01, 0.05, 0.1, 0.15)]
    >>> few(names, "val/PCK_0.1_img_le")
    ['val/PCK_0.1_img_le', 'val/PCK_0.01_img_le', 'val/PCK_0.05_img_le', 'val/PCK_0.15_img_le']
    """
    found = sorted(names)
    if len(found) <= _MOST:
        return found
    end = (monitor or "")[::-1]
    alike = {name: len(os.path.commonprefix([name[::-1], end])) for name in found}  # noqa: RUF071 - characters
    return sorted(found, key=lambda name: (name != monitor, -alike[name]))[: 1 + _OTHERS]


def measured(name: str, value: float) -> str:
    """A metric with its unit: a share in percent, anything else as a number.

    >>> measured("val/mIoU", 0.6779), measured("test/loss", 0.57781)
    ('67.8 %', '0.5778')
    """
    return f"{100 * value:.1f} %" if _SHARE.search(name) else f"{value:.4g}"


def human_size(count: float) -> str:
    """Bytes in binary units: ``1.73 GiB``, ``12.5 MiB``, ``3.00 KiB``, ``12 bytes``."""
    for unit, name in ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:.0f} {name}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
