"""Grounding of prompts against attention that is read by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.metrics.content_shift.grounding import attention_concentration, attention_peak
from gate_lightning.structures import ImageBatch
from gate_lightning.tasks.content_shift.grounding import PromptGrounding
from gate_lightning.tasks.content_shift.laplacian import LaplacianScore
from gate_lightning.tasks.content_shift.measure import Measure
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.study import ShiftResults, measure_content_shift
from gate_lightning.techniques.guidance import Guidance
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build, conditions, random_images

LAYER = "up-level2-upsampler-out"
CAPTIONS = ("a photo of a red circle", "a house", "of the")
IMAGES, KNOWN = random_images(3, 32, 32), conditions(3, captions=CAPTIONS)
#: tokens of the content words; 0 is the begin mark
TOKENS = ((5, 6), (2,), ())


@pytest.fixture(scope="module")
def backbone() -> Any:
    return build("tiny")


def measured(backbone: Any, branches: list[Branch], measures: dict[str, Measure]) -> ShiftResults:
    sample = [ImageBatch(IMAGES[at : at + 2], KNOWN[slice(at, at + 2)]) for at in (0, 2)]
    return measure_content_shift(ShiftReader({"": backbone}, branches, (200,), noises=(2,)), sample, measures)


@pytest.mark.thorough
def test_figures_are_those_of_attention_read_by_hand(backbone: Any) -> None:
    prompt = Branch("prompt", 50, (LAYER,), (Prompt(),))
    guided = Branch("guided", 50, (LAYER,), (Prompt(), Guidance(5.0)))
    measures: dict[str, Measure] = {name: PromptGrounding(name) for name in ("concentration", "peak")}
    found = measured(backbone, [prompt, guided], measures)
    assert {key[0] for key in found.statistics["peak"]} == {
        *("prompt", "guided", "prompt (shuffled)", "guided (shuffled)")  # the plain prompt names nothing
    }
    read = FeatureExtractor(backbone, [replace(prompt, timestep=200, layers=("attn-up-cross",))])(IMAGES, KNOWN)
    maps = read["prompt"]["attn-up-cross"].unflatten(1, (-1, 40)).mean(dim=1)
    for name in ("concentration", "peak"):
        sums = []
        for row, tokens in enumerate(TOKENS):
            own = maps[row, list(tokens)]
            values = attention_concentration(own) if name == "concentration" else attention_peak(own, maps[row, 0])
            sums.append(float(values.sum()))
        statistic = found.statistics[name]["prompt", 200, "attn-up-cross"]
        assert statistic.values[:, 1].tolist() == [2, 1, 0]
        torch.testing.assert_close(statistic.values[:, 0], torch.tensor(sums).double(), rtol=1e-4, atol=1e-6)
        assert statistic.value == pytest.approx(sum(sums) / 3, rel=1e-4)  # of three words
        # the attention of a guided branch is that under its prompt
        assert found.statistics[name]["guided", 200, "attn-up-cross"].value == pytest.approx(statistic.value, rel=1e-4)
        shuffled = found.statistics[name]["prompt (shuffled)", 200, "attn-up-cross"]
        assert shuffled.values[:, 1].tolist() == [1, 0, 2]


def test_words_have_the_positions_of_their_tokens(backbone: Any, tmp_path: Path) -> None:
    assert backbone.words_of("a photo of a red circle")[4:] == [("red", (5,)), ("circle", (6,))]
    ((word, tokens),) = backbone.words_of("zebra")  # not in the small vocabulary: several tokens
    assert word == "zebra"
    assert tokens == tuple(range(1, len(tokens) + 1))
    assert len(tokens) > 1
    long = backbone.words_of(" ".join(["house"] * 50))
    assert [tokens for _, tokens in long] == [(at,) for at in (*range(1, 39), *range(41, 53))]
    assert backbone.words_of("") == []
    save_file({"<thing>": torch.randn(2, 128)}, tmp_path / "thing.safetensors")
    backbone.require_adapter("thing", str(tmp_path / "thing.safetensors"), "tokens")
    assert backbone.words_of("a <thing> house", (("thing", 1.0),)) == [
        ("a", (1,)), ("learned", (2,)), ("learned", (3,)), ("house", (4,)),
    ]  # fmt: skip


def test_what_reads_no_words_is_told_of(backbone: Any) -> None:
    measures: dict[str, Measure] = {"grounding": PromptGrounding(), "score": LaplacianScore("own")}
    found = measured(build("pixels"), [Branch("none", 50, ("pixels-stride4",))], measures)
    assert found.left_out["grounding"] == "pixels: no words of a prompt, or no cross-attention attn-up-cross"
    found = measured(backbone, [Branch("none", 50, (LAYER,))], {**measures, "typo": PromptGrounding(layer="attn")})
    assert "no cross-attention attn" in found.left_out["typo"]
    assert "no prompt has a word that names something" in found.left_out["grounding"]
    with pytest.raises(ConfigError, match="reading='share'"):
        PromptGrounding("share")
