"""One listing: links and kinds of files, a folder and a pattern, and words about what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.files import listing
from gate_lightning.data.files.listing import describe_left_out, list_files
from gate_lightning.data.files.names import inner_path, path_inside
from gate_lightning.errors import DataError
from tests.support.folders import make_image, write


def names(root: Path, *pattern: str) -> list[str]:
    found = list_files(root, pattern) if pattern else list_files(root)
    return [path.relative_to(root).as_posix() for path in found.files]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images in folders, behind links, hidden, and other files."""
    for name in ("a.png", "b.JFIF", "sub/c.jpg", "sub/deep/d.tif", "sub/.hidden/e.png", ".f.png"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    write(tmp_path / "store/g.png", make_image(4, 4))
    (tmp_path / "root/linked").symlink_to(tmp_path / "store")
    (tmp_path / "root/h.png").symlink_to(tmp_path / "store/g.png")
    (tmp_path / "root/sub/loop").symlink_to(tmp_path / "root")
    (tmp_path / "store/loop").symlink_to(tmp_path / "root/linked")
    return tmp_path / "root"


def test_links_are_followed_and_end(root: Path) -> None:
    assert names(root) == ["a.png", "b.JFIF", "h.png", "linked/g.png", "sub/c.jpg", "sub/deep/d.tif"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", ["a.png", "b.JFIF", "h.png", "linked/g.png", "sub/c.jpg", "sub/deep/d.tif"]),
        ("**/*", ["a.png", "b.JFIF", "h.png", "linked/g.png", "sub/c.jpg", "sub/deep/d.tif"]),
        ("**/*.[jt]*", ["sub/c.jpg", "sub/deep/d.tif"]),
        ("*", ["a.png", "b.JFIF", "h.png"]),
        ("*/*", ["linked/g.png", "sub/c.jpg"]),
        ("s*/**/d.*", ["sub/deep/d.tif"]),
        ("?.png", ["a.png", "h.png"]),
        (".*", []),
    ],
)
def test_a_pattern_sees_what_a_folder_sees(root: Path, pattern: str, expected: list[str]) -> None:
    assert names(root, *pattern.split("/")) == expected


def test_what_is_left_out_is_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.png", make_image(4, 4))
    for name in ("b.heic", "c.heic", "shard.tar", "README", "captions.txt", "x.manifest.json"):
        (tmp_path / "sub" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "sub" / name).touch()
    for _ in range(2):
        ImageSource(tmp_path)
    assert caplog.text.count("left out") == 1
    assert f"{tmp_path}: 4 left out: 2 .heic (b.heic, …), 1 without suffix (README), 1 .tar (shard.tar)." in caplog.text
    assert "unpack archives" in caplog.text
    ImageSource(tmp_path / "*")
    assert "1 folders, whose files the pattern does not name (sub)" in caplog.text


def test_nothing_but_other_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "shard.tar").touch()
    with pytest.raises(DataError, match=r"holds no images; .*1 \.tar \(shard\.tar\).*unpack archives"):
        ImageSource(tmp_path)
    with pytest.raises(DataError, match=r"the folder .*nowhere .*does not exist"):
        ImageSource(tmp_path / "nowhere" / "*.png")
    assert describe_left_out(tmp_path, []) == ""


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"a\.png is a link to .*gone\.png, which does not exist"):
        ImageSource(tmp_path).sizes(0)


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    """Noise is keyed by names."""
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).touch()
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    with pytest.raises(DataError, match=r"the name 'caf.\.png' is not UTF-8; rename it"):
        list_files(tmp_path)


def test_links_that_lead_to_each_other_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_MOST_LINKS", 100)
    for one in "abcdef":
        (tmp_path / one).mkdir()
        for other in "abcdef":
            (tmp_path / one / other).symlink_to(tmp_path / other)
    with pytest.raises(DataError, match="more than 100 linked folders"):
        list_files(tmp_path)


@pytest.mark.parametrize("text", ["../a", "/a", "a/../../b", "C:\\a", "C:/a", "", ".", "..", "a\0b", "..\\a"])
def test_paths_in_files_stay_in_their_folder(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"table, line 3: the path .* leaves its folder"):
        inner_path(text, "table, line 3")
    with pytest.raises(DataError, match="leaves its folder"):
        path_inside(tmp_path, text, "table")


def test_links_in_files_stay_in_their_folder_too(tmp_path: Path) -> None:
    assert inner_path("./a\\b.png", "table") == "a/b.png"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").symlink_to("b")
    (tmp_path / "in/out").symlink_to(tmp_path)
    assert path_inside(tmp_path / "in", "a", "table") == tmp_path / "in/a"
    with pytest.raises(DataError, match=r"table: 'out/x' is a link out of"):
        path_inside(tmp_path / "in", "out/x", "table")
