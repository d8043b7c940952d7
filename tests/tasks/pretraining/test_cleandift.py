"""CleanDIFT's training: heads and loss against formulas, sharing with the teacher, and the exported U-Net."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from lightning import Trainer
from torch import Tensor

from gate_lightning.backbones.stable_diffusion import cleandift as loading
from gate_lightning.backbones.stable_diffusion.cleandift import load_cleandift_backbone
from gate_lightning.backbones.stable_diffusion.unet import UNetBackbone
from gate_lightning.backbones.weights.checkpoints import read_safetensors
from gate_lightning.callbacks.state.export import Export
from gate_lightning.data.pretraining.batches import CaptionedBatch
from gate_lightning.data.pretraining.captioned_folder import CaptionedImages
from gate_lightning.data.pretraining.styles import write_style_set
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.hooks import FeatureRecorder
from gate_lightning.tasks.pretraining.cleandift import CleanDIFTTask, similarities, stratified_timesteps
from gate_lightning.tasks.pretraining.projection_heads import GatedBlock, ProjectionHeads, TimestepCondition
from tests.support.small_networks import build, conditions, random_images, relative

ADAM = partial(torch.optim.Adam, lr=1e-3)
LAYERS = ("mid", "us2", "us3")
CAPTIONS = ("a red circle", "a house", "")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def task(member: str = "sd2_like", seed: int = 0, **settings: Any) -> CleanDIFTTask:
    backbone = build(member, seed)
    assert isinstance(backbone, UNetBackbone)
    return CleanDIFTTask(backbone, ADAM, **{"layers": LAYERS, **settings})


def batch(made: CleanDIFTTask, captions: tuple[str, ...] = CAPTIONS) -> CaptionedBatch:
    side = 64 // made.backbone.latent_stride
    latents = torch.randn(len(captions), 4, side, side, generator=torch.Generator().manual_seed(3))
    return CaptionedBatch(captions, latents=latents)


def alone(made: CleanDIFTTask) -> dict[str, Tensor]:
    """Let a task log without a trainer; what it logs."""
    logged: dict[str, Tensor] = {}
    made.log = lambda name, value, **_: logged.__setitem__(name, value)  # type: ignore[method-assign,assignment]
    made.log_dict = lambda values, **_: logged.update(values)  # type: ignore[method-assign,assignment]
    return logged


def moved(made: CleanDIFTTask, size: float = 0.05) -> None:
    """Change every trained weight visibly, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.trained_parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def oracle(made: CleanDIFTTask, unet: Any, latents: Tensor, timestep: Any, caption: str) -> dict[str, Tensor]:
    """Features of diffusers' U-Net by hooks of its own modules."""
    paths = {layer: made.backbone.layer_spec(layer).module for layer in made.layers}
    found: dict[str, Tensor] = {}
    handles = []
    for layer, path in paths.items():

        def keep(_: Any, __: Any, output: Any, layer: str = layer) -> None:
            found[layer] = output if isinstance(output, Tensor) else output[0]

        handles.append(unet.get_submodule(path).register_forward_hook(keep))
    words = made.backbone.encode_text([caption] * len(latents)).hidden
    unet(latents, torch.as_tensor(timestep), encoder_hidden_states=words)
    for handle in handles:
        handle.remove()
    return found


def test_a_block_is_the_papers_formula() -> None:
    torch.manual_seed(0)
    block = GatedBlock(6, 5, 4)
    tokens, condition = torch.randn(2, 3, 3, 6), torch.randn(2, 1, 1, 4)
    assert torch.equal(block(tokens, condition), tokens)  # at the start it changes nothing
    for layer in (block.scale, block.up, block.down):
        torch.nn.init.normal_(layer.weight)
    for row in range(2):
        for place in range(9):
            x = tokens[row].reshape(9, 6)[place]
            scale = 1 + block.scale.weight @ condition[row, 0, 0]
            up = block.up.weight @ (x / (x.square().mean() + 1e-6).sqrt() * scale)
            expected = x + block.down.weight @ (up[:5] * up[5:] / (1 + (-up[5:]).exp()))
            torch.testing.assert_close(block(tokens, condition)[row].reshape(9, 6)[place], expected)


def test_heads_keep_shapes_and_begin_as_no_change() -> None:
    torch.manual_seed(0)
    heads = ProjectionHeads({"a.b": 8, "c": 12}, 1000)
    features = {"a.b": torch.randn(2, 8, 3, 5), "c": torch.randn(2, 12, 6, 10)}
    timesteps = torch.tensor([3, 700])
    for layer, value in heads(features, timesteps).items():
        assert torch.equal(value, features[layer])
    torch.nn.init.normal_(heads.heads[1][2].down.weight)
    torch.nn.init.normal_(heads.heads[1][2].scale.weight)
    changed = heads(features, timesteps)
    assert torch.equal(changed["a.b"], features["a.b"])
    other = heads({layer: value.flip(0) for layer, value in features.items()}, timesteps)
    assert not torch.allclose(other["c"].flip(0), changed["c"])  # the timestep counts


def test_the_condition_has_fourier_features_of_the_share_of_the_schedule() -> None:
    torch.manual_seed(0)
    condition = TimestepCondition(1000, 16)
    seen: list[Tensor] = []
    condition.project.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    condition(torch.tensor([0, 999]))
    turns = 2 * torch.pi * condition.frequencies
    expected = torch.stack([torch.cat([torch.ones(8), torch.zeros(8)]), torch.cat([turns.cos(), turns.sin()])])
    torch.testing.assert_close(seen[0], expected)


def test_timesteps_are_one_from_each_part() -> None:
    drawn = stratified_timesteps(4000, 3, 1000, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 3)
    for column, (low, high) in enumerate(((1, 333), (333, 666), (666, 998))):
        part = drawn[:, column]
        assert (part.min(), part.max()) == (pytest.approx(low, abs=1), pytest.approx(high, abs=1))
        assert part.float().mean() == pytest.approx((low + high) / 2, abs=5)


def test_similarity_is_the_mean_cosine_of_positions() -> None:
    a, b = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    found = similarities({"x": a, "y": a}, {"x": b, "y": a})
    for row in range(2):
        each = [
            float(a[row, :, i, j] @ b[row, :, i, j] / (a[row, :, i, j].norm() * b[row, :, i, j].norm()))
            for i in range(3)
            for j in range(4)
        ]
        assert float(found[row, 0]) == pytest.approx(sum(each) / 12, abs=1e-6)
    torch.testing.assert_close(found[:, 1], torch.ones(2))


def test_the_loss_is_one_minus_cosine_summed_over_layers() -> None:
    made = task(bins=2)
    moved(made)
    logged = alone(made)
    given = batch(made)
    loss = made.training_step(given, 0)
    generator = made.generator("training", 0)
    timesteps = stratified_timesteps(3, 2, 1000, generator)
    noise = torch.randn((2, *given.latents.shape), generator=generator)
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    total = torch.zeros(len(LAYERS))
    for row, caption in enumerate(given.captions):
        clean = given.latents[row : row + 1]
        student = oracle(made, made.student.unet, clean, made.timestep.detach(), caption)
        for column in range(2):
            told = timesteps[row, column]
            noisy = alphas[told].sqrt() * clean + (1 - alphas[told]).sqrt() * noise[column, row]
            teacher = oracle(made, made.backbone.unet, noisy.float(), told, caption)
            projected = made.heads(student, told[None])
            cosine = [1 - torch.cosine_similarity(projected[name], teacher[name], dim=1).mean() for name in LAYERS]
            total += torch.stack(cosine) / 6
    assert float(loss.detach()) == pytest.approx(float(total.sum().detach()), abs=1e-4)
    assert float(logged["train/agreement"].detach()) == pytest.approx(1 - float(total.mean().detach()), abs=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize(
    "member", ["tiny", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("sd2_like", "xl_like"))]
)
def test_a_student_begins_as_its_teacher_and_shares_what_is_frozen(member: str, rank: int | None) -> None:
    made = task(member, rank=rank)
    own = ("unet", "adapters", "controlnets", "image_prompt_adapters")  # the student's, empty but for the U-Net
    shared = {name: one for name, one in made.student.named_children() if name not in own}
    assert shared
    assert all(one is getattr(made.backbone, name) for name, one in shared.items())
    assert (made.student.unet is made.backbone.unet) == (rank is not None)
    given = batch(made, ("a house",) * 2)
    prompts = made.backbone.encode_text(list(given.captions))
    timesteps = torch.full((2,), 261)
    before, teacher = made.learned(given.latents, prompts), made.taught(given.latents, timesteps, prompts)
    for layer, value in teacher.items():
        assert not value.requires_grad
        torch.testing.assert_close(before[layer], value)
    moved(made)
    again = made.taught(given.latents, timesteps, prompts)
    for layer, value in made.learned(given.latents, prompts).items():
        assert torch.equal(again[layer], teacher[layer])  # the teacher stays
        assert (value - again[layer]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("member", "rank"),
    [("one_repeat", None), ("one_repeat", 2), pytest.param("xl_like", 2, marks=pytest.mark.thorough)],
)
def test_every_trained_weight_and_nothing_else_gets_a_gradient(member: str, rank: int | None) -> None:
    made = task(member, rank=rank, layers=("mid", "us1"), bins=1)
    alone(made)
    moved(made, 0.02)  # what is behind weights that start at zero learns once these have moved
    made.training_step(batch(made, ("a house",) * 2), 0).backward()
    trained = {name: one for name, one in made.named_parameters() if one.requires_grad}
    assert [name for name, one in trained.items() if one.grad is None or not one.grad.abs().max() > 0] == []
    assert all(one.grad is None for name, one in made.named_parameters() if name not in trained)
    assert {name.split(".")[0] for name in trained} == {"timestep", "heads", "student" if rank is None else "backbone"}
    # what runs after the last layer is not trained
    assert not [name for name in trained if ".up_blocks.2." in name or "conv_out" in name]
    assert not [name for name in trained if name.startswith("backbone") and ".lora_" not in name]


@pytest.mark.thorough
def test_validation_compares_at_fixed_noise() -> None:
    made = task()
    logged = alone(made)
    with torch.no_grad():
        made.validation_step(batch(made), 0)
        first = dict(logged)
        made.validation_step(batch(made), 0)
    assert all(torch.equal(first[name], value) for name, value in logged.items())
    steps = [float(first[f"val/agreement_t{t}"]) for t in (50, 100, 200, 400, 600, 800)]
    assert float(first["val/agreement"]) == pytest.approx(sum(steps) / 6, abs=1e-5)
    # an untrained student is the teacher on clean latents, and its heads change nothing
    assert torch.allclose(first["val/agreement_without_heads"], first["val/agreement"])
    assert torch.allclose(first["val/agreement_untrained"], first["val/agreement"])


@pytest.mark.parametrize("rank", [None, pytest.param(3, marks=pytest.mark.thorough)])
def test_the_exported_unet_has_the_students_features(
    rank: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task("sd2_like", rank=rank)
    moved(made)
    with torch.no_grad():
        made.timestep.fill_(254.75)
    before = {name: one.clone() for name, one in made.backbone.unet.state_dict().items()}
    made.export(tmp_path)
    assert all(torch.equal(one, before[name]) for name, one in made.backbone.unet.state_dict().items())
    plain = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    latents = batch(made).latents
    expected = oracle(made, made.student.unet, latents, 254.75, "a house")
    for layer, value in oracle(made, plain, latents, 254.75, "a house").items():
        assert relative(value, expected[layer]) < 2e-5
    # as a backbone: the base is built anew, the U-Net and its timestep come from the folder
    monkeypatch.setattr(loading, "load_unet_backbone", lambda **_: build("sd2_like", 7))
    loaded = load_cleandift_backbone(str(tmp_path / "unet"), base="any", file="cleandift_sd15_unet.safetensors")
    assert (loaded.own_timestep, loaded.identity.name) == (254.75, str(tmp_path / "unet"))
    other = build("sd2_like", 7)
    images = random_images(2)
    with torch.no_grad():
        encoded, words = other.encode(images), other.encode_text(["", ""])
    extractor = FeatureExtractor(loaded, [Branch("clean", 255, LAYERS)])
    found = extractor(images, conditions(2))["clean"]
    with FeatureRecorder(made.student, LAYERS) as recorder, torch.no_grad():
        made.student.denoise(encoded, 0, words)
    for layer, value in recorder.features.items():
        assert relative(found[layer], value) < 2e-5
    for words_of_usage in (
        "backbone.weights=",
        "backbone.base=sd2_like",
        "backbone=cleandift_sd15",
        "native_size=64 techniques=none",
    ):
        assert words_of_usage in made.usage(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    made = task("one_repeat")
    made.export(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(config.read_text().replace("UNet2DConditionModel", "ControlNetModel"))
    with pytest.raises(WeightsError, match="holds a ControlNetModel in 1 files"):
        load_cleandift_backbone(str(tmp_path / "unet"), base="tiny")


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="to_x"):
        task(rank=2, targets=["to_x"])
    with pytest.raises(ConfigError, match=r"task\.rank=0"):
        task(rank=0)
    with pytest.raises(ConfigError, match="no layer 'us99'"):
        task(layers=["us99"])
    with pytest.raises(ConfigError, match="reads clean latents; training needs noisy ones"):
        task("cleandift")
    with pytest.raises(ConfigError, match="own_timestep=1000"):
        task(own_timestep=1000)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.slow
def test_a_resumed_training_ends_at_the_same_student(rank: int | None, tmp_path: Path) -> None:
    write_style_set(tmp_path / "images", count=2, repeats=2)

    def fit(folder: Path, steps: int, checkpoint: Path | None = None) -> CleanDIFTTask:
        made = task("one_repeat", rank=rank, layers=("mid", "us1"))
        data = CaptionedImages(tmp_path / "images", size=64, batch_size=2)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            default_root_dir=folder,
            callbacks=[Export(folder)],
        )
        trainer.fit(made, data, ckpt_path=checkpoint, weights_only=True)
        trainer.save_checkpoint(folder / "state.ckpt")
        return made

    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "half", 2)
    state = torch.load(tmp_path / "half" / "state.ckpt", weights_only=True)["state_dict"]
    assert not any(name.startswith(("backbone.vae", "student.vae", "student.text")) for name in state)
    resumed = fit(tmp_path / "rest", 4, tmp_path / "half" / "state.ckpt")
    ends, headers = zip(
        *(read_safetensors(tmp_path / name / "unet" / WEIGHTS) for name in ("whole", "rest")), strict=True
    )
    assert headers[0] == headers[1]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    start = task("one_repeat").backbone.unet.state_dict()
    assert any(not torch.equal(ends[0][name], value) for name, value in start.items())
    assert float(resumed.timestep.detach()) == float(whole.timestep.detach()) != 261.0
