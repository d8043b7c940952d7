"""Published trainings on SPair-71k: each builds at its real size and takes a step in small."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gate_lightning.backbones.stable_diffusion import loading
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.jobs.evaluation import evaluate
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import WeightsError
from gate_lightning.structures import Conditions
from tests.support.composition import composed
from tests.support.experiments import FOLDER, configuration, parts_of, small, structure, write_loras
from tests.support.inversion_oracle import hyperfeatures
from tests.support.pair_layouts import write_spair
from tests.support.small_networks import relative

#: experiment → channels of the pyramid at its real size without attention, stride, shapes of weights that tell it
EXPERIMENTS: dict[str, tuple[int, int, dict[str, tuple[int, ...]]]] = {
    "gate/spair71k_nn": (3520, 8, {"amalgamation.assigners.0.0.conv.weight": (128, 3520, 3, 3)}),
    "gate/spair71k_conv": (3520, 8, {"amalgamation.assigners.0.0.conv.weight": (128, 3520, 3, 3)}),
    "gate/spair71k_practical": (3520, 8, {"amalgamation.assigners.0.0.conv.weight": (128, 3520, 3, 3)}),
    "gate/spair71k_as_released": (3520, 8, {"amalgamation.assigners.0.0.linear.weight": (3520, 128)}),
    "gate/spair71k_nn_as_released": (3520, 8, {"amalgamation.assigners.0.0.linear.weight": (3520, 128)}),
    "gdf/spair71k": (3520, 4, {"head.conv.weight": (3520, 3520, 3, 3)}),
    "hyperfeatures/spair71k": (
        384,
        8,
        {
            "amalgamation.mixing_weights": (132,),
            "amalgamation.bottleneck_layers.11.0.shortcut.weight": (384, 320, 1, 1),
            "amalgamation.bottleneck_layers.0.0.conv2.weight": (96, 96, 3, 3),
        },
    ),
    "geoaware/spair71k": (
        768,
        16,
        {
            "amalgamation.mixing_weights": (4,),
            "amalgamation.bottleneck_layers.0.0.shortcut.weight": (768, 640, 1, 1),
            "amalgamation.bottleneck_layers.2.0.conv1.weight": (192, 1280, 1, 1),
            "amalgamation.bottleneck_layers.3.0.conv2.weight": (192, 192, 3, 3),
            "loss.losses.sparse.log_scale": (),
        },
    ),
    "hyperfeatures/spair71k_one_step": (384, 8, {"amalgamation.mixing_weights": (12,)}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_spair(tmp_path_factory.mktemp("spair"))
    pair = json.loads(next(folder.glob("PairAnnotation/val/*.json")).read_text())
    names = {"src": "source", "trg": "target"}
    entry = {f"{name}_path": f"cat/{pair[f'{side}_imname']}" for side, name in names.items()}
    entry |= {f"{name}_points": pair[f"{side}_kps"] for side, name in names.items()}
    entry |= {f"{name}_bounding_box": pair[f"{side}_bndbox"] for side, name in names.items()}
    (folder / "spair_71k_val-360.json").write_text(json.dumps([{"category": "cat", **entry}]))
    return folder


@pytest.fixture(scope="module")
def real_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loras(tmp_path_factory.mktemp("real") / "loras", structure("sd15"), every=40)


@pytest.fixture(scope="module")
def small_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_loras(tmp_path_factory.mktemp("small") / "loras", small("sd15"))


def common(root: Path, loras: Path, name: str = "") -> list[str]:
    weights = [f"technique.lora.weights.{role}={loras / role}.safetensors" for role in ("moderate", "overtrained")]
    own = ["backbone.weights=random", "backbones.dino.weights=random"] if name.startswith("geoaware") else []
    own += ["backbone.weights=random", "dataset.num_workers=0", f"dataset.root={root}", "trainer.accelerator=cpu"]
    return [*own, *weights, "cache.folder=null", "trainer.max_steps=1"]


def in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "build_random_backbone", lambda architecture, *args, **own: small(architecture))


def test_every_experiment_is_tried() -> None:
    written = [
        path.relative_to(FOLDER).with_suffix("").as_posix()
        for folder in ("gate", "gdf", "hyperfeatures", "geoaware")
        for path in (FOLDER / folder).glob("spair71k*.yaml")
    ]
    assert sorted(written) == sorted(EXPERIMENTS)


#: those of many passes
LONG = ("gate/spair71k_nn", "gate/spair71k_conv", "gate/spair71k_practical", "gate/spair71k_nn_as_released")
LONG = (*LONG, "hyperfeatures/spair71k")


def marked(thorough: Sequence[str], slow: Sequence[str] = ()) -> list[Any]:
    """Names of the experiments, some with a mark."""
    marks = dict.fromkeys(thorough, pytest.mark.thorough) | dict.fromkeys(slow, pytest.mark.slow)
    return [pytest.param(name, marks=marks.get(name, ())) for name in EXPERIMENTS]


@pytest.mark.parametrize("name", marked((*LONG[1:], "geoaware/spair71k")))
def test_it_builds_at_its_real_size(
    name: str, root: Path, real_loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "build_random_backbone", lambda architecture, *args, **own: structure(architecture))
    components = parts_of(name, common(root, real_loras, name), tmp_path)
    assert components.extractor.feature_info
    with torch.device("meta"):
        task: Any = components.task
    channels, stride, shapes = EXPERIMENTS[name]
    tokens = [branch for branch in components.extractor.feature_info if branch == "attention"]
    attention = sum(info.channels for branch in tokens for info in components.extractor.feature_info[branch].values())
    assert (attention > 0) == name.startswith("gate/")
    assert (task.amalgamation.out_channels, task.amalgamation.strides) == ((channels + attention,), (stride,))
    found = {parameter: tuple(value.shape) for parameter, value in task.named_parameters()}
    assert shapes.items() <= found.items()
    if "head.conv.weight" in found:
        assert found["head.conv.weight"] == (channels + attention, channels + attention, 3, 3)
    assert ("head.conv.weight" in found) == (
        name.startswith("gdf") or name.endswith(("conv", "practical", "k_as_released"))
    )


@pytest.mark.parametrize("name", marked(("gate/spair71k_as_released", "geoaware/spair71k"), slow=LONG))
def test_it_takes_a_step_and_is_validated_on_small_networks(
    name: str, root: Path, small_loras: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small(monkeypatch)
    own = ["dataset.size=64", "trainer.val_check_interval=1", "dataset.subset=1"]
    if name.startswith("geoaware"):
        own += ["backbones.dino.architecture=dinov2_tiny", "backbones.dino.native_size=null", "trainer.max_epochs=-1"]
    if name.endswith("as_released"):
        own += [f"techniques[{branch}].denoise.steps=1" for branch in (4, 5, 6)]
    components = parts_of(name, [*common(root, small_loras, name), *own], tmp_path)
    before = [parameter.detach().clone() for parameter in components.task.parameters() if parameter.requires_grad]
    components.trainer.fit(components.task, components.datamodule)
    after = [parameter for parameter in components.task.parameters() if parameter.requires_grad]
    metrics = components.trainer.callback_metrics
    assert math.isfinite(metrics["train/loss"]) and 0 <= metrics[components.config.monitor] <= 1
    assert sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) > len(after) / 2


@pytest.mark.thorough
def test_timesteps_of_hyperfeatures_are_read_from_its_own_latents(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small(monkeypatch)
    components = parts_of("hyperfeatures/spair71k", common(root, tmp_path), tmp_path)
    extractor: Any = components.extractor
    backbone = small("sd15")
    embeds = backbone.encode_text([""]).hidden
    passes: list[tuple[int, torch.Tensor]] = []
    predicted: dict[int, torch.Tensor] = {}

    def keep(_: object, given: Any, output: torch.Tensor) -> None:
        assert torch.equal(given[2].hidden, embeds)
        predicted[given[1]] = output.double()

    hooks = [
        backbone.register_forward_pre_hook(lambda _, given: passes.append((given[1], given[0].clone()))),
        backbone.register_forward_hook(keep),
    ]
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    extractor(images, Conditions(sample_ids=("a",)))
    for hook in hooks:
        hook.remove()
    assert len(passes) == 49 + 11  # trajectories share what they have in common
    seen = dict(passes)
    # the released loop from the same clean latents, with what the network said of latents that are its own
    alphas = [backbone.schedule.level(t)[0] ** 2 for t in range(1000)]
    monkeypatch.setattr("tests.support.inversion_oracle.ALPHAS", torch.tensor(alphas, dtype=torch.float64))

    def predict(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        assert relative(seen[timestep].double(), latents) < 1e-4, timestep
        return predicted[timestep] if timestep < 960 else torch.zeros_like(latents)  # what comes of it is not read

    expected = hyperfeatures(seen[-1], 50, predict)
    assert list(extractor.feature_info) == ["clean", *(f"t{t}" for t in range(60, 961, 100))]
    for call, timestep in enumerate([-1, *range(0, 961, 20)]):
        assert relative(seen[timestep].double(), expected[call]) < 1e-4, timestep


@pytest.mark.thorough
def test_a_released_network_is_measured_and_one_for_other_timesteps_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_small(monkeypatch)
    name = "hyperfeatures/spair71k_one_step"
    torch.manual_seed(3)
    state = parts_of(name, common(root, tmp_path), tmp_path).amalgamation.state_dict()
    state = {key: torch.randn_like(value) for key, value in state.items()}
    file = tmp_path / "aggregation_network.pt"
    torch.save({"step": 1, "config": {}, "aggregation_network": state, "optimizer_state_dict": {}}, file)
    given = [f"experiment={name}", *common(root, tmp_path)[:4], "cache.folder=null", "dataset.size=64"]
    given += ["backbone.weights=random", f"amalgamation.released={file}", "callbacks=quiet", "logger=none"]
    metrics = evaluate(composed(*given, name="eval"), given, tmp_path / "run")
    assert 0 <= metrics["test/PCK_0.10_bbox_per-point_le"] <= 1
    again = composed(f"run={tmp_path / 'run'}", name="eval")
    assert evaluate(again, [f"run={tmp_path / 'run'}"], tmp_path / "x") == metrics
    state["mixing_weights"] = torch.ones(132)
    torch.save({"step": 1, "config": {}, "aggregation_network": state, "optimizer_state_dict": {}}, file)
    with pytest.raises(WeightsError, match="mixes 132 maps, here are 1 timesteps"):
        evaluate(composed(*given, name="eval"), given, tmp_path / "other")


def test_the_released_gate_differs_as_its_header_says() -> None:
    described, released = (runs.resolve(configuration(f"gate/spair71k_{name}")) for name in ("conv", "as_released"))
    assert (described.timestep, released.timestep, described.posterior, released.posterior) == (
        50,
        51,
        "mean",
        "sample",
    )
    assert released.amalgamation.always_training and released.task.read_out.square == 512
    assert released.trainer.max_steps // released.trainer.val_check_interval == 19
    assert Components(released, "").config.dataset.lists.val == "spair_71k_val-360.json"
