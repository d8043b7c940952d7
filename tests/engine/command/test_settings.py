"""Settings that differ from the defaults, as they are written beside a run."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from gate_lightning.engine.command import settings
from gate_lightning.engine.command.settings import save_settings
from gate_lightning.engine.folder import run_folder as runs
from tests.support.composition import composed


def differences(folder: Path, *overrides: str) -> dict[str, tuple[object, ...]]:
    save_settings(runs.resolve(composed(*overrides)), folder)
    found = json.loads((folder / "settings.json").read_text())
    return {one["key"]: (one.get("default", "absent"), one["value"]) for one in found["differences"]}


def test_defaults_differ_in_nothing(tmp_path: Path) -> None:
    assert differences(tmp_path, "~local") == {}
    found = json.loads((tmp_path / "settings.json").read_text())
    assert {key: found[key] for key in ("task", "monitor", "mode", "seed")} == {
        "task": "SegmentationTask",
        "monitor": "val/mIoU",
        "mode": "max",
        "seed": 0,
    }


def test_what_is_typed_and_what_follows_from_it_differs(tmp_path: Path) -> None:
    found = differences(
        tmp_path, "~local", "seed=3", "head=linear", "+note=x", "layers=[a,b]", "paths.outputs=elsewhere"
    )
    assert found["seed"] == (0, 3)
    assert found["dataset.seed"] == (0, 3)
    assert found["layers"] == ("gate_segmentation", ["a", "b"])
    assert found["note"] == ("absent", "x")
    assert found["head.decode._target_"][1] == "gate_lightning.heads.linear.LinearHead"
    assert not [key for key in found if key.startswith("paths")]


def test_secrets_are_left_out(tmp_path: Path) -> None:
    config = runs.resolve(composed("~local"))
    OmegaConf.update(config, "logger.mine.api_key", "very secret", force_add=True)
    save_settings(config, tmp_path)
    text = (tmp_path / "settings.json").read_text()
    assert "logger.mine.api_key" in text
    assert "very secret" not in text


def test_the_hydra_of_the_command_line_stays() -> None:
    settings._defaults.cache_clear()
    before, own = GlobalHydra.instance().hydra, object()
    GlobalHydra.instance().hydra = own  # type: ignore[assignment]
    try:
        settings._defaults()
        assert GlobalHydra.instance().hydra is own
    finally:
        GlobalHydra.instance().hydra = before
