"""``tool=app``: a page on which points of images are clicked and matched, and objects followed through videos."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from gate_lightning.errors import ConfigError
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.tools.app.following import VideoBench
from gate_lightning.tools.app.kept_images import KeptImages
from gate_lightning.tools.app.server import listening, serve
from gate_lightning.tools.app.workbench import Workbench
from gate_lightning.tools.matching import PartsOf
from gate_lightning.utils.checks import number, whole_number
from gate_lightning.utils.units import GIB

__all__ = ["app"]


def app(
    parts_of: PartsOf,
    output: str | Path,
    read_out: ReadOut,
    source: str | Path | None = None,
    targets: Sequence[str | Path] = (),
    frames: str | Path | None = None,
    resize: str = "square",
    size: int | None = None,
    device: str = "auto",
    port: int = 7860,
    memory_gib: float = 1.0,
) -> None:
    """Serve the page to browsers of this machine, until it is stopped.

    Args:
        parts_of: makes extractor and amalgamation of the command line, and of changed settings.
        output: folder; ``pictures/`` and ``videos/`` in it keep what is dropped on the page, the latter results too.
        read_out: rule by which matches are read off.
        source: image that is clicked first; None for generated examples.
        targets: images that are searched first.
        frames: folder of frames, or video file, of the video tab; None for a generated one.
        resize, size: how the backbone sees images, see `Sizing`; None for its native size.
        device: "auto" (a GPU where there is one) or a torch device.
        port: of the loopback interface; 0 for any free one.
        memory_gib: memory for features of images that were read.

    Raises:
        ConfigError: gradio is not installed, the port is taken, or settings out of range.
        GateError: the backbone cannot be loaded, or an image is broken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("tool=app needs gradio, which is not installed: pip install -e '.[app]'")
    limit = int(number(memory_gib, "tool.memory_gib", 0.0) * GIB)
    if source is None and targets:
        raise ConfigError("targets are searched for points of a source; name it: source=<image>")
    given = [] if source is None else [source, *targets]
    with listening(whole_number(port, "tool.port", 0, 65535)) as place:
        folder, here = Path(output).resolve(), Path.cwd()
        folder = folder.relative_to(here) if folder.is_relative_to(here) else folder  # commands are typed here
        images = KeptImages(folder / "pictures")
        workbench = Workbench(parts_of, read_out, resize, size, device, images, limit, given)
        serve(workbench, VideoBench(workbench, folder / "videos", frames), place)
