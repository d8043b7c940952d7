"""A page in Debian's or anybody's Chromium without a window, by the DevTools protocol.

As a command it makes an image of a page: python -m tests.support.browser report.html page.png [width [dark]]
(an address in place of the file is one that begins with http).
"""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Page", "chromium"]


def chromium() -> str | None:
    """Path of Chromium's program, or None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """A page that is open in a Chromium of its own; a context.

    Args:
        place: HTML file, or address of a page.
        width: of the window, in pixels of the page.
        dark: whether the page is asked to be dark.

    Attributes:
        requests: addresses that were asked for, the page itself first.
        errors: messages of the console, of scripts that failed and of what the page's policy refused.
    """

    def __init__(self, place: Path | str, width: int = 1280, dark: bool = False) -> None:
        self.address = place.resolve().as_uri() if isinstance(place, Path) else place
        self.width, self.dark = width, dark
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._number = 0

    def __enter__(self) -> Self:
        import websocket

        program = chromium()
        assert program is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        # --no-sandbox: it has none for root, in a container
        command = [
            program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-port=0",
            "--no-first-run",
        ]
        command += [
            "--disable-dev-shm-usage",
            "--disable-extensions",
            f"--user-data-dir={self._profile.name}",
            "about:blank",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = self._port()
            # the system's proxy knows nothing of this machine's own ports
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            pages = json.load(opener.open(f"http://127.0.0.1:{port}/json"))
            address = next(one["webSocketDebuggerUrl"] for one in pages if one["type"] == "page")
            self._socket = websocket.create_connection(
                address, suppress_origin=True, timeout=60, http_no_proxy=["127.0.0.1"]
            )
            for domain in ("Page", "Network", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
            self.call("Emulation.setEmulatedMedia", features=[scheme])
            size = {"width": self.width, "height": 900, "deviceScaleFactor": 1, "mobile": self.width < 600}
            self.call("Emulation.setDeviceMetricsOverride", **size)
            self.call("Page.navigate", url=self.address)
            while self.evaluate("document.readyState") != "complete":
                time.sleep(0.05)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "_socket"):
            with contextlib.suppress(OSError):
                self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=20)
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol; what the browser tells meanwhile is noted."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found
            self._note(message.get("method", ""), message.get("params", {}))

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press a key in the focused element."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"{condition} has not become true in {seconds} s"
            time.sleep(0.02)

    def choose_files(self, selector: str, *files: Path) -> None:
        """Choose files in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file) for file in files], nodeId=node)

    def point(self, selector: str, across: float = 0.5, click: bool = False, down: float = 0.5) -> None:
        """Move the mouse to an element, ``across`` of its width from its left, and click there if wanted."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = json.loads(self.evaluate(f"JSON.stringify(document.querySelector({selector!r}).getBoundingClientRect())"))
        place = {"x": box["left"] + across * box["width"], "y": box["top"] + down * box["height"]}
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            self.call("Input.dispatchMouseEvent", type=kind, button="left" if click else "none", clickCount=1, **place)

    def screenshot(self, most: int = 16000) -> bytes:
        """PNG of the page, from its top down to ``most`` pixels."""
        height = min(most, int(self.evaluate("document.documentElement.scrollHeight")))
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    def _note(self, method: str, told: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str(told["args"]))
        elif method == "Log.entryAdded":
            self.errors.append(str(told["entry"]["text"]))

    def _port(self) -> int:
        told = Path(self._profile.name) / "DevToolsActivePort"
        for _ in self._seconds(30):
            with contextlib.suppress(OSError, ValueError, IndexError):
                return int(told.read_text().splitlines()[0])
        raise TimeoutError("chromium does not say where it listens")

    def _seconds(self, most: float) -> Iterator[None]:
        end = time.monotonic() + most
        while time.monotonic() < end and self._process.poll() is None:
            yield
            time.sleep(0.05)


if __name__ == "__main__":
    wide = int(sys.argv[3]) if len(sys.argv) > 3 else 1280
    asked = sys.argv[1]
    with Page(asked if asked.startswith("http") else Path(asked), wide, dark="dark" in sys.argv[4:]) as shown:
        Path(sys.argv[2]).write_bytes(shown.screenshot())
