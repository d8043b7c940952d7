"""The page in a browser: upload, click, other settings, errors, two tabs; and nothing goes anywhere else."""

from __future__ import annotations

import http.client
import importlib.util
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gate_lightning.errors import ConfigError
from gate_lightning.tools.app.app import app
from gate_lightning.tools.app.following import VideoBench
from gate_lightning.tools.app.server import HOST, listening, web_app
from gate_lightning.tools.app.workbench import Workbench
from tests.support.browser import Page, chromium

SHOWN = (
    "!!document.querySelector('#figures img') && document.querySelector('#source img')?.complete && "
    "!!document.querySelector('#command .cm-line')"
)
#: not by the mouse: the button moves when a message above it goes
APPLY = "document.querySelector('#apply').click()"
#: who is connected to while `watched` is true
_connected: list[Any] = []
_watching = threading.Event()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo") and _watching.is_set():
        _connected.append(arguments)


def test_a_port_that_is_taken_is_told_of_before_anything_is_loaded(tmp_path: Path) -> None:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the page needs the extra app")
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"tool\.port={number} is taken by another program; .*tool\.port=0"):
            app(parts_of=None, output=tmp_path, read_out=None, port=number)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"tool\.port=70000"):
        app(parts_of=None, output=tmp_path, read_out=None, port=70000)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="targets are searched for points of a source"):
        app(parts_of=None, output=tmp_path, read_out=None, targets=["a.png"])  # type: ignore[arg-type]
    with listening(0) as place:
        assert place.getsockname()[0] == "127.0.0.1"


def test_without_gradio_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs gradio, which is not installed: pip install -e '\.\[app\]'"):
        app(parts_of=None, output=tmp_path, read_out=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def port(workbench: Workbench, videos: VideoBench) -> Iterator[int]:
    """The page is served, and who this process connects to meanwhile is noted."""
    pytest.importorskip("gradio", reason="the page needs the extra app")
    import uvicorn

    sys.addaudithook(_watch)
    _watching.set()
    with listening(0) as place:
        server = uvicorn.Server(
            uvicorn.Config(web_app(workbench, videos), log_level="critical", timeout_graceful_shutdown=1)
        )
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        yield place.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        _watching.clear()


def answer(port: int, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    connection.request("GET", "/", headers=headers)
    return connection.getresponse()


def test_pages_of_other_sites_are_refused(port: int) -> None:
    found = answer(port)
    assert found.status == 200 and "default-src 'self'" in str(found.headers["content-security-policy"])
    assert answer(port, Host=f"localhost:{port}", Origin=f"http://localhost:{port}").status == 200
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert answer(port, **headers).status == 403


def told(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector('{selector}').textContent"))


def until(page: Page, change: Callable[[], None], what: str = "#figures .gate-figures", seconds: float = 60) -> float:
    """Seconds until something that is shown has changed."""
    content = f"document.querySelector('{what}')?.innerHTML"
    page.evaluate(f"window.before = {content}")
    start = time.monotonic()
    change()
    page.wait(f"{content} !== window.before", seconds)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no Chromium")
def test_a_page_is_used(port: int, workbench: Workbench, tmp_path: Path) -> None:
    pytest.importorskip("websocket", reason="websocket-client drives the browser")
    pixels = np.random.default_rng(3).integers(0, 256, (24, 36, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    Image.fromarray(pixels[:, ::-1]).save(tmp_path / "mirrored.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "mine.png").read_bytes()[:500])
    with Page(f"http://{HOST}:{port}/") as page:
        page.wait(SHOWN, 60)
        assert "elsewhere.png" in told(page, "#figures")
        command = told(page, "#command")
        # other points of the example
        seconds = [
            until(page, lambda x=x: page.point("#source img", across=x, down=0.62, click=True))
            for x in (0.15, 0.3, 0.45, 0.6)
        ]
        sys.stdout.write(f"\nclicks were answered in {', '.join(f'{one:.2f} s' for one in seconds)}\n")
        assert min(seconds) < 5  # docs/app.md has the time with less other work
        assert told(page, "#command") != command and "tool=match" in command
        # one's own images
        until(page, lambda: page.choose_files("[data-testid^='Choose another']", tmp_path / "mine.png"))
        until(page, lambda: page.choose_files("#new-targets input[type=file]", tmp_path / "mirrored.png"))
        assert "mirrored.png" in told(page, "#figures") and "elsewhere.png" not in told(page, "#figures")
        until(page, lambda: page.point("#source img", across=0.3, down=0.3, click=True))
        # a second tab has the examples, and the first one keeps its own
        with Page(f"http://{HOST}:{port}/", 375) as other:
            other.wait(SHOWN, 60)
            assert "elsewhere.png" in told(other, "#figures")
            assert other.evaluate("document.documentElement.scrollWidth") <= 375
            until(other, lambda: other.point("#source img", across=0.5, down=0.9, click=True))
            assert other.errors == []
        until(page, lambda: page.point("#source img", across=0.5, down=0.5, click=True))
        assert "mirrored.png" in told(page, "#figures")
        # views
        until(page, lambda: page.point("#view label:nth-child(3)", click=True))
        assert "one basis for all images" in told(page, "#figures")
        until(page, lambda: page.point("#view label:nth-child(1)", click=True))
        # errors are told, and the rest stays
        shown = told(page, "#figures")
        files = "#new-targets input[type=file]"
        page.wait("!document.querySelector('#new-targets .file-preview')")
        until(page, lambda: page.choose_files(files, tmp_path / "broken.png"), "#message .gate-message")
        assert "broken.png does not decode" in told(page, "#message")
        assert told(page, "#figures") == shown
        until(page, lambda: page.point("#source img", across=0.6, down=0.5, click=True))
        page.wait("!document.querySelector('#message .gate-message')")
        # settings
        page.evaluate("document.querySelector('#timestep input').focus()")
        page.evaluate("document.querySelector('#timestep input').select()")
        page.call("Input.insertText", text="1234")
        until(page, lambda: page.evaluate(APPLY), "#message .gate-message")
        assert "timestep" in told(page, "#message") and "1234" in told(page, "#message")
        page.evaluate("document.querySelector('#timestep input').select()")
        page.call("Input.insertText", text="200")
        until(page, lambda: page.evaluate(APPLY))
        assert "timestep=200" in told(page, "#command")
        assert {address.split("/")[2] for address in page.requests if not address.startswith(("data:", "blob:"))} == {
            f"{HOST}:{port}"
        }
        # gradio's own word on a widget that has nothing to do
        assert [one for one in page.errors if "Method not implemented" not in one] == []
    elsewhere = [one for one in _connected if HOST not in str(one) and "localhost" not in str(one)]
    assert elsewhere == []


@pytest.mark.slow
@pytest.mark.skipif(chromium() is None, reason="no Chromium")
def test_an_object_is_painted_and_followed(port: int, videos: VideoBench) -> None:
    pytest.importorskip("websocket", reason="websocket-client drives the browser")
    with Page(f"http://{HOST}:{port}/") as page:
        page.wait(SHOWN, 150)
        tab = "[...document.querySelectorAll('button[role=tab]')].find(one => one.textContent.includes('Video'))"
        page.evaluate(f"{tab}.click()")
        page.wait("!!document.querySelector('#editor canvas')", 60)
        time.sleep(3)  # the frame is loaded into the canvas, which tells nobody
        follow = "document.querySelector('#video-apply').click()"
        until(page, lambda: page.evaluate(follow), "#video-message .gate-message")
        assert "nothing is drawn" in told(page, "#video-message")
        page.evaluate("document.querySelector('#editor').scrollIntoView()")
        found = "document.querySelector('#editor canvas').getBoundingClientRect()"
        left, top, width, height = (float(page.evaluate(f"{found}.{one}")) for one in ("x", "y", "width", "height"))
        for number, kind in enumerate(["mousePressed", *["mouseMoved"] * 8, "mouseReleased"]):
            place = {"x": left + 0.5 * width + 6 * number, "y": top + 0.6 * height}
            page.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)
            time.sleep(0.05)
        time.sleep(1)
        page.evaluate(follow)
        page.wait("!!document.querySelector('#followed video')", 150)
        assert "task=video" in told(page, "#video-command")
        assert not any("Security Policy" in one for one in page.errors)
    masks = [path.parent for path in (videos.first.folder / "masks").glob("*/*/followed.webm")]
    assert masks and all(len(list((path / "masks").glob("*.png"))) == 16 for path in masks)
