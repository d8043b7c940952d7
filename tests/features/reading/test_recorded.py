"""Recorded passes against the passes they were recorded from: other images, prompts, noises and sizes."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gate_lightning.backbones.adapters import bank
from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.reading import recorded as module
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.reading.recorded import Recordings, recorded
from gate_lightning.structures import Features
from gate_lightning.techniques.base import Technique
from gate_lightning.techniques.controlnet import ControlNet
from gate_lightning.techniques.denoise import Denoise
from gate_lightning.techniques.guidance import Guidance
from gate_lightning.techniques.lora import LoRA
from gate_lightning.techniques.prompt import Prompt
from tests.support.small_networks import (
    adapted_layers,
    build,
    conditions,
    random_images,
    random_pairs,
    relative,
    save_diffusers,
)

CAPTIONS = ("a red house", "a photo of a circle")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, dict[str, tuple[Technique, ...]]]:
    """A backbone, and branches with every technique that acts inside of passes."""
    backbone, folder = build("tiny"), tmp_path_factory.mktemp("loras")
    pairs = {
        name: random_pairs(adapted_layers(backbone), rank=2 + index, seed=index) for index, name in enumerate("ab")
    }
    a, b = (LoRA(name, str(save_diffusers(folder / f"{name}.safetensors", own))) for name, own in pairs.items())
    return backbone, {
        "plain": (Prompt("a photo"),),
        "moderate": (Prompt(), ControlNet(), a),
        "overtrained": (Prompt(), ControlNet(scale=0.5), b),
        "guided": (Prompt(), Guidance(3.0)),
        "denoised": (Prompt("a photo"), Denoise(steps=1)),
    }


@pytest.fixture(scope="module")
def small() -> Backbone:
    return build("one_repeat")


def batches(count: int = 3, height: int = 32, width: int = 48) -> list[tuple[Tensor, Any]]:
    return [
        (
            random_images(2, height, width, seed=index),
            conditions(2, captions=CAPTIONS[:: 1 - 2 * (index % 2)], windows=((index, 0),) * 2),
        )
        for index in range(count)
    ]


def features_of(
    backbone: Backbone, branches: Sequence[Branch], passes: Any, given: Sequence[Any], **own: Any
) -> tuple[list[Features], FeatureExtractor]:
    extractor = FeatureExtractor(backbone, branches, passes=passes, **own)
    return [extractor(images, known) for images, known in given], extractor


def equal(one: Sequence[Features], other: Sequence[Features]) -> bool:
    return all(
        torch.equal(one[index][branch][layer], value)
        for index, features in enumerate(other)
        for branch, layers in features.items()
        for layer, value in layers.items()
    )


LAYERS = ("up-level0-upsampler-out", "down-level1-repeat1-vit-out", "attn-down-cross")
#: seen early in a pass of a small U-Net, where nothing depends on which layer it is
PLAIN = Branch("plain", 50, ("down-level1-repeat0-vit-out",), (Prompt("a photo"),))


@pytest.mark.parametrize(
    "techniques",
    [
        ("plain", "moderate", "overtrained"),
        *(pytest.param((name,), marks=pytest.mark.thorough) for name in ("guided", "denoised")),
    ],
)
def test_replayed_features_of_every_technique_are_equal_to_the_bit(
    tiny: Any, techniques: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, known = tiny
    branches = [Branch(name, 50, LAYERS, known[name], noise_seed=index) for index, name in enumerate(techniques)]
    expected, _ = features_of(backbone, branches, "eager", batches())
    refuse_modules_after(monkeypatch, backbone, 2)
    actual, extractor = features_of(backbone, branches, "replayed", batches())
    assert equal(actual, expected)
    assert not equal(expected[:1], expected[1:2])
    assert len(extractor.recordings._made) == len(extractor.recordings._met) > 1


def refuse_modules_after(monkeypatch: pytest.MonkeyPatch, backbone: Backbone, batches: int) -> None:
    """No module of the denoiser runs after the encoder has seen so many batches; 0 of a kind are left to record."""
    calls = []
    encode, denoise = backbone.encode_moments, backbone.denoise

    def counted(images: Tensor) -> Any:
        calls.append(images)
        return encode(images)

    def refused(*arguments: Any) -> Tensor:
        assert len(calls) <= batches
        return denoise(*arguments)

    monkeypatch.setattr(backbone, "encode_moments", counted)
    monkeypatch.setattr(backbone, "denoise", refused)


@pytest.mark.parametrize(
    "member",
    [
        "pixels",
        "dinov2_tiny",
        *(pytest.param(name, marks=pytest.mark.thorough) for name in ("sd2_like", "xl_like", "adm", "cleandift")),
    ],
)
def test_passes_of_every_backbone_are_replayed(member: str) -> None:
    backbone = build(member)
    layers = list(backbone.layers)[-3:]
    branches = [Branch("plain", 50, tuple(layers)), Branch("other", 50, tuple(layers[:1]), noise_seed=1)]
    size = max(64, backbone.minimum_size)
    given = batches(3, size, size + backbone.size_multiple)
    expected, _ = features_of(backbone, branches, "eager", given)
    actual, extractor = features_of(backbone, branches, "replayed", given)
    assert equal(actual, expected)
    assert extractor.recordings._made


def test_other_sizes_types_and_places_are_recorded_anew(small: Backbone) -> None:
    backbone = copy.deepcopy(small)
    extractor = FeatureExtractor(backbone, [PLAIN], passes="replayed")
    given = [*batches(2), *batches(2, 48, 32), *batches(1)]
    plain = FeatureExtractor(backbone, [PLAIN])
    assert equal([extractor(*one) for one in given], [plain(*one) for one in given])
    assert len(extractor.recordings._made) == 4  # encoder and denoiser, two sizes
    backbone.double()
    assert equal([extractor(*one) for one in given], [plain(*one) for one in given])
    assert len(extractor.recordings._made) == 8


def test_recordings_stay_with_their_network_and_process(small: Backbone) -> None:
    extractor = FeatureExtractor(small, [PLAIN], passes="replayed")
    first, _ = [extractor(*one) for one in batches(2)]
    for made in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor.recordings))):
        own = made.recordings if isinstance(made, FeatureExtractor) else made
        assert own.kind == "replayed" and not own._made and not own._met
    assert equal([extractor(*batches(1)[0])], [first])


def test_training_and_evaluation_share_a_recording(small: Backbone) -> None:
    given = batches(4)
    expected, _ = features_of(small, [PLAIN], "eager", given)
    extractor = FeatureExtractor(small, [PLAIN], passes="replayed")
    actual = []
    for index, one in enumerate(given):
        with torch.inference_mode(index in (1, 2)):
            actual.append(extractor(*one))
    assert equal(actual, expected)


def test_a_controlnet_that_is_dropped_at_random_is_not_recorded(tiny: Any) -> None:
    branches = [Branch("plain", 50, LAYERS[:1], (Prompt(), ControlNet(dropout=0.5)))]
    extractor = FeatureExtractor(tiny[0], branches, passes="replayed")
    for index in range(4):
        extractor(random_images(2), conditions(2, captions=CAPTIONS, training=True, views=(str(index), "")))
    assert len(extractor.recordings._made) == 1  # the encoder's


def compiled_with(monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> list[dict[str, Any]]:
    """Options of every compilation, which is done by another backend."""
    asked: list[dict[str, Any]] = []
    original = torch.compile

    def compiled(graph: nn.Module, **options: Any) -> Any:
        asked.append(options)
        return original(graph, **options, **chosen)

    monkeypatch.setattr(torch, "compile", compiled)
    return asked


def check_compiled(backbone: Backbone, branches: Sequence[Branch], tolerance: float) -> None:
    expected, _ = features_of(backbone, branches, "eager", batches(3))
    actual, _ = features_of(backbone, branches, "compiled", batches(3))
    for one, other in zip(actual, expected, strict=True):
        assert all(relative(one[b][layer], v) < tolerance for b, layers in other.items() for layer, v in layers.items())


@pytest.mark.thorough
def test_a_recorded_pass_is_one_graph_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = compiled_with(monkeypatch, backend="eager")
    check_compiled(build("one_repeat"), [Branch("plain", 50, ("down-level1-repeat0-vit-out",))], 1e-7)
    assert [one["fullgraph"] for one in asked] == [True, True]  # encoder and denoiser; a break would be an error


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_features_are_equal_up_to_rounding(tiny: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile makes C++ on a CPU, and there is no g++")
    compiled_with(monkeypatch, backend=backend)
    branches = [Branch(name, 50, LAYERS[:1], tiny[1][name]) for name in ("plain", "moderate", "overtrained")]
    check_compiled(tiny[0], branches, 1e-5)


def test_operations_without_a_given_tensor_are_constants() -> None:
    layer, given = nn.Linear(3, 2), torch.randn(4, 3)
    with torch.no_grad():
        made = recorded(lambda: [layer(given) + torch.arange(2.0).exp(), torch.ones(2)], [given])
        other = torch.randn(4, 3)
        assert torch.equal(made(other)[0], layer(other) + torch.arange(2.0).exp())
    assert torch.equal(made(other)[1], torch.ones(2))
    names = [str(node.target) for node in made.graph.nodes if node.op == "call_function"]
    assert names == ["aten.addmm.default", "aten.add.Tensor"]


@torch.no_grad()
def test_what_a_graph_cannot_say_is_refused() -> None:
    given = torch.rand(3)
    with pytest.raises(ConfigError, match=r"_local_scalar_dense.* reads values; set passes=eager"):
        recorded(lambda: [given * given.sum().item()], [given])
    kept = torch.zeros(3)
    with pytest.raises(ConfigError, match=r"add_.* writes into a constant"):
        recorded(lambda: [kept.add_(given)], [given])
    images = torch.rand(2, 2000)
    with pytest.raises(ConfigError, match=r"reads a tensor \(2, 2000\) that is neither given nor a weight"):
        recorded(lambda: [given.sum() * images], [given])  # those of the next batch are others
    recorded(lambda: [given.sum() * images[:1]], [given], [images])
    made = recorded(lambda: [given.clone().mul_(2)[:2].add_(1)], [given])
    assert torch.equal(made(torch.ones(3))[0], torch.full((2,), 3.0))


@pytest.mark.parametrize("room", [True, False])
@torch.no_grad()
def test_passes_that_come_often_are_recorded_by_themselves(monkeypatch: pytest.MonkeyPatch, room: bool) -> None:
    """On a GPU with free memory; a recorded pass does not call the function that it was recorded from."""
    recordings, network, calls = Recordings("auto"), build("pixels"), []

    def doubled(given: Tensor) -> list[Tensor]:
        calls.append(given)
        return [2 * given]

    inputs = [torch.full((3,), float(index)) for index in range(14)]
    recordings.run(network, (), inputs[:1], lambda: doubled(inputs[0]))
    assert not recordings._met  # on a CPU there is nothing to gain
    monkeypatch.setattr(module, "_gpu_with_room", lambda device: room)
    for given in inputs:
        (found,) = recordings.run(network, (), [given], lambda given=given: doubled(given))  # type: ignore[misc]
        assert torch.equal(found, 2 * given)
    assert len(calls) == 1 + (11 if room else 14)
    assert len(recordings._made) == room


@torch.no_grad()
def test_by_themselves_only_passes_that_can_be(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(module, "_gpu_with_room", lambda device: True)
    recordings, network = Recordings("auto"), build("pixels")
    for index in range(14):
        given = torch.full((3,), float(index))
        (found,) = recordings.run(network, (), [given], lambda given=given: [given * given.sum().item()])  # type: ignore[misc]
        assert torch.equal(found, 3 * given.square())
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "reads values" in caplog.text and "Passes over (3,) are run operation by operation" in caplog.text


def test_recordings_are_dropped_before_passes_are_made_smaller(small: Backbone, caplog: Any) -> None:
    """Their memory may be what is missing."""
    given = batches(3)
    expected, _ = features_of(small, [PLAIN], "eager", given)

    def full(*given: Tensor) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …")

    found, extractor = features_of(small, [PLAIN], "replayed", given[:2])
    extractor.recordings._made = dict.fromkeys(extractor.recordings._made, full)
    assert equal([*found, extractor(*given[2])], expected)
    assert (extractor.recordings.kind, extractor.limit.most, extractor._encoding.most) == ("eager", None, None)
    assert caplog.text.count("recorded passes are dropped") == 1


def test_many_kinds_of_passes_are_run_as_they_are(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    recordings, network = Recordings("replayed"), build("pixels")
    for size in (1, 2, 3, 1, 2, 3, 1, 2, 3):
        given = torch.randn(size)
        with torch.no_grad():
            (twice,) = recordings.run(network, ("twice",), [given], lambda given=given: [given * 2])
        assert torch.equal(twice, given * 2)
    assert len(recordings._made) == 2
    assert caplog.text.count("2 kinds of passes are recorded") == 1


@pytest.mark.thorough
@torch.no_grad()
def test_products_of_adapters_are_recorded_too(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, known = tiny
    branches = [Branch(name, 50, LAYERS[:1], known[name]) for name in ("plain", "moderate", "overtrained")]
    expected, _ = features_of(backbone, branches, "eager", batches(3))
    monkeypatch.setattr(bank, "_bound_by_launches", lambda tensor: True)
    products, _ = features_of(backbone, branches, "eager", batches(3))
    actual, _ = features_of(backbone, branches, "replayed", batches(3))
    assert equal(actual, products) and not equal(actual, expected)
    for one, other in zip(actual, expected, strict=True):
        assert all(relative(one[b][layer], v) < 1e-5 for b, layers in other.items() for layer, v in layers.items())
