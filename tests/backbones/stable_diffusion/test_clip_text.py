"""Prompts longer than the text encoder reads, and learned tokens and prompts from files."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from gate_lightning.backbones.adapters.learned_embeddings import read_learned_tokens
from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build, conditions, random_images, relative

WORDS = ("a", "of", "photo", "red", "circle", "house")  # one token each; the encoder reads 40, 38 without begin and end
LONG = " ".join(WORDS[index % 6] for index in range(90))
PROMPT = "a red <cat> house"
WIDTH = 32


@pytest.fixture(scope="module")
def clean() -> UNetBackbone:
    return build("one_repeat")


@pytest.fixture
def backbone(clean: UNetBackbone) -> UNetBackbone:
    return copy.deepcopy(clean)


@torch.no_grad()
def encoded(backbone: UNetBackbone, ids: list[int]) -> Tensor:
    return backbone.text_encoder(torch.tensor([ids]))[0]


def test_windows_are_prompts_of_their_own(backbone: UNetBackbone) -> None:
    words = LONG.split(" ")
    pieces = [" ".join(words[start : start + 38]) for start in (0, 38, 76)]
    expected = torch.cat([backbone.encode_text([piece]).hidden for piece in pieces], dim=1)
    assert backbone.text_length(LONG) == expected.shape[1] == 120
    assert torch.equal(backbone.encode_text([LONG]).hidden, expected)


def test_a_prompt_that_just_fits_is_one_window(backbone: UNetBackbone) -> None:
    assert backbone.text_length("red " * 38) == 40
    assert backbone.text_length("red " * 39) == 80


def test_the_released_way_cuts_one_row_of_tokens(backbone: UNetBackbone) -> None:
    backbone.long_prompts = "released"
    begin, *words, end = backbone.tokenizer(LONG).input_ids
    whole = [begin, *words, end]
    expected = torch.cat([encoded(backbone, whole[start : start + 40]) for start in (0, 40, 80)], dim=1)
    assert backbone.text_length(LONG) == 92
    assert relative(backbone.encode_text([LONG]).hidden, expected) < 1e-6
    # of 70 words and fewer nothing is kept behind the 40th token
    seventy = " ".join(LONG.split(" ")[:70])
    assert backbone.text_length(seventy) == 40
    assert torch.equal(backbone.encode_text([seventy]).hidden, encoded(backbone, [begin, *words[:38], end]))


def test_cutting_warns(backbone: UNetBackbone, caplog: pytest.LogCaptureFixture) -> None:
    backbone.long_prompts = "cut"
    with caplog.at_level(logging.WARNING):
        short = backbone.encode_text(["a red house " * 12])
        assert not caplog.records
        long = backbone.encode_text(["a red house " * 13])
    assert "41 tokens is cut to the 40" in caplog.text
    assert short.hidden.shape == long.hidden.shape == (1, 40, WIDTH)


def test_prompts_of_several_lengths_are_not_encoded_together(backbone: UNetBackbone) -> None:
    with pytest.raises(ConfigError, match=r"\[40, 120\] tokens in one batch"):
        backbone.encode_text([LONG, "a house"])
    assert backbone.encode_text([LONG, f"red {LONG}"]).hidden.shape == (2, 120, WIDTH)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"long_prompts='words'.*windows, released, cut"):
        load_unet_backbone(long_prompts="words")  # type: ignore[arg-type]


def test_images_with_prompts_of_several_lengths_share_a_batch(backbone: UNetBackbone) -> None:
    extractor = FeatureExtractor(backbone, [Branch("x", 50, ("mid-vit-block0-out",), (Prompt(),))])
    images = random_images(3)
    captions = ("a house", LONG, "a red circle")
    together = extractor(images, conditions(3, captions=captions))["x"]["mid-vit-block0-out"]
    alone = extractor(images[1:2], type(conditions(1))(("s1",), captions=captions[1:2]))["x"]["mid-vit-block0-out"]
    assert relative(together[1:2], alone) < 1e-5


def vectors(count: int, seed: int = 5) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def write_tokens(folder: Path, form: str, vector: Tensor) -> tuple[Path, str]:
    """A file that teaches ``vector`` (n, C), and its token."""
    match form:
        case "diffusers":
            save_file(
                {"<cat>": vector[0] if len(vector) == 1 else vector}, path := folder / "learned_embeds.safetensors"
            )
            return path, "<cat>"
        case "diffusers bin":
            torch.save({"<cat>": vector}, path := folder / "learned_embeds.bin")
            return path, "<cat>"
        case "a1111 pt":
            content = {"string_to_token": {"*": 265}, "string_to_param": {"*": nn.Parameter(vector)}, "name": "zinc"}
            torch.save({**content, "step": 100, "sd_checkpoint": None}, path := folder / "file.pt")
            return path, "zinc"
        case "a1111 old pt":
            content = {"string_to_param": nn.ParameterDict({"*": nn.Parameter(vector)}), "name": "zinc"}
            torch.save(content, path := folder / "file.pt")
            return path, "zinc"
        case _:
            save_file({"emb_params": vector}, path := folder / "zinc.safetensors")
            return path, "zinc"


@pytest.mark.parametrize("form", ["diffusers", "diffusers bin", "a1111 pt", "a1111 old pt", "a1111 safetensors"])
@pytest.mark.parametrize("count", [1, 3])
def test_learned_tokens_are_read_as_diffusers_reads_them(
    clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path, form: str, count: int
) -> None:
    path, token = write_tokens(tmp_path, form, vectors(count))
    backbone.require_adapter("t", str(path), "tokens")
    prompt = f"a red {token} house, {token}"

    class Pipeline(TextualInversionLoaderMixin):
        components: dict[str, Any] = {}  # noqa: RUF012
        hf_device_map = None

    theirs = Pipeline()
    theirs.tokenizer, theirs.text_encoder = copy.deepcopy(clean.tokenizer), copy.deepcopy(clean.text_encoder)
    theirs.load_textual_inversion({token: vectors(count)}, token=token)
    text = theirs.maybe_convert_prompt(prompt, theirs.tokenizer)
    ids = theirs.tokenizer(text, padding="max_length", max_length=40, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = theirs.text_encoder(ids)[0]
    assert relative(backbone.encode_text([prompt], (("t", 1.0),)).hidden, expected) < 1e-6
    assert relative(backbone.encode_text([prompt]).hidden, expected) > 1e-2


def test_many_vectors_lengthen_a_prompt(backbone: UNetBackbone, tmp_path: Path) -> None:
    path, _ = write_tokens(tmp_path, "diffusers", vectors(37))
    backbone.require_adapter("t", str(path), "tokens")
    assert backbone.text_length(PROMPT) == 40
    assert backbone.text_length(PROMPT, (("t", 1.0),)) == 80
    assert backbone.encode_text([PROMPT], (("t", 1.0),)).hidden.shape == (1, 80, WIDTH)


def test_a_token_that_is_a_word_is_not_found_inside_others(backbone: UNetBackbone, tmp_path: Path) -> None:
    save_file({"red": vectors(1)}, tmp_path / "t.safetensors")
    backbone.require_adapter("t", str(tmp_path / "t.safetensors"), "tokens")
    steer = (("t", 1.0),)
    plain = backbone.encode_text(["a redder house"]).hidden
    assert torch.equal(backbone.encode_text(["a redder house"], steer).hidden, plain)
    assert not torch.equal(
        backbone.encode_text(["a red house"], steer).hidden, backbone.encode_text(["a red house"]).hidden
    )


def test_the_text_encoder_is_left_as_it_was(clean: UNetBackbone, backbone: UNetBackbone, tmp_path: Path) -> None:
    path, _ = write_tokens(tmp_path, "diffusers", vectors(2))
    backbone.require_adapter("t", str(path), "tokens")
    backbone.encode_text([PROMPT], (("t", 1.0),))
    assert len(backbone.tokenizer) == len(clean.tokenizer)
    assert torch.equal(backbone.encode_text([PROMPT]).hidden, clean.encode_text([PROMPT]).hidden)
    assert not backbone.text_encoder.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_learned_prompt_replaces_the_text(
    backbone: UNetBackbone, tmp_path: Path, batched: bool, pickled: bool
) -> None:
    prompt = vectors(7)
    held = prompt[None] if batched else prompt
    path = tmp_path / f"prompt.{'pt' if pickled else 'safetensors'}"
    if pickled:
        torch.save(held, path)
    else:
        save_file({"prompt": held}, path)
    backbone.require_adapter("p", str(path), "prompt")
    steer = (("p", 1.0),)
    assert backbone.text_length("anything", steer) == 7
    assert torch.equal(backbone.encode_text(["a", "b"], steer).hidden, prompt.expand(2, 7, WIDTH))


def test_learned_prompts_and_tokens_steer_a_branch(backbone: UNetBackbone, tmp_path: Path) -> None:
    layer = "mid-vit-block0-out"
    words = backbone.encode_text(["a red house"]).hidden[0]
    save_file({"prompt": words.contiguous()}, tmp_path / "prompt.safetensors")
    word = backbone.tokenizer("red").input_ids[1]
    save_file({"<cat>": backbone.text_encoder.get_input_embeddings().weight.data[word]}, tmp_path / "cat.safetensors")
    branches = [
        Branch("text", 50, (layer,), (Prompt("a red house"),)),
        Branch("prompt", 50, (layer,), (Prompt(embedding=str(tmp_path / "prompt.safetensors")),)),
        Branch("token", 50, (layer,), (Prompt("a <cat> house", tokens=(str(tmp_path / "cat.safetensors"),)),)),
        Branch("without", 50, (layer,), (Prompt("a <cat> house"),)),
    ]
    extractor = FeatureExtractor(backbone, branches, noise="shared")
    features = {name: layers[layer] for name, layers in extractor(random_images(2), conditions(2)).items()}
    assert relative(features["prompt"], features["text"]) < 1e-5
    assert relative(features["token"], features["text"]) < 1e-5
    assert relative(features["without"], features["text"]) > 1e-4
    adapters = extractor.description["backbone"]["adapters"]
    assert all(len(digest) == 64 for digest in adapters.values())
    assert len(adapters) == 2


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ({"<cat>": torch.zeros(1, 1024)}, "tokens", "<cat> has 1024 channels, .* have 32"),
        ({"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(1, 64)}, "tokens", "text_encoder, text_encoder_2; this"),
        ({"<cat>": torch.zeros(1, 2, 32)}, "tokens", "no file of learned tokens: it holds <cat>"),
        ({"<cat>": torch.full((1, 32), float("inf"))}, "tokens", "not finite"),
        ({"prompt": torch.zeros(4, 1024)}, "prompt", "1024 channels; the denoiser of this backbone reads 32"),
        ({"prompt": torch.zeros(2, 4, 32)}, "prompt", r"\(2, 4, 32\).*expected \(T, C\)"),
        ({"a": torch.zeros(4, 32), "b": torch.zeros(4, 32)}, "prompt", "holds a, b; expected one tensor"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    backbone: UNetBackbone, tmp_path: Path, content: dict[str, Tensor], kind: Any, message: str
) -> None:
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=message):
        backbone.require_adapter("x", str(tmp_path / "x.safetensors"), kind)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("touched-by-a-pickle"),))


def test_pickled_programs_are_not_run(backbone: UNetBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"<cat>": Evil()}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="pickled code is not run"):
        backbone.require_adapter("x", str(tmp_path / "x.pt"), "tokens")
    assert not (tmp_path / "touched-by-a-pickle").exists()
    (tmp_path / "y.pt").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="is a web page"):
        backbone.require_adapter("y", str(tmp_path / "y.pt"), "tokens")


def test_sdxl_tokens_have_vectors_for_both_encoders(tmp_path: Path) -> None:
    def encoder(width: int) -> nn.Module:
        made = nn.Module()
        made.get_input_embeddings = lambda: nn.Embedding(9, width)  # type: ignore[assignment]
        return made

    networks = {"unet": nn.Module(), "text_encoder": encoder(32), "text_encoder_2": encoder(48)}
    save_file({"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)}, tmp_path / "zinc.safetensors")
    tokens = read_learned_tokens(tmp_path / "zinc.safetensors", networks).tokens
    assert {part: tuple(learned["zinc"].shape) for part, learned in tokens.items()} == {
        "text_encoder": (2, 32),
        "text_encoder_2": (2, 48),
    }
    save_file({"<cat>": torch.zeros(2, 32)}, tmp_path / "sd1.safetensors")
    with pytest.raises(WeightsError, match="learned tokens for text_encoder; this backbone has"):
        read_learned_tokens(tmp_path / "sd1.safetensors", networks)
