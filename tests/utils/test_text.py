"""Strict readers of text, JSON and CSV."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gate_lightning.errors import ConfigError, DataError, GateError
from gate_lightning.utils.text import lines_of, parse_json, read_csv, read_json, read_text


def written(folder: Path, content: bytes, name: str = "file") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_utf8_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, mark: bytes) -> None:
    assert read_text(written(tmp_path, mark + "Käfer\n馬\n".encode())) == "Käfer\n馬\n"


@pytest.mark.parametrize("encoding", ["cp1252", "gbk", "utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_is_refused_with_file_and_advice(tmp_path: Path, encoding: str) -> None:
    text = "horse\n馬\n" if encoding == "gbk" else "horse\nKäfer\n"
    path = written(tmp_path, text.encode(encoding))
    with pytest.raises(DataError, match=r"save (it|the file) as UTF-8") as caught:
        read_text(path)
    assert str(path) in str(caught.value)
    if encoding in ("cp1252", "gbk"):
        assert "line 2" in str(caught.value)


def test_what_is_no_file_is_refused_with_the_error_asked_for(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_text(path, ConfigError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1"),
        ('{"a": 1,\n "b": }', "line 2"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "Infinity"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 200_000, "nested too deeply"),
        ('{"a": "\\ud800"}', "surrogates"),
        ("9" * 5000, "integer string"),
        ("[1]", r"a list \[…\], expected an object"),
        ("3", "holds 3, expected an object"),
    ],
)
def test_hostile_json_is_refused(text: str, says: str) -> None:
    with pytest.raises(GateError, match=says) as caught:
        parse_json(text, "here.json")
    assert str(caught.value).startswith("here.json")


def test_json_of_any_wanted_kind_is_read(tmp_path: Path) -> None:
    value = {"ä": ["😀", 1.5, None]}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert read_json(written(tmp_path, text.encode())) == value
    assert read_json(written(tmp_path, b"[]"), kind=(dict, list)) == []


def test_tables_are_read_by_column(tmp_path: Path) -> None:
    path = written(tmp_path, b'\xef\xbb\xbfname,note\na,"two\nlines"\n\nb,\n')
    assert read_csv(path, ["name"]) == [{"name": "a", "note": "two\nlines"}, {"name": "b", "note": ""}]


def test_lines_end_where_editors_end_them(tmp_path: Path) -> None:
    """Not at a form feed, NEL or U+2028, where a list of classes became longer and a caption two rows."""
    assert lines_of("a\r\nb\u2028c\rd\x0ce\n\nf") == ["a", "b\u2028c", "d\x0ce", "", "f"]
    assert lines_of("") == []
    assert lines_of("a\n") == ["a"]
    path = written(tmp_path, "name,x\r\na,b\u2028c\x85\r\n".encode())
    assert read_csv(path) == [{"name": "a", "x": "b\u2028c\x85"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"other\n1\n", "no column name"),
        (b"name,name\n1,2\n", "twice"),
        (b"name,x\n1\n", "line 2: 1 cells, expected 2"),
        (b"name,x\n1,2,3\n", "line 2: 3 cells"),
        (b"name\n" + b"x" * 200_000, "field larger"),
        (b'name,x\na,"left open\nb,2\n', "line 3: unexpected end of data; a cell that begins with a quote"),
        (b'name,x\na,"quoted" and more\n', "line 2: .*; a cell that begins with a quote"),
    ],
)
def test_broken_tables_are_refused_with_their_line(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_csv(written(tmp_path, content), ["name"])
