"""Reading of image files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from gate_lightning.errors import DataError, GateError, first_line

__all__ = [
    "IMAGE_SUFFIXES",
    "Header",
    "header_of",
    "image_header",
    "image_size",
    "inspect_image",
    "opened",
    "pixels_of",
    "raw_mode",
    "read_image",
    "refuse_pages",
    "turn_of",
]

log = logging.getLogger(__name__)


def _readable(suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Suffixes that the installed Pillow decodes."""
    formats = Image.registered_extensions()
    optional = {"WEBP", "AVIF"}  # known to every Pillow, written by those that have the library
    decoded = {name for name in Image.OPEN if name not in optional or name in Image.SAVE}
    return tuple(suffix for suffix in suffixes if formats.get(suffix) in decoded)


IMAGE_SUFFIXES = _readable(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".heic", ".heif")
)
_SWAPS = {5, 6, 7, 8}  # EXIF orientations that swap height and width
_SIXTEEN = ("16B", "16L", "16N")  # ends of the names of pixels with 16 bits a channel
#: images of more than 8 bits that use less than this share of their range are told of
_SMALL_RANGE = 0.25
_range_said: set[Path] = set()


class Header(NamedTuple):
    """Facts in the header of a file.

    Attributes:
        size: (height, width) as shown.
        turn: EXIF orientation, 1 … 8; 1 where there is none.
    """

    size: tuple[int, int]
    turn: int = 1


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Context of an open PIL image; errors inside become a `DataError` that names the file."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is a {'folder' if path.is_dir() else 'device'}; expected an image file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            # opened here: given a path, Pillow maps uncompressed TIFFs and mixes up the rows of turned ones
            with path.open("rb") as file, Image.open(file) as image:
                if 0 in image.size:
                    raise DataError(f"{path} has {image.width}×{image.height} pixels; replace it")
                yield image
    except GateError:
        raise
    except FileNotFoundError as error:
        link = f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else "does not exist"
        raise DataError(f"{path} {link}") from error
    except UnidentifiedImageError as error:
        kinds = "" if path.suffix.lower() in IMAGE_SUFFIXES else f", files that are read: {', '.join(IMAGE_SUFFIXES)}"
        size = path.stat().st_size
        raise DataError(f"{path} is no image that can be read ({size} bytes{kinds}); replace it") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} claims an enormous size: {error}; cut it into smaller images") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
        raise DataError(
            f"{path} does not decode ({first_line(error)}); it is damaged or cut off, replace it"
        ) from error


def image_header(path: Path) -> Header:
    """Size and orientation of an image, from its header alone.

    Raises:
        DataError: no image, or of a kind that `read_image` refuses.
    """
    with opened(path) as image:
        _refuse(path, image)
        return header_of(image)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as shown, from the header alone.

    Raises:
        DataError: as `image_header`.
    """
    return image_header(path).size


def read_image(path: Path) -> np.ndarray:
    """An image as uint8 (H, W, 3) RGB.

    Grey images get three equal channels, 16 bits are brought to 8 (a warning tells, once a folder, where little of
    their range is used), transparent pixels are laid on white, and the EXIF orientation is applied.

    Raises:
        DataError: the file is missing, damaged, animated, CMYK or in another colour space.
    """
    image, note = inspect_image(path)
    if note and path.parent not in _range_said:
        _range_said.add(path.parent)
        log.warning("%s: %s", path, note)
    return image


def inspect_image(path: Path) -> tuple[np.ndarray, str]:
    """The image as `read_image` gives it, and a sentence where 16 bits leave it nearly without contrast, else "".

    Raises:
        DataError: as `read_image`.
    """
    with opened(path) as image:
        return _decoded(path, image)


def pixels_of(image: Image.Image, where: str) -> np.ndarray:
    """An open image as `read_image` gives its file; ``where`` names it in messages.

    Raises:
        DataError: as `read_image`.
    """
    try:
        return _decoded(where, image)[0]
    except GateError:
        raise
    except Exception as error:  # a lazily opened file is read here
        raise DataError(f"{where} does not decode ({first_line(error)}); it is damaged or cut off") from error


def _decoded(path: Path | str, image: Image.Image) -> tuple[np.ndarray, str]:
    """See `inspect_image`."""
    _refuse(path, image)
    turn, deep = turn_of(image), raw_mode(image).endswith(_SIXTEEN)
    turned = ImageOps.exif_transpose(image) if turn != 1 else image
    turned.load()
    if turn == 1 and _late_turn(image) != 1:
        raise DataError(f"{path} has its EXIF orientation behind the pixels, where few look; save it again, upright")
    if turned.mode.startswith("I"):
        values = np.asarray(turned)
        return _from_sixteen_bits(path, values), _range_note(int(values.min()), int(values.max()))
    if turned.mode in ("LA", "PA", "RGBA") or "transparency" in turned.info:
        opaque = Image.new("RGBA", turned.size, (255, 255, 255, 255))
        turned = Image.alpha_composite(opaque, turned.convert("RGBA"))
    pixels = np.array(turned.convert("RGB"))
    return pixels, _range_note(int(pixels.min()) * 257, int(pixels.max()) * 257) if deep else ""


def header_of(image: Image.Image) -> Header:
    """Size and orientation of an open image or mask."""
    turn = turn_of(image)
    width, height = image.size
    if image.format == "TIFF":  # some versions of Pillow have turned the size already, others have not
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        width, height = int(tags.get(256, width)), int(tags.get(257, height))
    return Header((width, height) if turn in _SWAPS else (height, width), turn)


def turn_of(image: Image.Image) -> int:
    """EXIF orientation, from the header: Pillow's own method would decode a whole PNG to look behind its pixels."""
    found = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()
    tag = found.get(ExifTags.Base.Orientation, 1)
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _late_turn(image: Image.Image) -> int:
    """EXIF orientation of a PNG once its pixels, and what comes behind them, have been read."""
    if image.format != "PNG" or "exif" not in image.info:
        return 1
    found = Image.Exif()
    found.load(image.info["exif"])
    return int(found.get(ExifTags.Base.Orientation, 1))


def raw_mode(image: Image.Image) -> str:
    """Mode in which pixels are stored: ``L;4`` for grey of 4 bits, ``RGB;16B`` …, "" where Pillow does not say."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _refuse(path: Path | str, image: Image.Image) -> None:
    refuse_pages(path, image)
    if image.mode == "CMYK":
        raise DataError(f"{path} is CMYK, made for printing; convert it to RGB with its colour profile first")
    if image.mode in ("F", "LAB", "HSV", "YCbCr"):
        raise DataError(f"{path} has colour mode {image.mode}; save it as 8-bit RGB or grey")


def refuse_pages(path: Path | str, image: Image.Image) -> None:
    """Raise DataError for an animation and for several pages: which one is meant is not guessed."""
    # Telephones store a preview as second image of a JPEG (MPO); the first is the photograph.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DataError(f"{path} holds {frames} images ({image.format}); save the one you mean by itself")


def _from_sixteen_bits(path: Path | str, values: np.ndarray) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path} holds values from {values.min()} to {values.max()}; expected 16 bits: 0 to 65535")
    grey = np.rint(values / 257.0).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _range_note(low: int, high: int) -> str:
    if not 0 < high - low < _SMALL_RANGE * 65535:
        return ""
    return (
        f"16 bits are divided by 257, and its values {low} … {high} use {(high - low) / 65535:.0%} of that range: "
        f"{(high - low) // 257 + 1} of 256 grey levels are left; stretch it to 0 … 65535 if that is not meant"
    )
