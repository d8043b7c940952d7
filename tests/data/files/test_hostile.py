"""Every reader of data files, given what no such file should hold: errors of ours that name the file alone."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.files.captions import CaptionFile, read_captions
from gate_lightning.data.files.images import image_header, read_image
from gate_lightning.data.files.mask_values import mask_header, read_mask_values
from gate_lightning.data.files.pairing import read_classes, require_root
from gate_lightning.data.files.palette import read_palette
from gate_lightning.data.label_scarce.splits import read_split
from gate_lightning.data.pretraining.captioned_files import list_captioned
from gate_lightning.data.pretraining.latents import read_latents
from gate_lightning.data.scenes.homography import check_transform
from gate_lightning.errors import ConfigError, GateError
from gate_lightning.tools.caption import _known
from gate_lightning.tools.labelling.labelled_folder import LabelledFolder
from tests.support.folders import make_image


def encoded(suffix: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_image(40, 40)).convert(mode).save(buffer, Image.registered_extensions()[suffix])
    return buffer.getvalue()


def damaged(suffix: str) -> list[bytes]:
    """A file cut at every eighth of its length, and with bytes turned over in its header and its middle."""
    whole = encoded(suffix)
    cut = [whole[: len(whole) * part // 8] for part in range(8)]
    rng = np.random.default_rng(0)
    flipped = []
    for first, last in ((0, 64), (0, len(whole))):
        for _ in range(20):
            content = bytearray(whole)
            for place in rng.integers(first, min(last, len(whole)), 3):
                content[place] ^= int(rng.integers(1, 256))
            flipped.append(bytes(content))
    return cut + flipped


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


DEEP = "[" * 100_000
TEXTS: list[bytes] = [
    b"",
    b"\xff\xfea\0",
    b"K\xe4fer\n",
    b"a\0b\tc\n",
    DEEP.encode(),
    b'{"a": ' * 5000,
    b"[1, 2]",
    b'"text"',
    b"null",
    b'{"train": 3, "test": {}}',
    b'{"a.png": NaN}',
    b'{"a.png": "\\ud800"}',
    b'{"image": 1, "caption": "x"}',
    b'{"image": "", "caption": "x"}',
    b'{"image": "../../x", "caption": "x"}',
    b"image,caption\na\n",
    b'image,caption\n"a,b',
    b"image,caption\n" + b"x" * 200_000 + b",y\n",
    b"uncertainty,mean_divergence,image,name,classes\nnan,0,a.png,a,x\n",
    b"uncertainty,mean_divergence,image,name,classes\n1,1,../../a.png,a,x\n",
    "\u00b2 0 0 sky\n".encode(),
    b"9" * 5000 + b" 0 0 sky\n",
]
ARRAYS: list[bytes] = [
    b"",
    b"\x93NUMPY",
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }\n"),
    npy("{'descr': '<u1', 'fortran_order': False, 'shape': (99999999999999999999, 2), }\n"),
    npy("{'descr': '<u1', 'fortran_order': False, 'shape': (-1, 2), }\n"),
    npy("{'descr': [('a', '<u1')], 'fortran_order': False, 'shape': (1, 1), }\n", b"\0"),
    npy("{'descr': '<u1', 'fortran_order': False, 'shape': (0, 2), }\n"),
    npy("((((((" * 500),
    npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }\n", struct.pack("<f", float("nan"))),
    b"PK\x03\x04broken",
]
READERS: dict[str, tuple[str, list[bytes], Callable[[Path], Any]]] = {
    **{
        f"image{suffix}": (f"a{suffix}", damaged(suffix), lambda path: (image_header(path), read_image(path)))
        for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp", ".gif")
    },
    **{
        f"mask{suffix}": (f"a{suffix}", damaged(suffix), lambda path: (mask_header(path), read_mask_values(path)))
        for suffix in (".png", ".tif", ".bmp")
    },
    "array": ("a.npy", ARRAYS, lambda path: (mask_header(path), read_mask_values(path))),
    "classes": ("classes.txt", TEXTS, read_classes),
    "palette": ("palette.txt", TEXTS, read_palette),
    "split": ("split.json", TEXTS, lambda path: read_split(path, ("a", "b"))),
    **{
        f"captions{suffix}": (f"captions{suffix}", TEXTS, CaptionFile)
        for suffix in (".txt", ".csv", ".tsv", ".json", ".jsonl")
    },
    "captions of a folder": ("captions.txt", TEXTS, lambda path: read_captions(path.parent, "", ("a",))),
    "written captions": ("captions.jsonl", TEXTS, _known),
    "torn captions": ("captions.jsonl", TEXTS, lambda path: _known(path, torn=True)),
    "caption beside an image": ("a.txt", TEXTS, lambda path: list_captioned(path.parent)),
    "table of labels": ("uncertainty.csv", TEXTS, lambda path: LabelledFolder(path.parent).read_table()),
    "record of labels": (".records/a.json", TEXTS, lambda path: LabelledFolder(path.parent.parent).entry("a")),
    "latents": ("a.safetensors", [*TEXTS, b"\x08" + b"\0" * 7 + b"{}      "], lambda path: read_latents(path, 1, 6)),
}


@pytest.mark.filterwarnings("ignore")  # of Pillow, about damaged tags
@pytest.mark.parametrize("reader", READERS)
def test_readers_raise_errors_of_ours_alone(tmp_path: Path, reader: str) -> None:
    name, contents, read = READERS[reader]
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True)
    refused = []
    for content in contents:
        if reader == "caption beside an image":
            (path.parent / "a.png").write_bytes(encoded(".png"))
        path.write_bytes(content)
        try:
            read(path)
        except GateError as error:
            refused.append(str(error))
    assert len(refused) >= min(3, len(contents) // 4)
    assert all(str(path.parent) in message for message in refused)
    path.unlink()
    path.mkdir()
    if reader not in ("captions.txt", "captions.csv", "captions.tsv", "captions.json", "captions.jsonl"):
        if reader in ("captions of a folder", "caption beside an image"):
            read(path)  # there are no captions then
        else:
            with pytest.raises(GateError):
                read(path)


def test_files_that_are_no_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(GateError, match=r"dataset\.root is a file: .*unpack it"):
        require_root(tmp_path / "set.zip")
    with pytest.raises(GateError, match=r"set\.zip is no image that can be read .*files that are read: \.jpg"):
        ImageSource(tmp_path / "set.zip").sizes(0)
    with pytest.raises(GateError, match="null is a device"):
        read_image(Path("/dev/null"))


@pytest.mark.parametrize("mode", ["CMYK", "F", "LAB", "YCbCr", "I"])
def test_images_of_other_modes_are_refused_or_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    try:
        Image.fromarray(make_image(8, 8)).convert("L" if mode in "FI" else "RGB").convert(mode).save(path)
    except (ValueError, OSError):
        pytest.skip(f"Pillow writes no such file: {mode}")
    if mode == "I":
        assert read_image(path).shape == (8, 8, 3)
        return
    # before 13, Pillow does not read the YCbCr file that it writes
    with pytest.raises(GateError, match=r"a\.tif (is CMYK|has colour mode|does not decode)"):
        read_image(path)


def test_an_enormous_claim_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(".png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(GateError, match=r"a\.png claims an enormous size"):
        image_header(path)


@pytest.mark.parametrize(
    "transform", ["x", [[1, 2], [3]], np.eye(2), np.eye(3) * np.nan, np.zeros((3, 3)), np.diag([1e300, 1e300, 1e-8])]
)
def test_homographies_that_are_none(transform: Any) -> None:
    with pytest.raises(ConfigError, match="transform must be"):
        check_transform(transform)


def test_whole_files_are_read(tmp_path: Path) -> None:
    """The readers above are not merely closed."""
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["cafe\u0301"], "test": ["b"]}))
    assert read_split(path, ("b", "caf\u00e9")).train == (1,)
    for suffix in (".png", ".tif", ".bmp", ".gif"):
        image = tmp_path / f"a{suffix}"
        image.write_bytes(encoded(suffix))
        assert read_image(image).shape == (40, 40, 3)
