"""Image to image as a measure: what is made, by whom, how often, and what is told where nothing can be made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.vision.backbone import VisionBackbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading.img2img import ImageToImage, autoencoded
from gate_lightning.metrics.content_shift.closeness import edge_agreement, mean_squared_error, structural_similarity
from gate_lightning.structures import ImageBatch
from gate_lightning.tasks.content_shift.closeness import ImageCloseness
from gate_lightning.tasks.content_shift.laplacian import LaplacianScore
from gate_lightning.tasks.content_shift.measure import Measure
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.study import ShiftResults, compared_rows, measure_content_shift
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import build, conditions, random_images

LAYER = "up-level1-upsampler-out"
CAPTIONS = ("a red circle", "a house", "a photo of a circle")
NONE, PROMPT = Branch("none", 50, (LAYER,)), Branch("prompt", 50, (LAYER,), (Prompt(),))
IMAGES, KNOWN = random_images(3, 32, 32), conditions(3, captions=CAPTIONS)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build("one_repeat")


def measured(
    backbones: dict[str, Backbone], branches: list[Branch], measures: dict[str, Measure], **settings: Any
) -> ShiftResults:
    sample = [ImageBatch(IMAGES[at : at + 2], KNOWN[slice(at, at + 2)]) for at in (0, 2)]
    return measure_content_shift(ShiftReader(backbones, branches, (50,), **settings), sample, measures)


@pytest.mark.thorough
def test_readings_are_of_images_that_are_made_once(backbone: Backbone) -> None:
    vision = build("dinov2_tiny")
    assert isinstance(vision, VisionBackbone)
    given = {"strengths": (0.1, 0.2), "steps": 2}
    measures: dict[str, Measure] = {
        **{name: ImageCloseness(name, **given) for name in ("error", "ssim", "edges")},  # type: ignore[arg-type]
        "vision": ImageCloseness("vision", vision=vision, size=30, **given),  # type: ignore[arg-type]
        "score": LaplacianScore("own"),
    }
    passes: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda m, inputs: passes.append(int(inputs[1])))
    found = measured({"": backbone}, [NONE, PROMPT], measures, noises=(2,))
    handle.remove()
    # 2 batches · 2 strengths · (both candidates at once, then the shuffled captions) · 2 steps
    assert [one for one in passes if one in (100, 200)].count(100) == 2 * 2 * 2
    assert passes.count(200) == 2 * 2
    other = replace(KNOWN, captions=CAPTIONS[1:] + CAPTIONS[:1])
    rows = {"none": (NONE, KNOWN), "prompt": (PROMPT, KNOWN), "prompt (shuffled)": (PROMPT, other)}
    for start in (100, 200):
        made = {
            name: ImageToImage(backbone, [branch], start, 2)(IMAGES, known)[branch.name]
            for name, (branch, known) in rows.items()
        }
        made["autoencoder"] = autoencoded(backbone, IMAGES)
        for reading, function in (("error", mean_squared_error), ("ssim", structural_similarity),
                                  ("edges", edge_agreement)):  # fmt: skip
            assert {key[0] for key in found.statistics[reading]} == {*made}
            for name, images in made.items():
                of_images = found.statistics[reading][name, start, None].of_images
                torch.testing.assert_close(of_images, function(IMAGES, images), rtol=1e-4, atol=1e-5)
        tokens = [_class_tokens(vision, one) for one in (IMAGES, made["prompt"])]
        expected = 1 - F.cosine_similarity(*tokens, dim=1)
        of_images = found.statistics["vision"]["prompt", start, None].of_images
        torch.testing.assert_close(of_images.float(), expected, rtol=1e-3, atol=1e-6)
    assert [measure.higher_is_better for measure in measures.values()][:4] == [False, True, True, False]  # type: ignore[attr-defined]
    ceiling = compared_rows(found)["autoencoder"]
    assert (ceiling.plain, ceiling.ranked, ceiling.controls) == ("none", False, {})
    assert found.candidates["autoencoder"].kind == "ceiling"


@torch.no_grad()
def _class_tokens(vision: VisionBackbone, images: torch.Tensor) -> torch.Tensor:
    """By the network itself; 30 pixels are rounded to 8 patches of 4."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (vision.mean, vision.std))
    resized = F.interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
    tokens: torch.Tensor = vision.network((resized / 2 + 0.5 - mean) / std).last_hidden_state
    return tokens[:, 0]


def test_what_makes_no_images_is_told_of_and_the_rest_comes(backbone: Backbone) -> None:
    measures: dict[str, Measure] = {"edges": ImageCloseness("edges", (0.3,), 1), "score": LaplacianScore("own")}
    found = measured({"": build("pixels")}, [Branch("none", 50, ("pixels-stride4",))], measures)
    assert "pixels has no noise schedule; image to image does not apply" in found.left_out["edges"]
    assert {*found.statistics} == {"score"}
    steps = Branch("steps", 50, (LAYER,), (Denoise(6, stride=10),))
    both: dict[str, Backbone] = {"": backbone, "raw": build("pixels")}
    branches = [NONE, steps, Branch("raw", 50, ("pixels-stride4",), backbone="raw")]
    measures = {"edges": ImageCloseness("edges", (0.3, 0.95), 1), "vision": ImageCloseness("vision")}
    found = measured(both, branches, measures)
    assert {key[:2] for key in found.statistics["edges"]} == {
        *(("none", 300), ("none", 949), ("steps", 300), ("autoencoder", 300), ("autoencoder", 949))
    }
    assert "starts at 1009" in found.left_out["steps, image to image at strength 0.95"]
    assert "no vision transformer is named" in found.left_out["vision"]


def test_what_makes_no_sense_is_refused() -> None:
    for given, message in (({"reading": "taste"}, "reading='taste'"), ({"strengths": ()}, "strengths is empty"),
                           ({"steps": 0}, "steps=0"), ({"size": 0}, "size=0")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            ImageCloseness(**{"reading": "ssim", **given})  # type: ignore[arg-type]
