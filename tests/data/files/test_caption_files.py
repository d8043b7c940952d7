"""Captions by image from files of every form."""

from __future__ import annotations

from pathlib import Path

import pytest

from gate_lightning.data.files.caption_files import CaptionFile
from gate_lightning.data.files.path_table import PathTable
from gate_lightning.errors import DataError

FORMS = {
    "a.jsonl": '{"image": "x/1.png", "caption": "one, two"}\n\n{"file_name": "2.png", "text": " two "}\n',
    "a.json": '{"x/1.png": "one, two", "2.png": "two"}',
    "list.json": '[{"image": "x/1.png", "caption": "one, two"}, {"path": "2.png", "prompt": "two"}]',
    "a.csv": 'image,caption\r\nx/1.png,"one, two"\r\n2.png,two\r\n',
    "a.tsv": "caption\timage\none, two\tx/1.png\ntwo\t2.png\n",
    "a.txt": "x\\1.png\tone, two\n\n2.png\t two\n",
    "bom.jsonl": '\ufeff{"image": "x/1.png", "caption": "one, two"}\n{"image": "./2.png", "caption": "two"}',
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FORMS[name], encoding="utf-8")
    file = CaptionFile(path)
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
        ("a.json", '"text"', "holds a str"),
        ("a.json", '{"a.png": ["x", "y"]}', "caption of 'a.png' is a list"),
        ("a.csv", "name,words\na,b\n", r"line 2: found \['name', 'words'\]"),
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
    with pytest.raises(DataError, match="no UTF-8"):
        CaptionFile(tmp_path / "a.txt")


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
