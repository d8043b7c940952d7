"""Secrets are refused on the command line, and written nowhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gate_lightning.engine import cli
from gate_lightning.engine.checks.redaction import HideSecrets, hidden_keys, redacted, redacted_override, refuse_secrets
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.errors import ConfigError
from tests.support.composition import SMALL

SECRET = "s3cr3t-of-mine"
TYPED = (
    *(f"+logger.mine.api_key={SECRET}", f"++hydra.job.env_set.WANDB_API_KEY={SECRET}", f"+a.password='{SECRET}'"),
    *(f"+logger.mine={{_target_: x, token: {SECRET}}}", f"+a={{b: {{hf_token: {SECRET}}}}}", f"+a.apikey=x,{SECRET}"),
    *(f"dataset.root=https://me:{SECRET}@host/x", f"+client_secret=[{SECRET}]", f"+aws_secret_access_key={SECRET}"),
    *("+note=hf_abcdefghijklmnopqrstuvwxyz", "+a.password=1234", f"+a={{Authorization: 'Bearer {SECRET}'}}"),
)
HARMLESS = (
    *("+logger.mine.api_key=${oc.env:KEY}", "+a={token: '${oc.env:KEY}'}", "+a.password=null", "+a.api_key="),
    *("task.tokens=4", "x.pad_token=<pad>", "+secrets_of_style=1", "run=/secret/token/x", "seed=0,1", "-m"),
    *("technique.prompt.text='the secret: a garden'", "+a.max_new_tokens=5", "dataset.root=https://host:80/x"),
)


@pytest.mark.parametrize("argument", TYPED)
def test_a_typed_secret_is_refused_before_anything_is_written(
    argument: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", argument, f"paths.outputs={tmp_path}"])
    assert cli.train_main() == 2
    said = capfd.readouterr().err
    assert "environment variable" in said
    assert SECRET not in said
    assert list(tmp_path.iterdir()) == []
    assert SECRET not in redacted_override(argument)


@pytest.mark.parametrize("argument", HARMLESS)
def test_what_gives_nothing_away_is_left_alone(argument: str) -> None:
    refuse_secrets([argument])
    assert redacted_override(argument) == argument


def test_nested_values_are_redacted() -> None:
    given = {"a": [{"api_key": SECRET, "url": f"http://u:{SECRET}@h/x", "pad_token": "p", "token": None}], "lr": 1.0}
    assert redacted(given) == {
        "a": [{"api_key": "***", "url": "http://***@h/x", "pad_token": "p", "token": None}],
        "lr": 1.0,
    }
    assert hidden_keys(redacted(given)) == ["a[0].api_key", "a[0].url"]


def test_asterisks_in_a_text_hide_nothing() -> None:
    """A run with such a prompt was trained and could then be neither evaluated nor resumed."""
    given = {"text": "a hotel of *** stars", "other": "***", "note": "see hf_abcdefghijklmnopqrstuvwxyz"}
    assert redacted(given) == {**given, "note": "see hf_***"}
    assert hidden_keys(redacted(given)) == ["note"]


def files_with(text: str, folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.thorough
def test_a_sweep_with_secrets_from_files_and_the_environment_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a user's own configuration file, of its sweep, and of an environment variable that the command line names."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(
        "# @package _global_\n"
        f"logger: {{mine: {{api_key: {SECRET}-1, url: 'https://me:{SECRET}-2@host/'}}}}\n"
        f"hydra:\n  sweeper: {{params: {{+logger.other.token: {SECRET}-3}}}}\n"
        f"  job: {{env_set: {{X_API_TOKEN: {SECRET}-4}}}}\n"
    )
    monkeypatch.setenv("KEY_OF_MINE", f"{SECRET}-5")
    monkeypatch.setattr(cli, "_sweeps", {})
    words = ("+logger.third.password=${oc.env:KEY_OF_MINE}", "experiment=mine", f"hydra.sweep.dir={tmp_path / 'out'}")
    path = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    small = [word for word in SMALL if not word.startswith("trainer.max")]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *small, "trainer.max_steps=1", "techniques=none", path, *words])
    assert cli.train_main() == 0
    written = tmp_path / "out"
    assert json.loads((written / "0/status.json").read_text())["status"] == "done"
    assert files_with(SECRET, written) == []
    assert "multirun.yaml" in {item.name for item in written.iterdir()}
    saved = runs.read_config(written / "0").logger
    assert (saved.mine.api_key, saved.other.token, saved.third.password) == ("***", "***", "***")
    with pytest.raises(ConfigError, match=r"logger\.mine\.api_key.*\*\*\* for a secret.*oc\.env"):
        runs.check_patched(runs.read_config(written / "0"), written / "0", None, training=True)
    runs.check_patched(runs.read_config(written / "0"), written / "0", None)  # an evaluation builds no logger


def test_changes_of_a_secret_are_not_told() -> None:
    one, two = (OmegaConf.create({"a": {"api_key": key}, "b": number}) for key, number in (("***", 1), (SECRET, 2)))
    assert runs.changed_keys(one, two) == ["b: 1 → 2"]


def test_interpolations_stay_in_the_file_of_a_sweep() -> None:
    config = OmegaConf.create({"a": {"api_key": "${oc.env:KEY_OF_MINE}", "token": SECRET}})
    HideSecrets().on_multirun_start(config)
    assert OmegaConf.to_container(config) == {"a": {"api_key": "${oc.env:KEY_OF_MINE}", "token": "***"}}
