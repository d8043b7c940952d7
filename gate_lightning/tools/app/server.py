"""Server of the page: on the loopback interface, for browsers of this machine, without anything from elsewhere."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gate_lightning.errors import ConfigError
from gate_lightning.utils.console import HEADLINE

if TYPE_CHECKING:
    from gate_lightning.tools.app.following import VideoBench
    from gate_lightning.tools.app.workbench import Workbench

__all__ = ["HOST", "listening", "serve", "web_app"]

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
#: seconds that open connections get when the page is stopped
_GRACE = 1
#: a browser loads nothing but what this server gives, and shows the page in no other one
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:; frame-ancestors 'self'"
)


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """Context of a socket on the loopback interface, which nobody else can take.

    Args:
        port: 0 for any free one.

    Raises:
        ConfigError: the port is taken, or not for this user.
    """
    place = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just left is free
        try:
            place.bind((HOST, port))
            place.listen()
        except OSError as error:
            why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"is not free: {error.strerror}"
            raise ConfigError(
                f"tool.port={port} {why}; choose another one, or tool.port=0 for any that is free"
            ) from error
        yield place


def serve(workbench: Workbench, videos: VideoBench, place: socket.socket) -> None:
    """Serve the page until a signal ends it."""
    import uvicorn

    config = uvicorn.Config(
        web_app(workbench, videos),
        log_level="critical",  # connections that are open at the end are no error
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )
    log.info("open http://%s:%d in a browser of this machine; Ctrl-C ends it", *place.getsockname(), extra=HEADLINE)
    uvicorn.Server(config).run(sockets=[place])


def web_app(workbench: Workbench, videos: VideoBench) -> Any:
    """The page as an ASGI application."""
    # read when gradio is imported: no statistics, no check for a newer version; files in a folder that is ours
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(workbench.images.folder.resolve() / "dropped")
    import gradio
    from fastapi import FastAPI

    from gate_lightning.tools.app.page import STYLE, page, theme

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    outer = gradio.mount_gradio_app(
        outer,
        page(workbench, videos),
        path="/",
        server_name=HOST,
        footer_links=[],
        ssr_mode=False,
        theme=theme(),
        css=STYLE,
    )
    return _Guard(outer)


class _Guard:
    """Refuses requests that pages of other sites make, and tells browsers to load nothing from elsewhere.

    A site may have its name point to this machine, or have its pages send forms here.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        names = {
            urlsplit(f"//{headers.get('host', '')}").hostname,
            urlsplit(headers.get("origin", "//" + HOST)).hostname,
        }
        if not names <= {*_NAMES}:
            refused = PlainTextResponse("this page is for browsers of its own machine", status_code=403)
            await refused(scope, receive, send)
            return

        async def told(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.inner(scope, receive, told)
