"""The type of frozen weights follows the trainer and its GPU, and is written down; others are refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from gate_lightning.engine.checks.precision import tell_types
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.components import Components
from gate_lightning.engine.parts.library import load_backbone
from gate_lightning.errors import ConfigError
from tests.support.composition import composed

XL = "+backbone@backbones.xl=sdxl"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU that computes bfloat16 or not; None: no GPU."""

    def there(bfloat16: bool | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bfloat16 is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fast 100" if bfloat16 else "Old 4")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)

    return there


def types(*overrides: str) -> tuple[str, str]:
    found = runs.resolve(composed(XL, "backbones.xl.weights=random", *overrides))
    return found.backbone.dtype, found.backbones.xl.dtype


@pytest.mark.parametrize(
    ("bfloat16", "overrides", "expected"),
    [
        (True, ["trainer=gpu"], "bfloat16"),
        (True, ["trainer=ddp"], "bfloat16"),
        (True, ["trainer.precision=bf16-mixed"], "bfloat16"),
        (True, ["trainer=gpu", "trainer.precision=16-mixed"], "float16"),
        (True, [], "float32"),
        (True, ["trainer=cpu", "trainer.precision=bf16-mixed"], "float32"),
        (False, ["trainer=gpu"], "float32"),
        (False, ["trainer=gpu", "trainer.precision=16-mixed"], "float16"),
        (None, ["trainer=gpu"], "float32"),
    ],
)
def test_the_type_follows_the_trainer(card: Any, bfloat16: bool | None, overrides: list[str], expected: str) -> None:
    card(bfloat16)
    assert types(*overrides) == (expected, expected)


def test_a_type_that_is_named_stays(card: Any) -> None:
    card(True)
    assert types("trainer=gpu", "backbone.dtype=float32") == ("float32", "bfloat16")


@pytest.mark.parametrize(
    "experiment", ["tiny/autoencoder", "tiny/unet", "tiny/controlnet", "tiny/lora", "cleandift/tiny"]
)
def test_trained_backbones_have_weights_in_float32(card: Any, experiment: str) -> None:
    card(True)
    overrides = ["trainer.accelerator=gpu", "trainer.precision=bf16-mixed", "backbone=tiny"]
    found = runs.resolve(composed(f"experiment={experiment}", *overrides))
    assert found.trainer.precision == "bf16-mixed"
    assert found.backbone.dtype == "float32"


def test_what_a_run_reads_stands_in_its_folder(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    card(True)
    config = composed("trainer=gpu")
    resolved = runs.resolve(config)
    with caplog.at_level(logging.INFO):
        tell_types(config, resolved)
    assert "backbone.dtype=bfloat16" in caplog.text
    assert "on Fast 100" in caplog.text
    assert "tf32=false" in caplog.text
    # evaluated where there is no GPU: what was recorded, and what is named there
    again = composed("trainer=cpu")
    assert runs.patch(resolved, runs.resolve(again), ["trainer=cpu"]).backbone.dtype == "bfloat16"
    named = runs.resolve(composed("backbone.dtype=float32"))
    assert runs.patch(resolved, named, ["backbone.dtype=float32"]).backbone.dtype == "float32"


def test_an_old_card_is_told_what_is_for_it(card: Any, caplog: pytest.LogCaptureFixture) -> None:
    card(False)
    config = composed("trainer=gpu")
    with caplog.at_level(logging.INFO):
        tell_types(config, runs.resolve(config))
    assert "Old 4 has no bfloat16; trainer.precision=16-mixed" in caplog.text


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_precisions_that_convert_frozen_weights_are_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match=rf"trainer\.precision={precision} converts all weights.*backbone\.dtype"):
        runs.resolve(composed(f"trainer.precision={precision}"))


@pytest.mark.parametrize("precision", ["bf16mixed", "mixed", "8"])
def test_an_unknown_precision_is_told_of_those_that_are_taken(precision: str) -> None:
    with pytest.raises(ConfigError) as refused:
        runs.resolve(composed(f"trainer.precision={precision}"))
    told = str(refused.value)
    assert told.startswith(f"trainer.precision={precision}: ") and "-true" not in told.replace("32-true", "")
    assert told.endswith("expected one of 32-true, bf16-mixed, 16-mixed")


@pytest.mark.parametrize("precision", ["32", "16", "bf16", "null"])
def test_lightning_s_short_names_are_taken(precision: str) -> None:
    assert runs.resolve(composed(f"trainer.precision={precision}")).trainer.precision in (32, 16, "bf16", None)


@pytest.mark.parametrize("key", ["backbone", "backbones.xl"])
def test_an_unknown_type_is_told_of_all_that_are_taken(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}\.dtype='int8': .*float32, bfloat16, float16, auto$"):
        types(f"{key}.dtype=int8")


def test_libraries_get_float32_and_leave_tf32_alone() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    assert load_backbone("tiny").dtype == torch.float32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("on", [True, False])
def test_tf32_is_what_the_configuration_says(on: bool) -> None:
    Components(runs.resolve(composed(f"tf32={str(on).lower()}")), "")
    assert torch.backends.cuda.matmul.allow_tf32 is on
    assert torch.backends.cudnn.allow_tf32 is on


def test_tf32_is_a_switch() -> None:
    with pytest.raises(ConfigError, match=r"tf32='high': expected true or false"):
        runs.resolve(composed("tf32=high"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer=gpu"], True),
        (["trainer=gpu", "trainer.precision=16-mixed"], True),
        (["trainer=gpu", "backbone.dtype=float32"], False),
        (["trainer.accelerator=gpu"], False),
        (["trainer=cpu", "backbone.dtype=bfloat16"], False),
        (["trainer=gpu", "backbone.channels_last=false"], False),
        (["trainer=cpu", "backbone.channels_last=true"], True),
    ],
)
def test_weights_of_16_bits_are_channels_last_on_a_gpu(card: Any, overrides: list[str], expected: bool) -> None:
    card(True)
    assert runs.resolve(composed(*overrides)).backbone.channels_last is expected


@pytest.mark.parametrize("value", ["yes", "1", "null"])
def test_an_unknown_memory_format_is_told_of_those_that_are_taken(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^backbone\.channels_last=.*: expected true, false or auto$"):
        runs.resolve(composed(f"backbone.channels_last={value}"))
