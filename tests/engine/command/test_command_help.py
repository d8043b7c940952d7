"""``--help``: everything that conf/ has, in words that stand there."""

from __future__ import annotations

import re
import sys

import pytest

from gate_lightning.engine import cli
from gate_lightning.engine.command.command_help import described, help_text
from gate_lightning.errors import ConfigError
from tests.support.paths import REPOSITORY

CONF = REPOSITORY / "conf"
CHOICES = [
    path
    for path in sorted(CONF.glob("*/**/*.yaml"))
    if not any(part.startswith("_") for part in path.relative_to(CONF).parts) and path.parent.name != "local"
]


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_choice_says_what_it_is(path: object) -> None:
    assert described(path)  # type: ignore[arg-type]


def test_help_of_train_names_all_groups_and_keys() -> None:
    text = help_text("train", ["--help"])
    lines = [line.split()[0] for line in text.splitlines() if line.strip()]
    groups = {path.name for path in CONF.iterdir() if path.is_dir()} - {"tool"}
    assert groups <= {line.replace(".…", "=").split("=")[0] for line in lines}
    assert "the frozen model: tiny sd15" in text
    assert {"timestep=50", "monitor=val/mIoU", "seed=0"} <= set(lines)
    assert "--cfg job" in text
    assert "_adm" not in text


def test_help_of_eval_names_all_tools_with_a_line_each() -> None:
    text = help_text("eval", ["--help"])
    for path in sorted(CONF.glob("tool/[!_]*.yaml")):
        line = next((line for line in text.splitlines() if line.strip().startswith(f"tool={path.stem} ")), "")
        assert len(line.split()) > 3 or path.stem == "none"


def test_help_of_a_group_names_its_choices_but_not_the_private_ones() -> None:
    text = help_text("train", ["--help", "backbone", "experiment"])
    assert re.search(r"\n  sd15 +Stable Diffusion 1.5: GATE's backbone", text)
    assert "gate/ade20k " in text
    assert "_stable_diffusion" not in text
    assert "_base/gate" not in text.replace("(_base/", "").replace(" _base/", "")
    with pytest.raises(ConfigError, match="did you mean backbone"):
        help_text("train", ["--help", "bakbone"])


@pytest.mark.parametrize("width", ["60", "80", "140"])
def test_help_keeps_to_the_width(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    text = help_text("train", ["--help"])
    prose, _, _ = text.partition("\nMore")
    commands = [line for line in prose.splitlines() if "python" not in line and str(CONF) not in line]
    assert max(map(len, commands)) <= int(width)


def test_help_is_printed_and_leaves_with_success(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eval.py", "--help"])
    assert cli.eval_main() == 0
    assert capfd.readouterr().out.startswith("Usage: python eval.py ")
