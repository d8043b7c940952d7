"""Where prompts come from: a text, the category, a caption file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gate_lightning.data.card import DatasetCard
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.config.branches import build_branches
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build, conditions, random_images


def told(prompt: Prompt, given: Conditions) -> tuple[str, ...]:
    count = len(given)
    return prompt.apply(Conditioning(prompts=("?",) * count), random_images(count), given, build("pixels")).prompts


@pytest.fixture
def captions(tmp_path: Path) -> str:
    path = tmp_path / "captions.jsonl"
    lines = [{"image": "train/a.jpg", "caption": "a house"}, {"image": "train/b.jpg", "caption": "a tree"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_category_fills_the_template() -> None:
    prompt = Prompt(template="a photo of a {category}, {category}")
    assert told(prompt, conditions(2, categories=("cat", "dog"))) == (
        "a photo of a cat, cat",
        "a photo of a dog, dog",
    )
    with pytest.raises(DataError, match=r"names the category.*have none.*one text for all"):
        told(prompt, conditions(1))
    assert told(Prompt(fallback="a photo", template="{category}"), conditions(1)) == ("a photo",)


def test_a_card_may_name_the_category_in_the_prompt_of_the_plain_branch() -> None:
    card = DatasetCard("animals", prompt_simple="a photo of a {category}", prompt_fine="animals")
    (plain,) = build_branches("none", card=card)
    assert plain.prompts(conditions(2, categories=("cat", "dog"))) == ("a photo of a cat", "a photo of a dog")
    with pytest.raises(DataError, match=r"branch 'none': the prompt .* names the category, but these images have none"):
        plain.prompts(conditions(1))
    (steered,) = build_branches("prompt", card=card)
    assert steered.prompts(conditions(1)) == ("a photo of a {category}",)  # the technique decides
    simple = Prompt(source="simple").bound(card, 0)
    assert told(simple, conditions(1, categories=("cow",))) == ("a photo of a cow",)


def test_the_plain_branch_reads_each_image_under_the_prompt_of_its_category() -> None:
    backbone, images = build("tiny"), random_images(2)
    card = DatasetCard("kinds", prompt_simple="a photo of a {category}")

    def read(card: DatasetCard, **given: tuple[str, ...]) -> torch.Tensor:
        branches = build_branches("none", card=card, layers=["up-level1-upsampler-out"])
        return FeatureExtractor(backbone, branches)(images, conditions(2, **given))["none"]["up-level1-upsampler-out"]

    both = read(card, categories=("horse", "car"))
    for index, kind in enumerate(("horse", "car")):
        alone = read(DatasetCard("one", prompt_simple=f"a photo of a {kind}"))
        torch.testing.assert_close(both[index], alone[index], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(both[1 - index], alone[1 - index], atol=1e-3)


@pytest.mark.parametrize("template", ["a photo of a %s", "a {kategory}", "{}", "{category", "{category} {0}"])
def test_a_template_names_the_category_and_nothing_else(template: str) -> None:
    with pytest.raises(ConfigError, match="prompt template"):
        Prompt(template=template)


def test_every_image_is_told_its_entry_of_the_file(captions: str) -> None:
    prompt = Prompt(file=captions)
    # the captions of the data set itself do not count
    given = Conditions(("images/train/b.jpg", "images/train/a.jpg"), captions=("x", "y"))
    assert told(prompt, given) == ("a tree", "a house")


def test_a_image_without_entry_is_refused_by_name_unless_there_is_a_fallback(captions: str) -> None:
    given = Conditions(("images/train/a.jpg", "images/train/bb.jpg", "images/train/c.jpg"))
    refused = r"no caption for 'images/train/bb\.jpg' \(2 of 3 .*nearest.*'train/b\.jpg'"
    with pytest.raises(DataError, match=refused):
        told(Prompt(file=captions), given)
    with pytest.raises(DataError, match=refused):
        Prompt(file=captions).check_images(given.sample_ids)
    assert told(Prompt(file=captions, fallback="a photo"), given) == ("a house", "a photo", "a photo")
    Prompt(file=captions, fallback="a photo").check_images(given.sample_ids)


def test_the_description_follows_the_captions_not_the_path(captions: str, tmp_path: Path) -> None:
    before = Prompt(file=captions).description
    same = tmp_path / "same.json"
    same.write_text(json.dumps({"train/b.jpg": "a tree", "train/a.jpg": "a house"}))
    assert Prompt(file=str(same)).description == before
    same.write_text(json.dumps({"train/b.jpg": "a bush", "train/a.jpg": "a house"}))
    assert Prompt(file=str(same)).description != before


def test_one_source_only(captions: str) -> None:
    with pytest.raises(ConfigError, match=r"text='x' and file=.*leave out all but one"):
        Prompt("x", file=captions)


def test_a_learned_prompt_takes_the_place_of_text_and_learned_tokens_go_into_it(tmp_path: Path) -> None:
    backbone = build("tiny")
    learned, tokens = tmp_path / "whole.v1.safetensors", tmp_path / "style.safetensors"
    generator = torch.Generator().manual_seed(0)
    width = backbone.encode_text(["x"]).hidden.shape[-1]
    embeds = torch.randn(5, width, generator=generator)
    save_file({"prompt": embeds}, learned)
    save_file({"<style>": torch.randn(2, width, generator=generator)}, tokens)
    whole, styled = Prompt(embedding=str(learned)), Prompt("a <style> house", tokens=(str(tokens),))
    encoded = {}
    for prompt in (whole, styled, Prompt("a <style> house")):
        prompt.prepare(backbone)
        made = prompt.apply(Conditioning(prompts=("?",)), random_images(1), conditions(1), backbone)
        encoded[prompt] = backbone.encode_text(made.prompts, backbone.text_adapters(made.adapters)).hidden
    assert torch.equal(encoded[whole][0], embeds)
    assert not torch.allclose(encoded[styled], encoded[Prompt("a <style> house")])
    assert whole.description["learned"] == ["prompt_whole_v1"]
    with pytest.raises(ConfigError, match="does not support prompt"):
        whole.prepare(build("pixels"))
