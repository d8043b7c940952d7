from __future__ import annotations

import pytest
import torch

from gate_lightning.backbones.specs import Adapters, PromptEmbeds
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.features.reading.text import TextCache
from tests.support.small_networks import build


@pytest.fixture
def backbone(monkeypatch: pytest.MonkeyPatch) -> UNetBackbone:
    made = build("one_repeat")
    made.asked = []  # type: ignore[assignment]
    encode = made.encode_text

    def counted(prompts: list[str], adapters: Adapters = ()) -> PromptEmbeds:
        made.asked.append(list(prompts))
        return encode(prompts, adapters)

    monkeypatch.setattr(made, "encode_text", counted)
    return made


def test_every_prompt_is_encoded_once_and_given_in_order(backbone: UNetBackbone) -> None:
    cache = TextCache()
    embeds = cache.encode(backbone, ["a photo", "a house", "a photo"])
    again = cache.encode(backbone, ["a house", "a circle"])
    assert backbone.asked == [["a photo", "a house"], ["a circle"]]
    assert torch.equal(embeds[0].hidden, embeds[2].hidden)
    assert torch.equal(embeds[1].hidden, again[0].hidden)
    torch.testing.assert_close(again[1].hidden, build("one_repeat").encode_text(["a circle"]).hidden)


def test_a_converted_backbone_is_asked_again(backbone: UNetBackbone) -> None:
    cache = TextCache()
    cache.encode(backbone, ["a photo"])
    assert cache.encode(backbone.to(torch.bfloat16), ["a photo"])[0].hidden.dtype == torch.bfloat16


def test_the_prompts_used_last_are_kept(backbone: UNetBackbone) -> None:
    cache = TextCache(capacity=2)
    for prompt in ("a", "b", "a", "c", "a", "b"):
        cache.encode(backbone, [prompt])
    assert backbone.asked == [["a"], ["b"], ["c"], ["b"]]
    assert len(cache.encode(backbone, ["d", "e", "f"])) == 3
