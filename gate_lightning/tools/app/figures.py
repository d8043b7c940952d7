"""HTML of images with captions, which loads nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Figure", "figures", "message"]


@dataclass(frozen=True, eq=False)
class Figure:
    """An image with its caption.

    Attributes:
        image: (h, w, 3) uint8.
        name: of the image.
        caption: further text.
        aspect: width by height at which it is shown; None for that of ``image``.
        blocks: whether its pixels are shown as squares.
    """

    image: NDArray[np.uint8]
    name: str
    caption: str
    aspect: float | None = None
    blocks: bool = False


def figures(shown: Sequence[Figure], legend: str) -> str:
    """Images beside each other, as many as fit, above a legend."""
    if not shown:
        return '<p class="gate-empty">No images to search in. Add some below.</p>'
    return f'<div class="gate-figures">{"".join(map(_figure, shown))}</div><p class="gate-legend">{legend}</p>'


def message(text: str) -> str:
    """An error for the page; "" for none."""
    return f'<div class="gate-message" role="alert">{html.escape(text)}</div>' if text else ""


def _figure(one: Figure) -> str:
    name, caption = html.escape(one.name), html.escape(one.caption)
    aspect = one.image.shape[1] / one.image.shape[0] if one.aspect is None else one.aspect
    style = f"aspect-ratio:{aspect:.4f}" + (";image-rendering:pixelated" if one.blocks else "")
    # blocks are few pixels, and must stay apart
    address = _address(one.image, "PNG" if one.blocks else "JPEG")
    return (
        f'<figure><img src="{address}" alt="{name} {caption}" style="{style}">'
        f"<figcaption><b>{name}</b> {caption}</figcaption></figure>"
    )


def _address(image: NDArray[np.uint8], kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
