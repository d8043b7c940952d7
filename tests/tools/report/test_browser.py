"""Reports in a real browser: nothing is fetched, nothing fails, the slider slides and the table sorts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from gate_lightning.tools.report.report import report
from tests.support.browser import Page, chromium
from tests.support.run_folders import CLASSES, make_run

pytest.importorskip("websocket", reason="websocket-client drives the browser")
pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    report(str(make_run(folder)))
    return folder / "report.html"


def opacities(page: Page) -> list[float]:
    script = "[...document.querySelectorAll('.example img')].slice(0, 4).map(i => +getComputedStyle(i).opacity)"
    return list(page.evaluate(script))


def test_a_run_is_looked_at(made: Path) -> None:
    with Page(made) as page:
        assert page.evaluate("document.title") == f"{made.parents[1].name}/{made.parent.name}"
        assert opacities(page) == [1, 0, 0, 0]
        page.evaluate("document.querySelector('.example input').focus()")
        for _ in range(4):
            page.press("ArrowRight", 39)
        assert opacities(page) == [0, 0, 1, 0]
        assert page.evaluate("document.querySelector('.example output').textContent") == "prediction"
        page.press("ArrowLeft", 37)
        assert opacities(page) == [0, 1, 0.5, 0]
        assert (
            page.evaluate("document.querySelector('.example input').getAttribute('aria-valuetext')")
            == "truth + prediction"
        )
        page.point(".together input", across=0.995, click=True)
        assert opacities(page) == [0, 0, 0, 1]

        rows = "[...document.querySelector('#classes tbody').rows]"
        column = rows + ".map(row => row.cells[{}].textContent.trim())"
        assert page.evaluate(column.format(0)) == list(CLASSES)
        page.point("#classes th:nth-child(2) button", click=True)
        assert page.evaluate(column.format(1)) == ["50.0", "40.0", "30.0"]
        assert page.evaluate("document.querySelector('#classes th:nth-child(2)').ariaSort") == "descending"
        page.point("#classes th:nth-child(2) button", click=True)
        assert page.evaluate(column.format(1)) == ["30.0", "40.0", "50.0"]
        page.evaluate("document.querySelector('#classes th:nth-child(3) button').focus()")
        page.press("Enter", 13)
        page.evaluate("document.querySelector('#classes th:nth-child(3) button').click()")
        assert page.evaluate(column.format(2))[-1] == "–"

        page.point(".chart svg", across=0.3)
        assert "step 4: val/mIoU 25 %" in page.evaluate("document.querySelector('.chart output').textContent")
        page.evaluate("document.querySelector('.chart svg').focus()")
        page.press("ArrowRight", 39)
        assert "step 9: val/mIoU 50 %" in page.evaluate("document.querySelector('.chart output').textContent")
        broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
        assert page.evaluate(broken) == 0
        assert page.requests[0] == made.as_uri()
        assert [address for address in page.requests[1:] if not address.startswith("data:")] == []
        assert page.errors == []


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_a_phone_shows_it_without_scrolling_sideways(made: Path, dark: bool) -> None:
    with Page(made, 375, dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        corner = Image.open(io.BytesIO(page.screenshot(200))).convert("RGB").getpixel((1, 1))
        assert (sum(corner) < 150) == dark  # type: ignore[arg-type]
        assert page.errors == []


@pytest.mark.thorough
def test_a_sweep_is_looked_at(tmp_path: Path) -> None:
    for number, value in enumerate((0.2, 0.5, 0.3, 0.4)):
        overrides = (f"techniques={('none', 'all')[number % 2]}", f"seed={number // 2}")
        make_run(tmp_path / str(number), value=value, overrides=overrides)
    report(str(tmp_path / "1"))
    report(str(tmp_path))
    with Page(tmp_path / "report.html", 375) as page:
        page.point("#rows th:nth-child(2) button", click=True)
        script = "JSON.stringify([...document.querySelectorAll('#rows tbody tr')].map(row => row.cells[0].textContent))"
        assert json.loads(page.evaluate(script)) == ["techniques=all", "techniques=none"]
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.point("#runs a[href='1/report.html']", click=True)
        for _ in range(100):
            if page.evaluate("location.pathname") == str(tmp_path / "1" / "report.html"):
                break
        assert page.evaluate("document.querySelector('h1').textContent").strip().startswith(f"{tmp_path.name}/1")
        assert page.errors == []
