"""From the configuration to what reads features: several backbones, control folders and functions, caption files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.jobs.training import train
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.controlnet import ControlNet
from tests.support.composition import SMALL, composed
from tests.support.folders import make_folder, make_image, write
from tests.support.paths import REPOSITORY

SECOND = ("+backbone@backbones.second=tiny", "backbones.second.weights=random", "backbones.second.seed=3")
TWO_BRANCHES = (
    "techniques=[{name: a, techniques: [prompt]},{name: b, backbone: second, layers: [up-level1-upsampler-out]}]"
)


def components(*overrides: str) -> Components:
    return Components(runs.resolve(composed("backbone.weights=random", *overrides)), "")


#: one step of a linear head on one layer
ONE_STEP = ("amalgamation=concat", "head=linear", "layers=dift", "trainer.max_steps=1", "trainer.val_check_interval=1")


def small(*overrides: str) -> list[str]:
    """Of the overrides, the later ones, without those of the data set and head that were replaced."""
    replaced = (
        "head.decode",
        *(["dataset.train", "dataset.val", "dataset.test"] if "dataset=folder" in overrides else []),
    )
    return [item for item in (*SMALL, *ONE_STEP, *overrides) if not item.startswith(replaced)]


def grey(images: Tensor, gain: float = 1.0) -> Tensor:
    return ((images + 1) / 2 * gain).mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)


@pytest.mark.slow
def test_a_run_trains_on_two_backbones_and_is_evaluated(tmp_path: Path) -> None:
    given = small(*SECOND, "backbone_scale={second: 0.5}", TWO_BRANCHES, "dataset.val=1", "dataset.test=1")
    metrics = train(composed(*given), given, tmp_path / "run")
    assert math.isfinite(metrics["val/mIoU"])
    frozen = json.loads((tmp_path / "run/frozen.json").read_text())
    assert frozen["backbones"]["second"]["scale"] == 0.5
    assert frozen["backbones"]["main"]["backbone"]["digest"] != frozen["backbones"]["second"]["backbone"]["digest"]
    config = composed(f"run={tmp_path / 'run'}", name="eval")
    assert evaluate(config, [f"run={tmp_path / 'run'}"], tmp_path / "out") == pytest.approx(
        {name: value for name, value in metrics.items() if name.startswith("val/")}, abs=1e-6
    )


@pytest.mark.parametrize(
    ("given", "scales"),
    [("{second: 0.5}", (1.0, 0.5)), ("{main: 2, second: 0.5}", (2.0, 0.5)), ("0.5", (0.5, 1.0))],
)
@pytest.mark.slow
def test_every_backbone_has_its_scale(given: str, scales: tuple[float, float]) -> None:
    made = components(*SECOND, f"backbone_scale={given}", TWO_BRANCHES, "cache.memory_gib=0").extractor
    assert tuple(made.scales.values()) == scales
    assert list(made.feature_info) == ["a", "b"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*SECOND, "techniques=none"), r"backbones\.second is read by no branch"),
        ((*SECOND, "techniques=[{name: b, backbone: second}]"), "no branch reads the backbone of `backbone`"),
        ((*SECOND, "techniques=[{name: b, backbone: secnd}]"), "did you mean second"),
        ((*SECOND, "+backbones.second.size=32", TWO_BRANCHES), r"backbones\.second\.size: .*backbone_scale=\{main: 1"),
        ((*SECOND, "+backbones.second.scale=2", TWO_BRANCHES), r"backbones\.second\.scale: .*backbone_scale="),
        ((*SECOND, "backbone_scale={second: -1}", TWO_BRANCHES), "scale of the backbone second=-1"),
        ((*SECOND, "backbone_scale={secnd: 1}", TWO_BRANCHES), "did you mean second"),
        (("+backbone@backbones.main=tiny", TWO_BRANCHES), "choose another"),
    ],
)
@pytest.mark.slow
def test_backbones_that_make_no_sense_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = components(*overrides).extractor


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_folder(tmp_path_factory.mktemp("folder") / "data", {"train": [(64, 64), (70, 80)], "val": [(64, 72)]})
    lines = []
    for path in sorted((made / "images").rglob("*.png")):
        name = path.relative_to(made / "images")
        size = {"train/town/000.png": (64, 64), "train/001.png": (70, 80)}.get(name.as_posix(), (64, 72))
        write(made / "depth" / name, make_image(*size, seed=9))
        lines.append(json.dumps({"image": name.as_posix(), "caption": f"a photo of {name.stem}"}))
    (made / "captions.jsonl").write_text("\n".join(lines))
    return made


def controlled(root: Path, *overrides: str) -> tuple[str, ...]:
    return (
        "dataset=folder",
        f"dataset.root={root}",
        "+backbone.controlnets.depth=asset:tiny/controlnet",
        f"technique.prompt.file={root}/captions.jsonl",
        "technique.controlnet.name=depth",
        f"technique.controlnet.folder={root}/depth",
        "techniques=[prompt,controlnet]",
        *overrides,
    )


@pytest.mark.thorough
def test_control_folders_and_caption_files_reach_the_branches(root: Path) -> None:
    made = components(
        *controlled(root, "technique.controlnet.dropout=0.5", "dataset.augment=false", "dataset.batch_size=2")
    )
    prompt, control = made.extractor.extractor.branches[0].techniques
    made.connected_datamodule.setup("fit")
    batch = next(iter(made.datamodule.train_dataloader()))
    assert batch.conditions.control_images["depth"].shape == batch.images.shape
    assert batch.conditions.views == ("draw0", "draw0")  # dropout draws anew in every epoch
    assert control.seed == made.config.seed
    (validation,) = made.datamodule.val_dataloader()
    images, given = validation.images, validation.conditions
    assert prompt.description["captions"]
    assert torch.isfinite(next(iter(made.extractor(images, given)["prompt+controlnet"].values()))).all()


def test_a_missing_caption_stops_before_training(root: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text((root / "captions.jsonl").read_text().splitlines()[0])
    made = components(*controlled(root, f"technique.prompt.file={tmp_path / 'c.jsonl'}"))
    _ = made.extractor
    with pytest.raises(DataError, match=r"has no caption for 'images/.*\(1 of 2 .*prompt technique a fallback"):
        made.connected_datamodule.setup("fit")


@pytest.mark.slow
def test_images_to_be_labelled_bring_their_controls_too(root: Path, tmp_path: Path) -> None:
    given = small(*controlled(root, "dataset.batch_size=2"))
    train(composed(*given), given, tmp_path / "run")
    images = tmp_path / "images"
    write(images / "train/001.png", make_image(70, 80, seed=1))
    overrides = [f"run={tmp_path / 'run'}", f"input={images}", f"output={tmp_path / 'out'}"]
    evaluate(composed(*overrides, name="eval"), overrides, tmp_path)
    assert (tmp_path / "out/masks/train/001.png").is_file()
    write(images / "train/002.png", make_image(70, 80, seed=2))
    with pytest.raises(DataError, match=r"no caption for 'train/002\.png' \(1 of 2"):
        evaluate(composed(*overrides, name="eval"), overrides, tmp_path)


def test_a_function_of_the_configuration_is_built_once() -> None:
    function = "function: {_target_: tests.engine.parts.test_extraction.grey, _partial_: true, gain: 0.5}"
    made = components(
        f"techniques=[{{name: a, controlnet: {{{function}}}}},{{name: b, noise_seed: 0, controlnet: {{{function}}}}}]",
        "dataset=scenes",
    )
    first, second = (branch.techniques[0].source() for branch in made.branches)
    assert first == second  # and hash alike: the images are made once
    assert first.function is second.function
    assert json.loads(first.description)["gain"] == 0.5
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(first.function(images), grey(images, 0.5))


def test_the_branches_of_the_documentation_are_built(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/techniques.md").read_text()
    block = text.split("    techniques:\n")[1].split("\n\n")[0]
    (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "caption": "a house"}')
    config = composed("backbone.weights=random", "+backbone.controlnets.depth=asset:tiny/controlnet")
    config.techniques = yaml.safe_load(block.replace("captions.jsonl", str(tmp_path / "captions.jsonl")))
    branches = Components(runs.resolve(config), "").branches
    assert " ".join(branch.name for branch in branches) == "plain caption held styled denoised inverted dift"
    held = branches[2].techniques
    assert [technique.name for technique in held if isinstance(technique, ControlNet)] == ["canny", "depth"]


@pytest.mark.thorough
def test_the_backbone_may_see_images_at_another_size() -> None:
    halved = components("techniques=none", "backbone_scale={main: 0.5}", "dataset.size=128")
    plain = components("techniques=none", "dataset.size=128")
    strides = [{info.stride for info in made.extractor.feature_info["none"].values()} for made in (plain, halved)]
    assert strides[1] == {2 * stride for stride in strides[0]}
    images = torch.rand(1, 3, 128, 128) * 2 - 1
    small = torch.nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)
    features = halved.extractor(images, Conditions(("a",)))["none"]
    for layer, value in plain.extractor(small, Conditions(("a",)))["none"].items():
        torch.testing.assert_close(features[layer], value)
    assert halved.extractor.description != plain.extractor.description
