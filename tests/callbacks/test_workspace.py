"""The workspace: every panel is what wandb-workspaces takes, and names what runs log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gate_lightning.callbacks import workspace as module
from gate_lightning.callbacks.workspace import workspace, workspace_of
from gate_lightning.errors import ConfigError

pytest.importorskip("wandb_workspaces")


def sent(**settings: Any) -> dict[str, Any]:
    """What would be sent to the server."""
    plain: dict[str, Any] = json.loads(
        workspace_of("me", "mine", **settings)._to_model().model_dump_json(by_alias=True)
    )
    return plain


def panels(plain: dict[str, Any]) -> list[dict[str, Any]]:
    sections = plain["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel for section in sections for panel in section["panels"]]


def test_every_metric_image_and_table_has_a_panel() -> None:
    plain = sent()
    assert (plain["entity"], plain["project"]) == ("me", "mine")
    found = panels(plain)
    lines = [name for one in found if one["viewType"] == "Run History Line Plot" for name in one["config"]["metrics"]]
    media = [name for one in found if one["viewType"] == "Media Browser" for name in one["config"]["mediaKeys"]]
    text = json.dumps([one for one in found if one["viewType"] == "Weave"])
    assert sorted(lines) == sorted(key for keys in module.LINES.values() for key in keys)
    assert sorted(media) == sorted(key for keys in module.MEDIA.values() for key in keys)
    assert all(f'"{key}"' in text for keys in module.TABLES.values() for key in keys)


def test_runs_are_compared_by_their_settings_and_the_best_value() -> None:
    (parallel,) = [one for one in panels(sent(metric="val/loss", mode="min")) if "Parallel" in one["viewType"]]
    *settings, best = [column["accessor"] for column in parallel["config"]["columns"]]
    assert settings == [f"config:{name}.value" for name in module.SETTINGS]
    assert best == "summary:val/loss.min"


def test_saving_without_a_key_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(ConfigError, match=r"was not saved: .*wandb login.*, and network"):
        workspace(project="mine")
    with pytest.raises(ConfigError, match="mode"):
        workspace(mode="best")
