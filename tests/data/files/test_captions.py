"""Captions in files of every form, of data sets, and shuffled ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.data.files.captions import CaptionFile, derangement, read_captions
from gate_lightning.data.files.path_table import PathTable
from gate_lightning.errors import ConfigError, DataError
from tests.support.folders import SIZES, make_folder

NAMES = ["001", "002", "003", "town/000"]
TEXTS = [
    "a road of train 1, really.",
    "a car of train 2, really.",
    "a sky of train 3, really.",
    "a sky of train 0, really.",
]
FORMS = {
    "a.jsonl": '{"image": "x/1.png", "caption": "one, two"}\n\n{"file_name": "2.png", "text": " two "}\n',
    "a.json": '{"x/1.png": "one, two", "2.png": "two"}',
    "list.json": '[{"image": "x/1.png", "caption": "one, two"}, {"path": "2.png", "prompt": "two"}]',
    "a.csv": 'image,caption\r\nx/1.png,"one, two"\r\n2.png,two\r\n',
    "a.tsv": "caption\timage\none, two\tx/1.png\ntwo\t2.png\n",
    "a.txt": "x\\1.png\tone, two\n\n2.png\t two\n",
    "bom.jsonl": '\ufeff{"image": "x/1.png", "caption": "one, two"}\n{"image": "./2.png", "caption": "two"}',
}


@pytest.mark.parametrize("captions", ["files", "table"])
def test_captions_are_read_as_they_are(tmp_path: Path, captions: str) -> None:
    root = make_folder(tmp_path, captions=captions)
    assert read_captions(root, "train", NAMES) == TEXTS
    assert len(read_captions(root, "val", ["001", "town/000"])) == len(SIZES["val"])


def test_no_captions(tmp_path: Path) -> None:
    assert read_captions(make_folder(tmp_path), "train", NAMES) is None


def test_missing_captions_are_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path, captions="files")
    (root / "captions/train/002.txt").unlink()
    with pytest.raises(DataError, match=r"captions/train has no caption for '002' of train \(1 of 4 are missing\)"):
        read_captions(root, "train", NAMES)


def test_both_kinds_of_captions_are_refused(tmp_path: Path) -> None:
    root = make_folder(tmp_path, captions="files")
    (root / "captions.txt").write_text("train/001.png\tx")
    with pytest.raises(DataError, match="keep one of them"):
        read_captions(root, "train", NAMES)


def test_lines_without_tab_are_named(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("train/001.png\ta\n\ntrain/002.png a\n")
    with pytest.raises(DataError, match="line 3"):
        read_captions(tmp_path, "train", NAMES)


@pytest.mark.parametrize("length", [2, 3, 10, 101])
def test_nobody_keeps_the_own_caption(length: int) -> None:
    orders = [derangement(length, seed, "train").tolist() for seed in range(20)]
    for order in orders:
        assert sorted(order) == list(range(length))
        assert all(index != moved for index, moved in enumerate(order))
    assert orders[0] == derangement(length, 0, "train").tolist()
    assert length == 2 or len({tuple(order) for order in orders}) > 1


def test_all_cycles_of_four_are_drawn() -> None:
    assert len({tuple(derangement(4, seed)) for seed in range(200)}) == 6


def test_a_single_caption_cannot_be_shuffled() -> None:
    with pytest.raises(ConfigError, match="at least 2 images"):
        derangement(1, 0)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FORMS[name], encoding="utf-8")
    (tmp_path / "same.json").write_text(FORMS["a.json"])
    file = CaptionFile(path)
    assert file.digest == CaptionFile(tmp_path / "same.json").digest
    assert [file.table.get(sample) for sample in ("x/1.png", "2.png", "y/x/1.jpg", "3.png")] == [
        "one, two",
        "two",
        "one, two",
        None,
    ]


def test_a_folder_of_texts(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/1.txt").write_text("one\n")
    (tmp_path / "2.v5.txt").write_text("two")
    table = CaptionFile(tmp_path).table
    assert (table.get("images/x/1.jpg"), table.get("2.v5.png"), table.get("1.jpg")) == ("one", "two", None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"image": "a.png"}', r"line 1: found \['image'\]; expected an object"),
        ("a.jsonl", '{"image": "a.png", "caption": "x"}\nnonsense', "line 2 is no JSON"),
        ("a.jsonl", '{"image": "a.png", "caption": null}', "line 1: found"),
        ("a.jsonl", "", "holds no caption"),
        ("a.jsonl", '{"image":"a","caption":"x"}\n{"image":"a","caption":"y"}', r"line 2: a second caption for 'a'"),
        ("a.json", '"text"', "holds a text, expected an object"),
        ("a.csv", "image,caption\na.png,a cat, sitting\n", "line 2: 3 cells, expected 2"),
        ("a.jsonl", '{"image": "../a.png", "caption": "x"}', r"line 1: the path '\.\./a\.png' leaves its folder"),
        ("a.txt", "/data/a.png\tx", "line 1: the path '/data/a.png' leaves its folder"),
        ("a.txt", "C:\\a.png\tx", "leaves its folder"),
        ("a.json", '{"a.png": ["x", "y"]}', "caption of 'a.png' is a list"),
        ("a.csv", "name,words\na,b\n", r"row 1: found \['name', 'words'\]"),
        ("a.txt", "a photo of a horse\n", r"line 1: 'a photo of a horse'.*the prompt technique's text"),
        ("a.xlsx", "x", r"no caption file of a known form; expected \.jsonl"),
    ],
)
def test_broken_files_are_refused_with_the_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        CaptionFile(tmp_path / name)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl .*does not exist"):
        CaptionFile(tmp_path / "none.jsonl")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "captions.txt").write_bytes("a\tone\nb\tKäfer".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.txt is encoded as UTF-16; save it as UTF-8"):
        CaptionFile(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"captions\.txt, line 2: .*save the file as UTF-8"):
        read_captions(tmp_path, "", ["a"])


def test_two_captions_of_one_image_in_a_table_are_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a.png\tone\na.png\ttwo\n")
    with pytest.raises(DataError, match=r"line 2: a second caption for 'a\.png'"):
        read_captions(tmp_path, "", ["a"])


def test_a_line_ends_where_lines_end(tmp_path: Path) -> None:
    """Not at signs that Python's splitlines knows besides, which JSON and captions may hold."""
    (tmp_path / "a.jsonl").write_text('{"image": "a.png", "caption": "one\u2028two\x85three"}\r\n', encoding="utf-8")
    assert CaptionFile(tmp_path / "a.jsonl").table.get("a.png") == "one\u2028two\x85three"


def test_accents_in_two_encodings_are_one_name(tmp_path: Path) -> None:
    """macOS stores é as e and an accent."""
    composed, apart = "caf\u00e9", "cafe\u0301"
    (tmp_path / "captions.txt").write_text(f"{apart}.png\tone\n", encoding="utf-8")
    assert read_captions(tmp_path, "", [composed]) == ["one"]
    (tmp_path / "captions.txt").unlink()
    (tmp_path / "captions").mkdir()
    (tmp_path / f"captions/{apart}.txt").write_text("two")
    assert read_captions(tmp_path, "", [composed]) == ["two"]
    assert table(composed).get(f"x/{apart}.png") == composed
    with pytest.raises(DataError, match="twice, with accents in two encodings"):
        table(composed, apart)


def table(*keys: str) -> PathTable[str]:
    return PathTable({key: key for key in keys}, "here", "caption", "write one")


def test_the_longest_path_counts() -> None:
    found = table("b.png", "a/b", "train/a/b.jpg")
    assert found.get("images/train/a/b.png") == "train/a/b.jpg"
    assert found.get("val/a/b.png") == "a/b"
    assert found.get("c/b.png") == "b.png"
    assert found.get("b") == "b.png"
    assert found.get("ab.png") is None


def test_what_is_ambiguous_is_refused() -> None:
    with pytest.raises(DataError, match=r"'b\.jpg' and 'b\.png', and 'x/b\.webp' may be either"):
        table("b.jpg", "b.png").get("x/b.webp")
    assert table("b.jpg", "b.png").get("x/b.png") == "b.png"
    with pytest.raises(DataError, match=r"one caption 'b' for both 'x/b\.png' and 'y/b\.png'"):
        table("b").check(["x/b.png", "y/b.png"])
    table("b").check(["x/b.png", "x/b.png"])  # one image twice is one image
