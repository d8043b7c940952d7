"""One self-contained HTML file from a template: nothing is loaded from anywhere, and no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from gate_lightning.errors import ConfigError
from gate_lightning.tools.report import charts, words
from gate_lightning.utils.files import write_atomically

__all__ = ["INSTALL", "write_page"]

INSTALL = "pip install 'jinja2>=3.1'"
_TEMPLATES = Path(__file__).parent / "templates"


def write_page(template: str, file: Path, context: dict[str, Any]) -> None:
    """Write a page made of a template.

    The page's policy lets a browser load nothing and run only the script that is in the template: a name that became
    markup, against all care, could do nothing.

    Args:
        template: file in ``templates/``.
        file: HTML file; its folder is made.
        context: what the template shows.

    Raises:
        ConfigError: jinja2 is not installed.
        CacheError: the file cannot be written.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ConfigError(f"reports need jinja2, which is not installed: {INSTALL}") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"shown": words.shown, "explained": words.explained, "tail_of": words.tail_of}
    environment.globals |= {"ticks": charts.ticks, "charts": charts}
    script = (_TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    made = {"script": script, "digest": digest, "style": style, **context}
    # surrogates of file names that are no UTF-8 are no characters
    write_atomically(file, environment.get_template(template).render(made).encode("utf-8", "replace"))
