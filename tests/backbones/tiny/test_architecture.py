"""The embedded model's architectures, tokenizer and folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.backbones.tiny.tokenizer import MAX_TOKENS, build_tokenizer
from gate_lightning.data.scenes.captions import MAX_WORDS, VOCABULARY, caption
from gate_lightning.data.scenes.layout import sample_scene
from gate_lightning.errors import ConfigError
from gate_lightning.tasks.pretraining.tiny_parts import tiny_words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete model with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer(tiny_words())
    tiny.write_folder(
        path,
        vae=tiny.build_autoencoder(),
        unet=tiny.build_unet(),
        text_encoder=tiny.build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=tiny.build_scheduler(),
    )
    return path


def test_every_word_is_one_token_and_the_longest_caption_fits() -> None:
    tokenizer = build_tokenizer(tiny_words())
    for word in VOCABULARY:
        assert len(tokenizer(word).input_ids) == 3, word
    assert MAX_WORDS + 2 <= MAX_TOKENS
    for seed in range(30):
        text = caption(sample_scene(seed), "fine", wording="full")
        assert len(tokenizer(text).input_ids) == len(text.split()) + 2


def test_foreign_text_falls_back_to_bytes() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    ids = tokenizer("zebra, Ünïcode 7").input_ids[1:-1]
    assert tokenizer.eos_token_id not in ids
    assert len(ids) > 10


def test_word_that_clip_splits_is_refused() -> None:
    with pytest.raises(ConfigError, match="t-shirt"):
        build_tokenizer(["tree", "t-shirt"])


def test_tokenizer_survives_the_disk(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    fresh = build_tokenizer(tiny_words())
    text = "a photo of a red car on the left, quite nice"
    assert tokenizer(text, padding="max_length").input_ids == fresh(text, padding="max_length").input_ids
    assert tokenizer.model_max_length == MAX_TOKENS
    assert tokenizer.get_vocab() == fresh.get_vocab()


def test_folder_is_an_ordinary_pipeline(folder: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline.tokenizer) == pipeline.text_encoder.config.vocab_size
    image = pipeline("a red car", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) < 16e6


def test_heads_per_level_survive_the_disk(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True)
    heads = [unet.down_blocks[i].attentions[0].transformer_blocks[0].attn1.heads for i in range(3)]
    assert heads == [1, 2, 2]
    assert unet.up_blocks[3].attentions[2].transformer_blocks[0].attn2.heads == 1
    controlnet = tiny.build_controlnet(unet)
    assert controlnet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.heads == 1


def test_plain_attention_gives_the_same(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True).eval()
    noisy, words = torch.randn(2, 4, 16, 16), torch.randn(2, MAX_TOKENS, tiny.TEXT_WIDTH)
    with torch.no_grad():
        expected = unet(noisy, 300, words).sample
        unet.set_attn_processor(tiny.MatmulAttention())
        torch.testing.assert_close(unet(noisy, 300, words).sample, expected, rtol=1e-4, atol=1e-5)


def test_controlnet_starts_silent_and_fits_the_latents(folder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", local_files_only=True).eval()
    tiny.write_folder(tmp_path, controlnet=tiny.build_controlnet(unet), unet=unet)
    written = (tmp_path / "unet" / "config.json").read_text()
    assert '"block_out_channels"' in written
    assert str(folder) not in written  # where a model was trained concerns nobody
    controlnet = ControlNetModel.from_pretrained(tmp_path / "controlnet", local_files_only=True)
    noisy, words = torch.randn(1, 4, 16, 16), torch.randn(1, MAX_TOKENS, tiny.TEXT_WIDTH)
    down, mid = controlnet(noisy, 10, words, torch.rand(1, 3, 64, 64), return_dict=False)
    assert mid.abs().max() == 0
    assert all(residual.abs().max() == 0 for residual in down)
    with torch.no_grad():
        unet(noisy, 10, words, down_block_additional_residuals=down, mid_block_additional_residual=mid)


@torch.no_grad()
def test_folding_changes_the_latents_and_not_the_images() -> None:
    torch.manual_seed(0)
    vae = tiny.build_autoencoder().eval()
    pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    before = vae.encode(pixels).latent_dist
    image = vae.decode(before.mean).sample
    tiny.fold_latent_statistics(vae, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
    after = vae.encode(pixels).latent_dist
    scaled = after.mean * vae.config.scaling_factor
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(vae.decode(after.mean).sample, image, atol=1e-4, rtol=1e-3)
    # noise of the posterior is rescaled with it
    ratio = (after.std * scaled.std() / scaled.std()) / before.std
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio), atol=1e-4, rtol=1e-4)
