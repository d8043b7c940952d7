"""ControlNet and adapter training, and the files they leave."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning import Trainer
from safetensors.torch import load_file

from gate_lightning.backbones.stable_diffusion.loading import load_unet_backbone
from gate_lightning.backbones.tiny import architecture as tiny
from gate_lightning.backbones.tiny.tokenizer import build_tokenizer
from gate_lightning.callbacks.state.export import Export
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.captioned_folder import CaptionedImages
from gate_lightning.data.pretraining.styles import write_style_set
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.ops.edges import canny
from gate_lightning.tasks.pretraining.controlnet import ControlNetTask
from gate_lightning.tasks.pretraining.lora import LoraTask
from gate_lightning.tasks.pretraining.tiny_parts import tiny_words
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build, conditions, random_images, relative


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
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    write_style_set(path, count=3, repeats=2)
    return path


ADAM = partial(torch.optim.AdamW, lr=1e-2)


def lora(model: Path, **settings: Any) -> LoraTask:
    return LoraTask(load_unet_backbone(str(model)), ADAM, **settings)


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
@pytest.mark.slow
def test_adapter_files_give_diffusers_the_trained_prediction(
    model: Path, images: Path, tmp_path: Path, text_lr: float | None
) -> None:
    task = lora(model, rank=4, text_lr=text_lr, name="mine")
    fit(tmp_path, task, CaptionedImages(images, size=64, batch_size=2))
    large_adapters(task)
    task.export(tmp_path)
    assert f"technique.lora.weights.moderate={tmp_path / 'mine.safetensors'}" in task.usage(tmp_path)
    words = task.backbone.encode_text(["a red car"]).hidden
    expected = predict(task.backbone.unet, words.detach())
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


@pytest.mark.thorough
def test_both_formats_load_back_with_equal_features(model: Path, tmp_path: Path) -> None:
    task = lora(model, rank=4, text_lr=1e-4, name="mine")
    large_adapters(task)
    task.export(tmp_path)
    images, given, layers = random_images(2, 64, 64), conditions(2, captions=("a red car", "")), ("mid", "us6", "us9")
    found = {}
    for suffix in ("", ".kohya"):
        lora_file = LoRA("own", str(tmp_path / f"mine{suffix}.safetensors"))
        branch = Branch("b", 50, layers, (Prompt("caption"), lora_file))
        found[suffix] = FeatureExtractor(load_unet_backbone(str(model)), [branch])(images, given)["b"]
    # the network in training, its adapters inside
    trained = FeatureExtractor(task.backbone, [Branch("b", 50, layers, (Prompt("caption"),))])(images, given)["b"]
    plain = FeatureExtractor(load_unet_backbone(str(model)), [Branch("b", 50, layers)])(images, given)["b"]
    for layer in layers:
        torch.testing.assert_close(found[".kohya"][layer], found[""][layer], atol=1e-5, rtol=1e-4)
        assert relative(found[""][layer], trained[layer].detach()) < 5e-3  # the files are in half precision
        assert relative(plain[layer], trained[layer].detach()) > 0.05


@pytest.mark.slow
def test_adapter_training_moves_only_adapters_and_is_reproducible(model: Path, images: Path, tmp_path: Path) -> None:
    written = []
    for run in ("a", "b"):
        torch.manual_seed(hash(run) % 100)
        task = lora(model, rank=2, targets=["attention"])
        frozen = {name: p.clone() for name, p in task.named_parameters() if not p.requires_grad}
        fit(tmp_path / run, task, CaptionedImages(images, size=64, batch_size=2, seed=3))
        for name, before in frozen.items():
            assert torch.equal(dict(task.named_parameters())[name], before), name
        written.append(load_file(tmp_path / run / "adapter.safetensors"))
    assert all("attn" in key for key in written[0])
    assert all(torch.equal(written[0][key], written[1][key]) for key in written[0])


def test_adapter_checkpoint_holds_adapters_only(model: Path) -> None:
    task = lora(model, rank=2)
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["state_dict"]
    assert all("lora_" in key for key in checkpoint["state_dict"])
    fresh = lora(model, rank=2, seed=7)
    fresh.on_load_checkpoint(checkpoint)
    assert not fresh.load_state_dict(checkpoint["state_dict"], strict=False).unexpected_keys
    for (name, mine), other in zip(task.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_unknown_targets_are_named(model: Path) -> None:
    with pytest.raises(ConfigError, match="to_x"):
        lora(model, rank=2, targets=["attention", "to_x"])


@pytest.mark.thorough
def test_text_adapters_have_a_learning_rate_of_their_own(model: Path) -> None:
    task = lora(model, rank=2, text_lr=0.25)
    groups = task._make_optimizer(task.parameter_groups()).param_groups
    assert [group["lr"] for group in groups] == [1e-2, 0.25]
    assert sum(len(group["params"]) for group in groups) == len(task.trained_parameters())


def test_half_precision_weights_are_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone\.dtype is torch\.bfloat16.*float32"):
        LoraTask(load_unet_backbone(str(model), dtype="bfloat16"), ADAM, rank=2)


@pytest.mark.parametrize(
    "text_lr", [pytest.param(None, marks=pytest.mark.thorough), 0.25], ids=["frozen texts", "trained texts"]
)
def test_frozen_parts_run_outside_autocast(model: Path, text_lr: float | None) -> None:
    task = lora(model, rank=2, text_lr=text_lr)
    images, captions = random_images(2, 64, 64), ("a red car", "a house")
    latents, texts = task.latents(CaptionedBatch(captions, images=images)), task.texts(captions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(task.latents(CaptionedBatch(captions, images=images)), latents)
        mixed = task.texts(captions)
        # what is trained is computed as the trainer says
        assert torch.equal(mixed.hidden, texts.hidden) == (text_lr is None)
    assert mixed.hidden.requires_grad == (text_lr is not None)


class ControlData(torch.utils.data.Dataset[CaptionedBatch]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> CaptionedBatch:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, 16, 16, generator=generator)
        control = torch.rand(2, 3, 64, 64, generator=generator)
        return CaptionedBatch(("a red car", ""), latents=latents, control_images=control)


@pytest.mark.slow
def test_controlnet_trains_alone_and_is_exported(model: Path, tmp_path: Path) -> None:
    task = ControlNetTask(load_unet_backbone(str(model)), ADAM, drop_prompt=0.2)
    frozen = {name: p.clone() for name, p in task.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen} == {"unet", "vae", "text_encoder"}
    loader = torch.utils.data.DataLoader(ControlData(), batch_size=None)
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
    assert all(torch.equal(dict(task.named_parameters())[name], before) for name, before in frozen.items())
    assert task.controlnet.controlnet_down_blocks[0].weight.abs().max() > 0  # zero at the start
    assert {"val/error", "val/error_without_control", "val/error_wrong_control"} <= trainer.callback_metrics.keys()
    checkpoint = {"state_dict": task.state_dict()}
    task.on_save_checkpoint(checkpoint)
    assert all(key.startswith("backbone.controlnets.trained.") for key in checkpoint["state_dict"])
    fresh = ControlNetTask(load_unet_backbone(str(model)), ADAM)
    fresh.on_load_checkpoint(checkpoint)
    assert not fresh.load_state_dict(checkpoint["state_dict"], strict=False).unexpected_keys
    assert torch.equal(fresh.controlnet.conv_in.weight, task.controlnet.conv_in.weight)
    # what was exported steers as the part in training does
    again = load_unet_backbone(str(model), controlnets={"mine": str(tmp_path / "controlnet")})
    again.require_controlnet("mine")
    batch = ControlData()[0]
    words = again.encode_text(["a", "a"])
    given = (batch.latents, 200, words, batch.control_images)
    with torch.no_grad():
        found, expected = again.control_residuals("mine", *given), task.backbone.control_residuals("trained", *given)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        torch.testing.assert_close(found[path], value, atol=1e-3, rtol=1e-2, msg=path)


@pytest.mark.parametrize("member", ["sd2_like", pytest.param("xl_like", marks=pytest.mark.thorough)])
def test_a_controlnet_of_another_model_on_images_of_a_folder(member: str, images: Path, tmp_path: Path) -> None:
    """Of a model of eight pixels a latent and of SDXL's layout: own images, their edges, and a folder that loads."""
    task = ControlNetTask(build(member), ADAM, drop_prompt=0.0, plain_attention=False)
    fit(tmp_path, task, CaptionedImages(images, size=64, batch_size=2, held_out=1, make_control=canny), steps=1)
    assert f"backbone.controlnets.canny={tmp_path / 'controlnet'}" in task.usage(tmp_path)
    again: Any = build(member)
    again.controlnet_sources["canny"] = str(tmp_path / "controlnet")
    again.require_controlnet("canny")
    noisy = torch.randn(2, 4, 64 // again.latent_stride, 64 // again.latent_stride)
    given = (noisy, 200, again.encode_text(["a", "a"]), torch.rand(2, 3, 64, 64))
    with torch.no_grad():
        found, expected = again.control_residuals("canny", *given), task.backbone.control_residuals("trained", *given)
    assert max(value.abs().max() for value in expected.values()) > 1e-3
    for path, value in expected.items():
        torch.testing.assert_close(found[path], value, atol=2e-3, rtol=2e-2, msg=path)


def test_a_controlnet_needs_control_images(model: Path, images: Path, tmp_path: Path) -> None:
    task = ControlNetTask(load_unet_backbone(str(model)), ADAM)
    with pytest.raises(ConfigError, match="dataset=captioned_controls"):
        fit(tmp_path, task, CaptionedImages(images, size=64, batch_size=2))
