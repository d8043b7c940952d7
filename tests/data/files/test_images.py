"""Files of every kind: read as they look, or refused in words."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gate_lightning.data.files.images import image_header, image_size, inspect_image, pixels_of, read_image
from gate_lightning.data.files.mask_values import mask_header, read_mask_values
from gate_lightning.errors import DataError
from tests.support.folders import make_image

RGB = make_image(6, 10, seed=1)


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_colour_is_read_as_it_is(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB))
    assert (read_image(path) == RGB).all()
    assert image_size(path) == (6, 10)


def test_grey_gets_three_equal_channels(tmp_path: Path) -> None:
    image = read_image(saved(tmp_path, Image.fromarray(RGB[..., 0])))
    assert image.shape == (6, 10, 3)
    assert (image == RGB[..., :1]).all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535], [128 * 257, 255, 300]], dtype=np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values)))
    assert image[..., 0].tolist() == [[0, 1, 255], [128, 1, 1]]


@pytest.mark.parametrize("colour", [False, True])
def test_a_small_range_of_sixteen_bits_is_told_once_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, colour: bool
) -> None:
    values = np.linspace(0, 4095, 60).astype(np.uint16).reshape(6, 10)  # a camera's 12 bits
    for name in ("a.png", "b.png"):
        if colour:  # Pillow writes none of these
            cv2.imwrite(str(tmp_path / name), np.repeat(values[..., None], 3, axis=2))
        else:
            saved(tmp_path, Image.fromarray(values), name)
        assert read_image(tmp_path / name).max() < 17
    assert caplog.text.count("of that range: 1") == 1
    assert "a.png: 16 bits are divided by 257" in caplog.text
    full = saved(tmp_path, Image.fromarray(np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10)), "full.png")
    assert inspect_image(full)[1] == ""


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = (0, 255, 51)
    image = read_image(saved(tmp_path, Image.fromarray(rgba)))
    assert image[0, :, 0].tolist() == [255, 0, 204]


def test_transparent_palette_colour_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    read = read_image(saved(tmp_path, image, transparency=0))
    assert read.tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_exif_rotation_is_applied(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    path = saved(tmp_path, Image.fromarray(RGB), name, exif=exif)
    image = read_image(path)
    assert image.shape == (10, 6, 3)
    assert image_size(path) == (10, 6)
    difference = np.abs(image.astype(int) - np.rot90(RGB, -1).astype(int)).mean()
    unturned = np.abs(image.astype(int) - np.rot90(RGB, 1).astype(int)).mean()
    assert difference < unturned / 3


@pytest.mark.parametrize("form", ["a.png", "a.tif", "lzw.tif", "a.webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_applied_to_images_and_masks(tmp_path: Path, form: str, turn: int) -> None:
    """Against the table of the EXIF standard; uncompressed TIFFs that are turned came out of Pillow scrambled."""
    stored = make_image(6, 10)
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: np.swapaxes(stored, 0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(np.swapaxes(stored, 0, 1), 2),
        8: np.rot90(stored, 1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"compression": "tiff_lzw"} if form == "lzw.tif" else {"lossless": True} if "webp" in form else {}
    path = saved(tmp_path, Image.fromarray(stored), form, exif=exif, **options)
    assert (read_image(path) == shown).all()
    assert image_header(path) == (shown.shape[:2], turn)
    if "webp" not in form:
        path = saved(tmp_path, Image.fromarray(stored[..., 0]), form, exif=exif, **options)
        assert (read_image(path)[..., 0] == shown[..., 0]).all()
        assert (read_mask_values(path) == shown[..., 0]).all()
        assert (read_mask_values(path, turn=3) == (shown if turn != 1 else stored[::-1, ::-1])[..., 0]).all()
        assert mask_header(path) == (shown.shape[:2], turn)


def test_an_open_image_is_read_as_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([RGB, np.linspace(0, 255, 60).astype(np.uint8).reshape(6, 10)])
    sixteen = Image.fromarray(np.linspace(0, 65535, 60).astype(np.uint16).reshape(6, 10))
    for image in (Image.fromarray(RGB), Image.fromarray(rgba), sixteen):
        path = saved(tmp_path, image, exif=exif)
        assert (pixels_of(Image.open(path), "source") == read_image(path)).all()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="source does not decode"):
        pixels_of(Image.open(path), "source")


def test_an_orientation_behind_the_pixels_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    content = saved(tmp_path, Image.fromarray(RGB), exif=exif).read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    without = content.replace(chunk, b"")
    end = without.index(b"IEND") - 4
    path = tmp_path / "late.png"
    path.write_bytes(without[:end] + chunk + without[end:])
    with pytest.raises(DataError, match=r"late\.png has its EXIF orientation behind the pixels"):
        read_image(path)


def test_one_frame_of_an_animation_is_not_guessed(tmp_path: Path) -> None:
    frames = [Image.fromarray(make_image(6, 10, seed)) for seed in range(3)]
    path = saved(tmp_path, frames[0], "a.webp", save_all=True, append_images=frames[1:])
    for function in (read_image, image_size):
        with pytest.raises(DataError, match=r"a.webp holds 3 images \(WEBP\)"):
            function(path)


def test_photographs_with_a_preview_are_photographs(tmp_path: Path) -> None:
    images = [Image.fromarray(make_image(16, 16, seed)) for seed in range(2)]
    path = saved(tmp_path, images[0], "a.jpg", format="MPO", save_all=True, append_images=images[1:])
    assert Image.open(path).format == "MPO"
    assert np.abs(read_image(path).astype(int) - make_image(16, 16, 0)).mean() < 40


def test_print_colours_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB).convert("CMYK"), "a.jpg")
    with pytest.raises(DataError, match="CMYK, made for printing"):
        read_image(path)


def test_float_images_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "a.tif")
    with pytest.raises(DataError, match="colour mode F"):
        read_image(path)


def test_cut_off_files_are_named(tmp_path: Path) -> None:
    whole = saved(tmp_path, Image.fromarray(make_image(64, 64)), "a.jpg")
    part = tmp_path / "part.jpg"
    part.write_bytes(whole.read_bytes()[:500])
    with pytest.raises(DataError, match=r"part\.jpg does not decode"):
        read_image(part)


def test_other_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("not an image")
    for function in (read_image, image_size, read_mask_values):
        with pytest.raises(DataError, match=r"a.png is no image that can be read \(12 bytes\)"):
            function(path)
    with pytest.raises(DataError, match=r"b\.png does not exist"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_index_masks_are_read_as_indices(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1], [1, 0]], dtype=np.uint8) * (1 if mode in "1P" else 7)
    if mode == "P":
        image = Image.fromarray(values).convert("P")
        image.putpalette([200, 100, 50, 9, 8, 7])
        image.putdata(values.ravel().tolist())
    elif mode == "1":
        image = Image.fromarray(values.astype(bool))
    else:
        image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
    path = saved(tmp_path, image)
    assert Image.open(path).mode == mode
    read = read_mask_values(path)
    assert read.dtype == np.int32
    assert (read == values).all()


def png(values: np.ndarray, bits: int, palette: bool) -> bytes:
    """A PNG of few bits, byte by byte: no library asks for the numbers."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 3 if palette else 0, 0, 0, 0)
    rows = b"".join(b"\0" + row for row in packed(values, bits))
    colours = chunk(b"PLTE", bytes(range(3 * 2**bits))) if palette else b""
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + colours + pixels + chunk(b"IEND", b"")


def tiff(values: np.ndarray, bits: int, inverted: bool = False, deflated: bool = False) -> bytes:
    """A TIFF of few bits, in one strip."""
    strip = b"".join(packed(values, bits))
    strip = zlib.compress(strip) if deflated else strip
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 8 if deflated else 1, 262: int(not inverted), 273: 8, 277: 1}
    tags |= {278: height, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    strip += b"\0" * (len(strip) % 2)
    head = b"II*\0" + struct.pack("<I", 8 + len(strip))
    return head + strip + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of numbers, most significant bits first."""
    text = ["".join(f"{int(value):0{bits}b}" for value in row) for row in values]
    return [int(row, 2).to_bytes(len(row) // 8, "big") for row in text]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_their_numbers(tmp_path: Path, bits: int) -> None:
    values = np.arange(32).reshape(2, 16) % 2**bits
    files = {"grey.png": png(values, bits, False), "palette.png": png(values, bits, True)}
    files |= {"grey.tif": tiff(values, bits), "deflated.tif": tiff(values, bits, deflated=True)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert read_mask_values(tmp_path / name).tolist() == values.tolist(), name
    (tmp_path / "inverted.tif").write_bytes(tiff(values, bits, inverted=True))
    with pytest.raises(DataError, match=r"inverted\.tif stores its numbers inverted"):
        read_mask_values(tmp_path / "inverted.tif")


def test_further_pages_of_a_mask_are_not_dropped(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in range(2)]
    path = saved(tmp_path, pages[0], "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"a\.tif holds 2 images \(TIFF\)"):
        read_mask_values(path)


def test_colour_masks_are_read_as_colours(tmp_path: Path) -> None:
    assert (read_mask_values(saved(tmp_path, Image.fromarray(RGB))) == RGB).all()
    opaque = np.concatenate([RGB, np.full((6, 10, 1), 255, dtype=np.uint8)], axis=2)
    assert (read_mask_values(saved(tmp_path, Image.fromarray(opaque))) == RGB).all()
    opaque[0, 0, 3] = 254
    with pytest.raises(DataError, match="mask of mode RGBA"):
        read_mask_values(saved(tmp_path, Image.fromarray(opaque)))
