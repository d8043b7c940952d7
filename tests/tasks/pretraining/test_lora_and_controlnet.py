"""ControlNet and adapter training, and the files they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning import Trainer
from safetensors.torch import load_file

from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.callbacks.state.export import Export
from gate_lightning.data.pretraining.captioned_folder import CaptionedFolder, CaptionedImages, list_captioned
from gate_lightning.data.pretraining.styles import write_style_set
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.tasks.pretraining.controlnet import ControlNetTask
from gate_lightning.tasks.pretraining.encoding import tiny_words
from gate_lightning.tasks.pretraining.lora import LoraTask


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer(tiny_words())
    tiny.write_folder(
        path,
        torch.float32,
        vae=tiny.build_autoencoder(),
        unet=tiny.build_unet((16, 16, 16, 16), (1, 1, 1, 1)),
        text_encoder=tiny.build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        scheduler=tiny.build_scheduler(),
    )
    return path


@pytest.fixture(scope="module")
def random_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    write_style_set(path, count=3, repeats=2)
    return path


def fit(folder: Path, task: Any, data: Any, steps: int = 2) -> None:
    Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        default_root_dir=folder,
        callbacks=[Export(folder)],
    ).fit(task, data)


def predict(unet: Any, words: torch.Tensor) -> torch.Tensor:
    noisy = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet.eval()(noisy, 200, words.expand(2, -1, -1)).sample


def large_adapters(task: LoraTask) -> None:
    """Make the effect of the adapters visible above rounding."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in task.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))


@pytest.mark.parametrize("text_lr", [None, 1e-4])
def test_adapter_files_give_diffusers_the_trained_prediction(
    model: Path, images: Path, tmp_path: Path, text_lr: float | None
) -> None:
    task = LoraTask(model, rank=4, text_lr=text_lr, name="mine")
    fit(tmp_path, task, CaptionedImages(images, size=64, batch_size=2))
    large_adapters(task)
    task.export(tmp_path)
    words, _ = task.prompts(["a red car"], (64, 64))
    expected = predict(task.unet, words.detach())
    for suffix in ("", ".kohya"):
        pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, local_files_only=True)
        words_before = pipeline.encode_prompt("a red car", "cpu", 1, False)[0]
        plain = predict(pipeline.unet, words_before)
        pipeline.load_lora_weights(tmp_path, weight_name=f"mine{suffix}.safetensors")
        loaded_words = pipeline.encode_prompt("a red car", "cpu", 1, False)[0]
        loaded = predict(pipeline.unet, loaded_words)
        assert (loaded - plain).abs().max() > 0.02
        torch.testing.assert_close(loaded, expected, atol=5e-3, rtol=5e-2)
        assert ((loaded_words - words_before).abs().max() > 0.01) == (text_lr is not None)
    keys = load_file(tmp_path / "mine.kohya.safetensors")
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in keys
    assert float(keys["lora_unet_mid_block_resnets_0_conv1.alpha"]) == 2.0


def test_adapter_training_moves_only_adapters_and_is_reproducible(model: Path, images: Path, tmp_path: Path) -> None:
    written = []
    for run in ("a", "b"):
        torch.manual_seed(hash(run) % 100)
        task = LoraTask(model, rank=2, targets=["attention"], warmup=1)
        frozen = {name: p.clone() for name, p in task.named_parameters() if not p.requires_grad}
        fit(tmp_path / run, task, CaptionedImages(images, size=64, batch_size=2, seed=3))
        for name, before in frozen.items():
            assert torch.equal(dict(task.named_parameters())[name], before), name
        written.append(load_file(tmp_path / run / "adapter.safetensors"))
    assert all("attn" in key for key in written[0])
    assert all(torch.equal(written[0][key], written[1][key]) for key in written[0])


def test_adapter_checkpoint_holds_adapters_only(model: Path) -> None:
    task = LoraTask(model, rank=2)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"]
    assert all("lora_" in key for key in checkpoint["state_dict"])
    fresh = LoraTask(model, rank=2, seed=7)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"])
    for (name, mine), other in zip(task.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_unknown_targets_are_named(model: Path) -> None:
    with pytest.raises(ConfigError, match="to_x"):
        LoraTask(model, rank=2, targets=["attention", "to_x"])


def test_captions_and_repeats_of_a_folder(images: Path, tmp_path: Path) -> None:
    entries = list_captioned(images)
    assert len(entries) == 9
    assert {e.repeats for e in entries} == {2}
    assert sorted({bool(e.caption) for e in entries}) == [False, True]
    dataset = CaptionedFolder(images, size=64)
    assert len(dataset) == 18
    assert dataset[0]["pixels"].shape == (3, 64, 64)
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((20, 50, 3), np.uint8))
    assert CaptionedFolder(tmp_path, size=32, random_crop=True)[4]["pixels"].shape == (3, 32, 32)
    assert CaptionedFolder(tmp_path, size=32)[0]["caption"] == ""


def test_folders_without_images_and_broken_images_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10_tags"):
        list_captioned(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        CaptionedFolder(tmp_path, size=8)[0]


def control_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(2, 4, 16, 16, generator=generator),
        "tokens": torch.ones(2, 40, dtype=torch.long),
        "control": torch.rand(2, 3, 64, 64, generator=generator),
    }


class ControlData(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {key: value[index] for key, value in control_batch().items()}


def test_controlnet_trains_alone_and_is_exported(model: Path, tmp_path: Path) -> None:
    task = ControlNetTask(model, warmup=1, lr=1e-2)
    frozen = [p.clone() for p in (*task.unet.parameters(), *task.text_encoder.parameters())]
    loader = torch.utils.data.DataLoader(ControlData(), batch_size=2)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        callbacks=[Export(tmp_path)],
    )
    trainer.fit(task, loader, loader)
    now = [*task.unet.parameters(), *task.text_encoder.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(frozen, now, strict=True))
    assert task.controlnet.controlnet_cond_embedding.conv_out.weight.abs().max() > 0
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert all(key.startswith("controlnet.") for key in checkpoint["state_dict"])
    fresh = ControlNetTask(model)
    fresh.on_load_checkpoint(checkpoint)
    fresh.load_state_dict(checkpoint["state_dict"])
    assert torch.equal(fresh.controlnet.conv_in.weight, task.controlnet.conv_in.weight)
    assert (tmp_path / "controlnet" / "config.json").exists()
