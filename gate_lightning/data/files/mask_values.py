"""Reading of mask files: the numbers or colours that are stored in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from gate_lightning.data.files.images import Header, header_of, opened, raw_mode, refuse_pages, turn_of
from gate_lightning.errors import DataError, first_line

__all__ = ["ARRAY_SUFFIX", "MASK_SUFFIXES", "mask_header", "read_mask_values", "turned"]

#: formats without loss
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
#: masks that are saved arrays (data sets in ddpm-segmentation's layout)
ARRAY_SUFFIX = ".npy"

_INDEX_MODES = {"1", "L", "P", "I;16", "I;16B", "I"}
#: a grey file of so many bits is stretched to 0 … 255 by Pillow, by this factor
_STRETCHED = {"L;2": 85, "L;4": 17}


def read_mask_values(path: Path, turn: int = 1) -> np.ndarray:
    """Values of a mask file: int32 (H, W) of index masks (also of palette PNGs), uint8 (H, W, 3) of RGB masks.

    The values are the numbers that are stored, whatever the number of bits. A ``.npy`` file holds a 2-D array of whole
    numbers.

    Args:
        path: the file.
        turn: EXIF orientation of the image that the mask was drawn on; a tag of the mask's own goes before.

    Raises:
        DataError: missing, damaged, of several pages, or of another kind.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        return turned(_whole_numbers(path, np.array(_array(path))), turn)
    with opened(path) as image:
        refuse_pages(path, image)
        own, turns_itself = turn_of(image), image.format == "TIFF"
        values = _stored_values(path, image)
        return turned(values, turn if own == 1 else (1 if turns_itself else own))


def mask_header(path: Path) -> Header:
    """Size and orientation of a mask file, from its header alone.

    Raises:
        DataError: missing, or not to be read.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        height, width = _array(path).shape
        return Header((height, width))
    with opened(path) as mask:
        return header_of(mask)


def _stored_values(path: Path, image: Image.Image) -> np.ndarray:
    raw = raw_mode(image)
    if image.format == "TIFF" and image.mode in _INDEX_MODES and raw.endswith(("I", "IR")) and ";" in raw:
        raise DataError(
            f"{path} stores its numbers inverted for display (TIFF, white is zero), and nothing tells which are meant; "
            "save the mask as PNG"
        )
    if image.mode in _INDEX_MODES:
        return np.array(image).astype(np.int32) // _STRETCHED.get(raw.removesuffix("R"), 1)
    if image.mode == "RGBA" and np.asarray(image)[..., 3].min() == 255:
        return np.array(image.convert("RGB"))
    if image.mode == "RGB":
        return np.array(image)
    raise DataError(
        f"{path} is a mask of mode {image.mode}; expected an index PNG with one channel, or opaque RGB with a palette "
        "file"
    )


def _array(path: Path) -> np.ndarray:
    """A 2-D array, mapped and not read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except Exception as error:  # NumPy evaluates the header of a file, and raises whatever that leads to
        raise DataError(
            f"{path} is no array that can be read ({first_line(error)}); save masks with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "buif" or not array.size:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(f"{path} holds {found}; expected whole numbers of shape (height, width)")
    return array


def _whole_numbers(path: Path, values: np.ndarray) -> np.ndarray:
    whole = np.rint(values) if values.dtype.kind == "f" else values
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(whole, values)):
        raise DataError(f"{path} holds fractions ({values.dtype}); expected class numbers, which are whole")
    low, high = int(whole.min()), int(whole.max())
    if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
        raise DataError(f"{path} holds values from {low} to {high}; expected class numbers")
    return whole.astype(np.int32)


def turned(values: np.ndarray, turn: int) -> np.ndarray:
    """(H, W[, C]) as an EXIF orientation shows it."""
    if turn in (5, 6, 7, 8):
        values = np.swapaxes(values, 0, 1)  # 5 as it is
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    if turn in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
