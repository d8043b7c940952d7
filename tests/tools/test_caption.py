"""``tool=caption``: one caption an image, going on where it was stopped, refusing what does not fit."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
)

from gate_lightning.data.files.captions import CaptionFile
from gate_lightning.errors import CacheError, ConfigError, DataError, WeightsError
from gate_lightning.tools import caption as module
from gate_lightning.tools.caption import Captioner, caption
from gate_lightning.utils import files

WORDS = ("a", "photo", "of", "red", "blue", "house", "tree", "car", "the", "with", "and")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 16}
NAMES = ("a", "b", "sub/c", "sub/d", "sub/e")


def tokenizer() -> BertTokenizer:
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    return BertTokenizer(vocab=vocabulary, model_input_names=["input_ids", "attention_mask"])


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("blip")
    text = {**SMALL, **ENDS, "encoder_hidden_size": 16, "vocab_size": len(VOCABULARY), "sep_token_id": 3}
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=VISION)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("git")
    torch.manual_seed(1)
    # large weights, so that different images get different captions
    config = GitConfig(
        vocab_size=len(VOCABULARY),
        **SMALL,
        **ENDS,
        max_position_embeddings=64,
        vision_config=VISION,
        initializer_range=1.0,
    )
    GitForCausalLM(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    GitProcessor(images, tokenizer()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    (root / "sub").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(root / f"{name}.png")
    return root


def entries(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["image"]: line["caption"] for line in lines}


def test_every_image_gets_a_caption_of_its_own(git: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    report = caption(folder, path, git, max_new_tokens=6, batch_size=2, device="cpu")
    found = entries(path)
    assert list(found) == [f"{name}.png" for name in NAMES]
    assert len(set(found.values())) > 1
    assert all(set(text.split()) <= set(VOCABULARY) for text in found.values())
    assert "captions of 5 images written" in report
    # what the prompt technique reads
    assert CaptionFile(path).table.get("sub/c.png") == found["sub/c.png"]


def test_captions_do_not_depend_on_the_batch(git: str, folder: Path, tmp_path: Path) -> None:
    for size in (1, 5):
        caption(folder, tmp_path / f"{size}.jsonl", git, max_new_tokens=6, batch_size=size, device="cpu")
    assert entries(tmp_path / "1.jsonl") == entries(tmp_path / "5.jsonl")


@pytest.mark.parametrize("model", ["blip", "git"])
def test_prompts_are_continued(model: str, request: pytest.FixtureRequest, folder: Path) -> None:
    weights = request.getfixturevalue(model)
    images = [np.array(Image.open(folder / f"{name}.png")) for name in ("a", "b")]
    bare = Captioner(weights, max_new_tokens=5)(images)
    told = Captioner(weights, "a photo of", max_new_tokens=5)(images)
    kept = Captioner(weights, "a photo of", keep_prompt=True, max_new_tokens=5)(images)
    assert told != bare
    assert kept == [f"a photo of {text}".strip() for text in told]


class Dying(Captioner):
    """Describes one batch, then the process ends."""

    calls = 0

    def __call__(self, images: Sequence[np.ndarray]) -> list[str]:
        type(self).calls += 1
        if type(self).calls > 1:
            raise KeyboardInterrupt
        return super().__call__(images)


@pytest.mark.parametrize("tear", [False, True])
def test_a_resumed_file_equals_an_uninterrupted_one(
    git: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tear: bool
) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 6, "batch_size": 2, "device": "cpu"}
    whole, path = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    caption(folder, whole, git, **settings)
    Dying.calls = 0
    with monkeypatch.context() as patched:
        patched.setattr(module, "Captioner", Dying)
        with pytest.raises(KeyboardInterrupt):
            caption(folder, path, git, **settings)
    partial = tmp_path / "resumed.jsonl.partial"
    assert len(entries(partial)) == 2
    assert not path.exists()
    if tear:
        partial.write_bytes(partial.read_bytes()[:-7])
    report = caption(folder, path, git, **settings)
    assert path.read_bytes() == whole.read_bytes()
    assert not partial.exists()
    assert f"captions of {4 if tear else 3} images written" in report


def test_own_captions_are_kept_and_new_images_added(git: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "b.png", "caption": "by hand"}\n')
    caption(folder, path, git, max_new_tokens=6, device="cpu")
    found = entries(path)
    assert found["b.png"] == "by hand"
    assert list(found) == [f"{name}.png" for name in NAMES]


def test_another_prompt_is_refused(blip: str, folder: Path, tmp_path: Path) -> None:
    caption(folder, tmp_path, blip, max_new_tokens=3, device="cpu")
    assert (tmp_path / "captions.jsonl").is_file()
    with pytest.raises(CacheError, match=r"(?s)captions written by other settings.*prompt: None → 'a photo of'"):
        caption(folder, tmp_path, blip, prompt="a photo of", max_new_tokens=3, device="cpu")


def test_a_full_disk_is_told(git: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caption(folder / "a.png", tmp_path, git, max_new_tokens=3, device="cpu")

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CacheError, match="disk is full"):
        caption(folder, tmp_path, git, max_new_tokens=3, device="cpu")
    assert list(entries(tmp_path / "captions.jsonl")) == ["a.png"]


def test_a_broken_line_is_named(git: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "b.png", "caption": "x"}\n{"image": "a.png"}\n')
    with pytest.raises(DataError, match=r"line 2: .*is no caption"):
        caption(folder, path, git, device="cpu")


def test_other_models_are_refused(tmp_path: Path, git: str) -> None:
    with pytest.raises(WeightsError, match=r"config\.json cannot be read: No such file"):
        Captioner(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match=r"no .*model\.safetensors"):
        Captioner(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((Path(git) / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="no captioning model"):
        Captioner(str(tmp_path))
    with pytest.raises(WeightsError, match=r"tool\.model="):
        Captioner("no/where/at/all")


def test_a_model_with_a_random_part_is_refused(tmp_path: Path, git: str) -> None:
    broken = shutil.copytree(git, tmp_path / "git")
    state = load_file(broken / "model.safetensors")
    lost = next(name for name in state if name.endswith("mlp.fc1.weight"))
    del state[lost]
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of its GitForCausalLM, such as .*fc1\.weight"):
        Captioner(str(broken))


@pytest.mark.parametrize("change", [{"max_new_tokens": 0}, {"dtype": "int8"}, {"batch_size": 0}, {"device": "gpu"}])
def test_settings_that_cannot_work(git: str, folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        caption(folder, tmp_path, git, **{"device": "cpu", **change})
