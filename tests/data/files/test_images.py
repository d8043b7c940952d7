"""Files of every kind: read as they look, or refused in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gate_lightning.data.files.images import image_size, read_image, read_mask_values
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


def test_colour_masks_are_read_as_colours(tmp_path: Path) -> None:
    assert (read_mask_values(saved(tmp_path, Image.fromarray(RGB))) == RGB).all()
    opaque = np.concatenate([RGB, np.full((6, 10, 1), 255, dtype=np.uint8)], axis=2)
    assert (read_mask_values(saved(tmp_path, Image.fromarray(opaque))) == RGB).all()
    opaque[0, 0, 3] = 254
    with pytest.raises(DataError, match="mask of mode RGBA"):
        read_mask_values(saved(tmp_path, Image.fromarray(opaque)))
