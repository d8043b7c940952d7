"""The report of a run, read back with Python's own parser of HTML."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tools.report.report import report
from tests.support.report_pages import Parsed
from tests.support.run_folders import CLASSES, EVIL, IMAGE, make_run


def page_of(folder: Path) -> Parsed:
    report(str(folder))
    return Parsed(folder / "report.html")


def test_all_parts_are_there(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run", value=0.678))
    assert page.sections == [
        *("settings", "curves", "classes", "predictions", "worst", "confusion", "features", "cost", "environment")
    ]
    assert "67.8 %" in page.texts
    assert "57.8 %" in page.texts
    assert any("Mean over the classes of intersection over union" in text for text in page.texts)
    assert "1 min 30 s for 300 steps, validation included" in page.texts
    assert {"tiny", "moderate", "abc"} <= set(page.texts)


def test_names_stay_text(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    assert len(page.all("script")) == 1
    assert EVIL in page.texts
    for image in page.all("img"):
        assert str(image["src"]).startswith("data:image/")
        assert not [name for name in image if name.startswith("on")]
    assert {image["alt"] for image in page.all("img")} >= {f"{IMAGE}: truth", "b: errors"}
    assert all(name in page.texts for name in CLASSES)
    names = {line["name"] for svg in page.all("svg") for line in json.loads(svg["data-curves"] or "")["lines"]}
    assert names == {"train/loss", "val/mIoU", "weights/stride4/<b>prompt"}


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    places = [str(one.get(key)) for _, one in page.tags for key in ("src", "href", "data", "action") if one.get(key)]
    assert [place for place in places if not place.startswith(("data:", "#"))] == []
    assert "url(" not in page.source
    assert "@import" not in page.source


def test_curves_leave_out_the_final_evaluation(tmp_path: Path) -> None:
    page = page_of(make_run(tmp_path / "run"))
    lines = {line["name"]: line for svg in page.all("svg") for line in json.loads(svg["data-curves"] or "")["lines"]}
    assert lines["val/mIoU"]["x"] == [4, 9]
    assert lines["val/mIoU"]["y"] == [25, 50]


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_is_not_done_says_so(tmp_path: Path, status: str) -> None:
    page = page_of(make_run(tmp_path / "run", status=status))
    text = " ".join(page.texts)
    assert {"failed": "This run failed", "interrupted": "was interrupted", "running": "has not finished"}[
        status
    ] in text
    assert "Its results are not final" in text
    # metrics.json is of a training before, if it is there at all: the curve's best is told
    assert "best so far, at step 10" in text or "best so far, at step 9" in text


def test_only_what_is_there_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "config.yaml").write_text("task: {_target_: x}\n")
    (folder / "status.json").write_text('{"status": "done"}')
    (folder / "metrics.json").write_text('{"val/error": 0.123456, "val/error_empty": null}')
    page = page_of(folder)
    assert page.sections == ["settings", "environment"]
    assert "0.1235" in page.texts


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "classes_test.csv").write_text('class,IoU\n"a,1\n')
    with pytest.raises(DataError, match=r"classes_test\.csv"):
        report(str(folder))


def test_a_file_of_somebody_else_is_not_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (tmp_path / "private").write_text("a secret")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to(tmp_path / "private")
    with pytest.raises(DataError, match="outside the run folder"):
        report(str(folder))
    assert not (folder / "report.html").exists()


def test_without_jinja2_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match="pip install 'jinja2"):
        report(str(make_run(tmp_path / "run")))


@pytest.mark.parametrize("runs", [None, "", [], "nowhere"])
def test_no_run_is_refused(runs: object) -> None:
    with pytest.raises(ConfigError, match=r"run=|does not exist"):
        report(runs)  # type: ignore[arg-type]


def test_re_splits_are_a_table_with_links(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "protocol", monitor="test/mIoU_ddpm")
    rows = "split,task.data.split_seed,test/mIoU_ddpm\nsplit0,0,0.25\nsplit1,1,0.35\nmean,,0.3\nstd,,0.0707\n"
    (folder / "splits.csv").write_text(rows)
    (folder / "metrics.json").write_text('{"test/mIoU_ddpm": 0.3, "test/mIoU_ddpm_std": 0.0707}')
    for number in (0, 1):
        make_run(folder / f"split{number}")
    report(str(folder / "split1"))
    page = page_of(folder)
    assert "30.0 ± 7.1 %" in page.texts
    assert {"split0", "split1", "35.0"} <= set(page.texts)
    links = [str(link["href"]) for link in page.all("a") if not str(link["href"]).startswith("#")]
    assert links == ["split1/report.html"]


def test_a_run_of_correspondence_has_categories_matches_and_percent(tmp_path: Path) -> None:
    main, other = "PCK_0.10_bbox_per-image_le", "PCK_0.05_img_per-point_lt"
    folder = tmp_path / "pairs"
    (folder / "images").mkdir(parents=True)
    (folder / "config.yaml").write_text("task: {_target_: x}\n")
    (folder / "status.json").write_text('{"status": "done"}')
    (folder / "settings.json").write_text(json.dumps({"task": "t", "monitor": f"val/{main}", "seed": 0}))
    (folder / "metrics.json").write_text(json.dumps({f"test/{main}": 0.357, f"test/{other}": 0.25}))
    table = (
        f"category,pairs,keypoints,{other},{main}\n{EVIL},7,18,0.125,0.625\nempty,0,0,nan,nan\nall,7,18,0.125,0.625\n"
    )
    (folder / "categories_test.csv").write_text(table)
    for kind in ("first", "worst"):
        Image.new("RGB", (40, 20)).save(folder / "images" / f"matches_{kind}_test.png")
    page = page_of(folder)
    assert page.sections == ["settings", "categories", "matches", "environment"]
    assert "35.7 %" in page.texts
    assert "test pairs" in page.texts
    explained = [text for text in page.texts if text.startswith("Percentage of correct keypoints")]
    assert len(explained) == 2  # once at the top, once in the list of all metrics
    titles = [text for text in page.texts if text in ("category", "pairs", "keypoints", f"{main} %", f"{other} %")]
    assert titles == ["category", "pairs", "keypoints", f"{main} %", f"{other} %"]
    start = page.texts.index(EVIL)
    cells = [text for text in page.texts[start:] if text]
    assert cells[:5] == [EVIL, "7", "18", "62.5", "12.5"]
    assert {"test: first pairs", "test: worst pairs"} <= set(page.texts)
    assert len(page.all("img")) == 2
