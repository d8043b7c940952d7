"""Errors of the public functions: of the package, of what was given, and in the words of Python's callers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from gate_lightning import (
    Branch,
    Conditions,
    FeatureExtractor,
    IPAdapter,
    LoRA,
    MemoryCache,
    PooledExtractor,
    load_backbone,
)
from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import GateError

LAYER = "up-level1-upsampler-out"


@cache
def backbone() -> Backbone:
    return load_backbone("tiny")


@cache
def extractor() -> FeatureExtractor:
    return FeatureExtractor(backbone(), [Branch("plain", 50, (LAYER,), prompt="a photo")])


IN_PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "controlnet": (
        lambda: backbone().require_controlnet("depth"),
        "load_backbone(…, controlnets={'depth': <folder>}) (++backbone.controlnets.depth=<folder>)",
    ),
    "lora": (
        lambda: LoRA("mine", weights="no.safetensors").prepare(backbone()),
        "LoRA('mine', weights=<file>) (technique.lora.weights.mine=<file>)",
    ),
    "ip_adapter": (lambda: IPAdapter().prepare(backbone()), "IPAdapter(weights=<file>, image_encoder=<folder>)"),
    "categories": (
        lambda: Branch("plain", 50, LAYER, prompt="a {category}").prompts(Conditions(("a",))),
        "the prompt technique: Prompt(<text>) (techniques=[prompt] technique.prompt.text=<text>)",
    ),
    "pooling": (lambda: PooledExtractor(extractor(), 0), "pooling=0: expected a whole number from 1"),
    "memory": (lambda: MemoryCache(extractor(), 0), "memory_gib=0: expected a number of GiB above 0"),
    "endless memory": (lambda: MemoryCache(extractor(), float("inf")), "memory_gib=inf: expected"),
    "place": (lambda: MemoryCache(extractor(), 1, place="gpu"), "place='gpu': expected one of card, host"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", IN_PYTHON)
def test_messages_name_the_argument_first(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, expected = IN_PYTHON[case]
    with pytest.raises(GateError) as caught:
        call()
    message = str(caught.value)
    assert expected in message
    # a key comes behind the argument that it sets
    assert not message.startswith(("cache.", "features.", "technique."))
