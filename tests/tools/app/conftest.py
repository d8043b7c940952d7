"""A page's workbench as `eval.py tool=app` makes it, with the embedded model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.feature_parts import ComposedParts
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.tools.app.following import VideoBench
from gate_lightning.tools.app.kept_images import KeptImages
from gate_lightning.tools.app.workbench import Workbench
from tests.support.composition import composed

#: what is typed behind `python eval.py`
COMMAND = ("tool=app", "tool.device=cpu")


@pytest.fixture(scope="package")
def make_workbench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workbench]:
    def make(*overrides: str, given: tuple[Path, ...] = (), limit: int = 10**9) -> Workbench:
        line = (*COMMAND, *overrides)
        parts = ComposedParts(runs.resolve(composed(*line, name="eval")), line)
        folder = KeptImages(tmp_path_factory.mktemp("app") / "pictures")
        return Workbench(parts, ReadOut(), "square", None, "cpu", folder, limit, given)

    return make


@pytest.fixture(scope="package")
def workbench(make_workbench: Callable[..., Workbench]) -> Workbench:
    return make_workbench()


@pytest.fixture(scope="package")
def videos(workbench: Workbench) -> VideoBench:
    return VideoBench(workbench, workbench.images.folder.with_name("videos"))
