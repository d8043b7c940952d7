"""Images from noise: the samplers, resuming, processes, prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from gate_lightning.backbones.base import Backbone
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.core.sampled import SampledImages
from gate_lightning.data.label_scarce.datamodule import LabelScarceDataModule
from gate_lightning.data.scenes.dataset import ScenesDataModule
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.techniques.sampling import Control, Sampling, sample_images
from gate_lightning.tools.labelling.generate import generate, prompts_of
from gate_lightning.utils.seeding import torch_generator
from tests.support.composition import composed
from tests.support.small_networks import build

FAST = {"steps": 2, "batch_size": 2, "size": 32, "device": "cpu"}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("one_repeat")


def random_images(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, image in found.items():
        np.testing.assert_array_equal(image, expected[name])


@pytest.mark.thorough
def test_a_stopped_run_goes_on_and_more_can_be_added(backbone: Backbone, tmp_path: Path) -> None:
    prompts = ["a red house", "a circle", "a photo"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    generate(backbone, whole, prompts=prompts, count=5, **FAST)
    generate(backbone, stopped, prompts=prompts, count=3, **FAST)
    (stopped / "000001.png").unlink()
    before = (stopped / "000000.png").stat().st_mtime_ns
    assert "3 of 5" not in generate(backbone, stopped, prompts=prompts, count=5, **FAST)
    assert_same(random_images(stopped), random_images(whole))
    assert (stopped / "000000.png").stat().st_mtime_ns == before
    # captions belong to the images as any data set's do
    assert ImageSource(stopped).captions == [prompts[index % 3] for index in range(5)]
    assert len({image.tobytes() for image in random_images(whole).values()}) == 5


def test_processes_share_the_work(backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(backbone, tmp_path / "alone", prompts=["a"], count=5, **FAST)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        generate(backbone, tmp_path / "shared", prompts=["a"], count=5, **FAST)
        assert len(random_images(tmp_path / "shared")) == {"1": 2, "0": 5}[rank]
    assert_same(random_images(tmp_path / "shared"), random_images(tmp_path / "alone"))


def test_the_pipeline_of_diffusers_makes_the_same_images() -> None:
    backbone = build("one_repeat")
    # as released models have it; the pipeline sets these by itself where they are absent
    backbone.schedule.config = {**backbone.schedule.config, "steps_offset": 1, "clip_sample": False}
    prompts, side = ["a red house", "a photo of a circle"], backbone.native_size
    parts = {name: getattr(backbone, name) for name in ("unet", "text_encoder", "tokenizer", "vae")}
    pipeline = StableDiffusionPipeline(
        **parts,
        scheduler=DDIMScheduler.from_config(dict(backbone.schedule.config)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    for guidance in (4.0, 1.0):
        start = [torch.randn(1, 4, 8, 8, generator=torch_generator("image", 7, 5 + row)) for row in range(2)]
        expected = pipeline(
            prompts,
            side,
            side,
            num_inference_steps=3,
            guidance_scale=guidance,
            latents=torch.cat(start),
            output_type="np",
        ).images
        found = sample_images(backbone, prompts, 5, Sampling("ddim", 3, guidance, side, seed=7))
        assert np.abs(found / 255.0 - expected).max() < 1.5 / 255


def test_an_image_depends_on_its_number_and_seed_alone(backbone: Backbone) -> None:
    how = Sampling("ddim", 2, 4.0, 32)
    prompts = ["a red car", "a blue house", ""]
    together = sample_images(backbone, prompts, 0, how).astype(int)
    assert np.abs(together[1:] - sample_images(backbone, prompts[1:], 1, how)).max() <= 1
    assert not np.array_equal(together, sample_images(backbone, prompts, 0, replace(how, seed=1)))


@pytest.mark.thorough
def test_a_controlnet_steers_at_its_scale() -> None:
    backbone = build("tiny")
    how, prompts = Sampling("ddim", 2, 4.0, 32), ["a red car", "a"]
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = sample_images(backbone, prompts, 0, how)
    none, full = (sample_images(backbone, prompts, 0, how, Control("canny", images, scale)) for scale in (0.0, 1.0))
    np.testing.assert_array_equal(none, plain)
    assert np.abs(full.astype(int) - plain).max() > 1
    with pytest.raises(ConfigError, match="2 control images for 1 prompts"):
        sample_images(backbone, ["a"], 0, how, Control("canny", images))


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 8), ("ddpm", 40)])
def test_a_perfect_denoiser_ends_at_its_image(sampler: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the start noise and the noise added on the way: who always knows the image arrives at it."""
    adm = build("adm")
    side = adm.native_size
    truth = (torch.rand(3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1) * 0.9
    alphas = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)

    def denoise(latents: torch.Tensor, timestep: int, *args: object, **named: object) -> torch.Tensor:
        alpha = float(alphas[timestep])
        return (latents - math.sqrt(alpha) * truth) / math.sqrt(1 - alpha)

    monkeypatch.setattr(adm, "denoise", denoise)
    found = sample_images(adm, ["", ""], 5, Sampling(sampler, steps, 4.0, side))
    expected = ((truth + 1) * 127.5).permute(1, 2, 0).numpy()
    # the last noise level of the schedule is left by DDIM: √(1 - ᾱ₀) = 0.01
    assert np.abs(found[0].astype(float) - expected).max() < 4
    assert np.abs(found[1].astype(float) - expected).max() < 4


def test_prompts_of_data_sets() -> None:
    scenes = ScenesDataModule(train=3, val=1, test=1)
    captions = [scenes.source("train").load(index).caption for index in range(3)]
    for data in (scenes, LabelScarceDataModule(scenes, labelled=1, size=64), SampledImages(scenes, images=2)):
        assert prompts_of(data) == captions
    assert prompts_of(ScenesDataModule(train=2, val=1, test=1, captions="empty")) == [scenes.card.prompt_fine]
    assert prompts_of(None) == ["a photo"]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    small = ("backbone.weights=random", "dataset.train=2", "tool.count=1", "tool.steps=1", "tool.batch_size=1")
    config = composed("tool=generate", f"output={tmp_path}", "tool.device=cpu", *small, name="eval")
    evaluate(config, [], tmp_path / "unused")
    assert random_images(tmp_path)["000000.png"].shape == (64, 64, 3)
    assert ImageSource(tmp_path).captions == prompts_of(ScenesDataModule(train=2))[:1]


@pytest.mark.thorough
def test_the_command_without_a_data_set(tmp_path: Path) -> None:
    small = ("backbone.weights=random", "tool.count=1", "tool.steps=1", "tool.batch_size=1")
    config = composed("tool=generate", "~dataset", f"output={tmp_path}", "tool.device=cpu", *small, name="eval")
    evaluate(config, [], tmp_path / "unused")
    assert ImageSource(tmp_path).captions == ["a photo"]


def test_what_cannot_be_generated_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    for name in ("pixels", "cleandift"):
        with pytest.raises(ConfigError, match="makes no images"):
            generate(build(name), tmp_path / name)
    for settings, words in (
        ({"count": 0}, "count=0"),
        ({"size": 33}, "multiples of"),
        ({"size": 4}, "whole number from 16"),
        ({"sampler": "euler"}, "ddim, ddpm"),
        ({"steps": 1001}, "1000 timesteps"),
    ):
        with pytest.raises(ConfigError, match=words):
            generate(backbone, tmp_path / "wrong", **{**FAST, **settings})
    generate(backbone, tmp_path / "made", count=1, **FAST)
    with pytest.raises(CacheError, match="seed: 0 → 1"):
        generate(backbone, tmp_path / "made", count=1, seed=1, **FAST)
