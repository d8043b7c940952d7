"""Keys that are made of others follow them when a run is resumed or evaluated with a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.references import follow, references_in, save_references
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.errors import ConfigError
from tests.support.composition import SMALL, composed

MADE: dict[str, Any] = {
    "seed": 0,
    "captions": "fine",
    "monitor": "val/a",
    "dataset": {"captions": "${captions}", "seed": "${seed}", "size": 4, "tiles": {"size": "${dataset.size}"}},
    "head": {"decode": {"norm": "BN", "size": "${..auxiliary.norm}"}, "auxiliary": {"norm": "${..decode.norm}"}},
    "callbacks": {"checkpoint": {"monitor": "${monitor}"}, "stop": {"monitor": "${callbacks.checkpoint.monitor}"}},
    "task": {"root": "${oc.select:dataset.root,null}", "note": "run ${seed}"},
    "hydra": {"run": "${now:%Y}"},
}


def test_references_are_found_at_any_level() -> None:
    assert references_in(OmegaConf.create(MADE)) == {
        "captions": ["dataset.captions"],
        "seed": ["dataset.seed"],
        "dataset.size": ["dataset.tiles.size"],
        "head.auxiliary.norm": ["head.decode.size"],
        "head.decode.norm": ["head.auxiliary.norm"],
        "monitor": ["callbacks.checkpoint.monitor"],
        "callbacks.checkpoint.monitor": ["callbacks.stop.monitor"],
        "dataset.root": ["task.root"],
    }


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["captions=coarse"], {"captions": "coarse", "dataset.captions": "coarse"}),
        (["captions=coarse", "dataset.captions=empty"], {"captions": "coarse", "dataset.captions": "empty"}),
        (["monitor=val/b"], {"callbacks.checkpoint.monitor": "val/b", "callbacks.stop.monitor": "val/b"}),
        (["head.decode.norm=SyncBN"], {"head.auxiliary.norm": "SyncBN", "head.decode.size": "SyncBN"}),
        (["dataset.size=8"], {"dataset.tiles.size": 9}),  # had been given a value of its own
        (["seed=1"], {"seed": 1, "dataset.seed": 0}),
    ],
)
def test_copies_follow_unless_they_have_a_value_of_their_own(
    overrides: list[str], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = OmegaConf.create({key: value for key, value in MADE.items() if key != "hydra"})
    save_references(config, tmp_path)
    saved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]
    saved.dataset.tiles.size = 9
    fresh = OmegaConf.merge(saved, OmegaConf.from_dotlist(overrides))
    found = follow(saved, runs.patch(saved, fresh, overrides), overrides, tmp_path)  # type: ignore[arg-type]
    assert {key: OmegaConf.select(found, key) for key in expected} == expected
    assert OmegaConf.to_container(follow(saved, saved, [], tmp_path)) == OmegaConf.to_container(saved)


@pytest.mark.thorough
def test_a_run_is_resumed_with_another_metric_and_evaluated_with_other_captions(tmp_path: Path, caplog: Any) -> None:
    given = [*SMALL, "monitor=val/none", "techniques=none", "layers=[up-level2-upsampler-out]", "head=linear"]
    given.remove("head.decode.channels=16")
    with pytest.raises(ConfigError, match="monitor=val/none: no such metric"):
        train(composed(*given), given, tmp_path / "run")
    resumed = [f"resume={tmp_path / 'run'}", "monitor=val/mIoU", "allow_changes=true"]
    train(composed(*resumed), resumed, tmp_path / "run")
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    shuffled = [f"run={tmp_path / 'run'}", "captions=shuffled", f"output={tmp_path / 'out'}", "logger=none"]
    evaluate(composed(*shuffled, name="eval"), shuffled, tmp_path / "out")
    assert "evaluated with a change: dataset.captions: 'fine' → 'shuffled'" in caplog.text
