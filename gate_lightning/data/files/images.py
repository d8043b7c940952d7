"""Reading of image and mask files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gate_lightning.errors import DataError

__all__ = [
    "ARRAY_SUFFIX",
    "IMAGE_SUFFIXES",
    "MASK_SUFFIXES",
    "image_size",
    "opened",
    "read_image",
    "read_mask_values",
    "size_of_mask",
]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
#: formats without loss
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")
#: masks that are saved arrays (data sets in ddpm-segmentation's layout)
ARRAY_SUFFIX = ".npy"

_TURNED = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_INDEX_MODES = {"1", "L", "P", "I;16", "I;16B", "I"}


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Context of an open PIL image; errors inside become a `DataError` that names the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no image that can be read ({path.stat().st_size} bytes); replace it") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} claims an enormous size: {error}; cut it into smaller images") from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} does not decode ({error}); it is damaged or cut off, replace it") from error


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as shown, from the header alone.

    Raises:
        DataError: no image, or of a kind that `read_image` refuses.
    """
    with opened(path) as image:
        _refuse(path, image)
        width, height = image.size
        return (width, height) if _orientation(image) in _TURNED else (height, width)


def read_image(path: Path) -> np.ndarray:
    """An image as uint8 (H, W, 3) RGB.

    Grey images get three equal channels, 16-bit grey is divided by 257, transparent pixels are laid on white, and
    EXIF rotation is applied.

    Raises:
        DataError: the file is missing, damaged, animated, CMYK or in another colour space.
    """
    with opened(path) as image:
        _refuse(path, image)
        turned = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
        turned.load()
        if turned.mode.startswith("I"):
            return _from_sixteen_bits(path, np.asarray(turned))
        if turned.mode in ("LA", "PA", "RGBA") or "transparency" in turned.info:
            opaque = Image.new("RGBA", turned.size, (255, 255, 255, 255))
            turned = Image.alpha_composite(opaque, turned.convert("RGBA"))
        return np.array(turned.convert("RGB"))


def read_mask_values(path: Path) -> np.ndarray:
    """Values of a mask file: int32 (H, W) of index masks (also of palette PNGs), uint8 (H, W, 3) of RGB masks.

    A ``.npy`` file holds a 2-D array of whole numbers.

    Raises:
        DataError: missing, damaged, or of another kind.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        return _whole_numbers(path, np.array(_array(path)))
    with opened(path) as image:
        if image.mode in _INDEX_MODES:
            return np.array(image).astype(np.int32)
        if image.mode == "RGBA" and np.asarray(image)[..., 3].min() == 255:
            return np.array(image.convert("RGB"))
        if image.mode == "RGB":
            return np.array(image)
        raise DataError(
            f"{path} is a mask of mode {image.mode}; expected an index PNG with one channel, "
            "or opaque RGB with a palette file"
        )


def size_of_mask(path: Path) -> tuple[int, int]:
    """(height, width) of a mask file, from its header alone.

    Raises:
        DataError: missing, or not to be read.
    """
    if path.suffix.lower() == ARRAY_SUFFIX:
        height, width = _array(path).shape
        return height, width
    with opened(path) as mask:
        return mask.height, mask.width


def _array(path: Path) -> np.ndarray:
    """A 2-D array, mapped and not read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no array that can be read ({error}); save masks with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "buif":
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "several arrays"
        raise DataError(f"{path} holds {found}; expected whole numbers of shape (height, width)")
    return array


def _whole_numbers(path: Path, values: np.ndarray) -> np.ndarray:
    whole = np.rint(values) if values.dtype.kind == "f" else values
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and np.array_equal(whole, values)):
        raise DataError(f"{path} holds fractions ({values.dtype}); expected class numbers, which are whole")
    low, high = (int(whole.min()), int(whole.max())) if whole.size else (0, 0)
    if low < np.iinfo(np.int32).min or high > np.iinfo(np.int32).max:
        raise DataError(f"{path} holds values from {low} to {high}; expected class numbers")
    return whole.astype(np.int32)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the whole file to look for it behind the pixels
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _refuse(path: Path, image: Image.Image) -> None:
    # Telephones store a preview as a second image of a JPEG (MPO); the first is the photograph.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{path} holds {frames} images ({image.format}); save the one you mean by itself")
    if image.mode == "CMYK":
        raise DataError(f"{path} is CMYK, made for printing; convert it to RGB with its colour profile first")
    if image.mode in ("F", "LAB", "HSV", "YCbCr"):
        raise DataError(f"{path} has colour mode {image.mode}; save it as 8-bit RGB or grey")


def _from_sixteen_bits(path: Path, values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path} holds values from {values.min()} to {values.max()}; expected 16 bits: 0 to 65535")
    grey = np.rint(values / 257.0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
