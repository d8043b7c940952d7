"""Errors of the public functions: of the package, of what was given, and in the words of Python's callers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gate_lightning import (
    Branch,
    Conditions,
    ControlNet,
    DiskCache,
    FeatureExtractor,
    FeatureRecorder,
    IPAdapter,
    LoRA,
    MemoryCache,
    MultiBackboneExtractor,
    PooledExtractor,
    Prompt,
    extract,
    load_backbone,
    load_run,
    read_features,
    read_images,
    resolve_layers,
)
from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, DataError, GateError

LAYER = "up-level1-upsampler-out"


@cache
def backbone() -> Backbone:
    return load_backbone("tiny")


@cache
def extractor() -> FeatureExtractor:
    return FeatureExtractor(backbone(), [Branch("plain", 50, (LAYER,), prompt="a photo")])


IN_PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "controlnet": (
        lambda: backbone().require_controlnet("depth"),
        "load_backbone(…, controlnets={'depth': <folder>}) (++backbone.controlnets.depth=<folder>)",
    ),
    "lora": (
        lambda: LoRA("mine", weights="no.safetensors").prepare(backbone()),
        "LoRA('mine', weights=<file>) (technique.lora.weights.mine=<file>)",
    ),
    "ip_adapter": (lambda: IPAdapter().prepare(backbone()), "IPAdapter(weights=<file>, image_encoder=<folder>)"),
    "categories": (
        lambda: Branch("plain", 50, LAYER, prompt="a {category}").prompts(Conditions(("a",))),
        "the prompt technique: Prompt(<text>) (techniques=[prompt] technique.prompt.text=<text>)",
    ),
    "pooling": (
        lambda: PooledExtractor(extractor(), 0),
        "pooling (features.pooling)=0: expected a whole number from 1",
    ),
    "memory": (
        lambda: MemoryCache(extractor(), 0),
        "memory_gib (cache.memory_gib)=0: expected a number of GiB above 0",
    ),
    "endless memory": (lambda: MemoryCache(extractor(), float("inf")), "memory_gib (cache.memory_gib)=inf: expected"),
    "samples": (lambda: FeatureExtractor(backbone(), [branch()], max_samples=0), "or null (None) for no limit"),
    "no run": (lambda: load_run("nowhere"), "such as outputs/2026-01-01/12-00-00 (run=<folder>)"),
    "place": (
        lambda: MemoryCache(extractor(), 1, place="gpu"),
        "place (cache.place)='gpu': expected one of card, host",
    ),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", IN_PYTHON)
def test_messages_name_the_argument_first(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, expected = IN_PYTHON[case]
    with pytest.raises(GateError) as caught:
        call()
    message = str(caught.value)
    assert expected in message
    # a key comes behind the argument that it sets
    assert not message.startswith(("cache.", "features.", "technique."))


class _Given:
    """Arguments that fit, to be given in wrong places."""

    images = torch.zeros(1, 3, 64, 64)
    noise = np.zeros((1, 4, 16, 16), np.float32)
    one = Conditions(("a",))


class _BytesPath:
    """A path of bytes, as of os.scandir(b".")."""

    def __fspath__(self) -> bytes:
        return b"f"


def branch(**settings: Any) -> Branch:
    return Branch(**{"name": "plain", "timestep": 50, "layers": LAYER, **settings})


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a text for a number": (lambda: read_images("a.png", size="64"), "size='64': expected a whole number"),
    "three sides": (lambda: read_images("a.png", size=(8, 8, 3)), "size=(8, 8, 3): expected (height, width)"),
    "no pixels": (lambda: read_images("a.png", size=0), "size=0: expected a whole number from 1"),
    "pixels for paths": (lambda: read_images([np.zeros((8, 8, 3))]), "paths=<ndarray>: expected a path"),
    "no paths": (lambda: read_images(None), "paths=None: expected a path"),
    "one text": (lambda: read_images("a.png", captions="h"), "captions='h': expected a list of texts"),
    "numbers for texts": (lambda: read_images("a.png", captions=[3]), "captions=(3,): expected"),
    "a list of controls": (
        lambda: read_images("a.png", control_images=["a.png"]),
        "control_images=['a.png']: expected",
    ),
    "a branch": (lambda: FeatureExtractor(backbone(), branch()), "found <Branch>, expected a list of Branch"),
    "names": (lambda: FeatureExtractor(backbone(), ["x"]), "found 'x', expected a list of Branch objects"),
    "a name of a backbone": (lambda: FeatureExtractor("tiny", [branch()]), "backbone='tiny': expected a backbone"),
    "a seed": (lambda: FeatureExtractor(backbone(), [branch()], seed="x"), "seed='x': expected a whole number"),
    "a list of prompts": (lambda: branch(prompt=["a"]), "prompt=['a']: expected a text"),
    "tokens": (lambda: Prompt("a", tokens=3), "prompt.tokens=3: expected files of learned tokens"),
    "texts of a prompt": (lambda: Prompt(["a", "b"]), "prompt.text=['a', 'b']: expected one text"),
    "a half seed": (lambda: branch(noise_seed=1.5), "noise_seed=1.5: expected a whole number"),
    "a number of a branch": (lambda: branch(name=3), "name of a branch=3: expected a text"),
    "weights": (lambda: LoRA(weights=["a"]), "lora.weights=['a']: expected a file"),
    "an image": (lambda: ControlNet(image=_Given.images), "controlnet.image=<Tensor>: expected"),
    "no batch": (lambda: extractor()(_Given.images[0], _Given.one), "shape (3, 64, 64); expected a batch (B, 3, H, W)"),
    "no images": (lambda: extractor()(_Given.images[:0], Conditions(())), "of at least one"),
    "an array": (
        lambda: extractor()(_Given.images.numpy(), _Given.one),
        "images are of type ndarray; expected a tensor",
    ),
    "integers": (lambda: extractor()(_Given.images.byte(), _Given.one), "type torch.uint8; expected"),
    "no conditions": (lambda: extractor()(_Given.images, None), "conditions are of type NoneType; expected Conditions"),
    "noise": (
        lambda: Conditions(("a",), noise=_Given.noise),
        "noise is of type ndarray; expected a tensor: torch.from",
    ),
    "noise of a branch": (lambda: Conditions(("a",), noise={"x": _Given.noise}), "noise is of type ndarray"),
    "a control": (
        lambda: Conditions(("a",), control_images=_Given.images),
        "control_images is of type Tensor; expected",
    ),
    "an id": (lambda: Conditions("a.png"), "sample_ids='a.png': expected a tuple"),
    "a caption": (lambda: Conditions(("a",), captions="h"), "captions='h': expected a tuple"),
    "captions in no order": (lambda: Conditions(("a",), captions={"h"}), "captions={'h'}: expected a tuple"),
    "captions by name": (lambda: read_images("a.png", captions={"a.png": "h"}), "captions={'a.png': 'h'}: expected"),
    "one array": (lambda: Conditions(np.array("a")), "sample_ids=array('a', dtype='<U1'): expected a tuple"),
    "numbers of views": (lambda: Conditions(("a",), views=torch.zeros(1)), "views=tensor([0.]): expected a tuple"),
    "halves of pixels": (
        lambda: Conditions(("a",), windows=torch.zeros(1, 2)),
        "windows=tensor([[0., 0.]]): expected a tuple with two whole numbers, (top, left) pixels, for each image",
    ),
    "a text for a window": (lambda: Conditions(("a",), windows=("ab",)), "windows=('ab',): expected"),
    "three numbers for a window": (lambda: Conditions(("a",), windows=((0, 0, 0),)), "windows=((0, 0, 0),): expected"),
    "two views of one": (lambda: Conditions(("a",), views=("", "")), "views has 2 entries for 1 images"),
    "layers": (lambda: resolve_layers(backbone(), 3), "layers=3: expected a preset"),
    "a network": (lambda: FeatureRecorder(torch.nn.ReLU(), [LAYER]), "expected a backbone, such as load_backbone"),
    "extractors": (lambda: MultiBackboneExtractor([extractor()]), "extractors=<list>: expected names and extractors"),
    "scales": (lambda: MultiBackboneExtractor({"a": extractor()}, 0.5), "scales=0.5: expected names and factors"),
    "order": (lambda: MultiBackboneExtractor({"a": extractor()}, order=3), "order=3: expected a list"),
    "a backbone": (lambda: PooledExtractor(backbone(), 2), "extractor=<UNetBackbone>: expected an extractor"),
    "a cached array": (lambda: MemoryCache(extractor(), 1)(_Given.images.numpy(), _Given.one), "of type ndarray"),
    "a cached image": (
        lambda: DiskCache(extractor(), "c")(_Given.images[0], _Given.one),
        "shape (3, 64, 64); expected",
    ),
    "a folder": (lambda: DiskCache(extractor(), None), "folder=None: expected a path"),
    "views": (lambda: DiskCache(extractor(), "c", views=-1), "views=-1: expected a whole number"),
    "inputs": (lambda: extract(extractor(), ["a.png"], "o"), "input=['a.png']: expected a path"),
    "workers": (
        lambda: extract(extractor(), "a.png", "o", num_workers=-1),
        "num_workers (tool.num_workers)=-1: expected",
    ),
    "no batches": (
        lambda: extract(extractor(), "a.png", "o", batch_size=0),
        "batch_size (tool.batch_size)=0: expected a whole number from 1",
    ),
    "a device": (lambda: extract(extractor(), "a.png", "o", device=None), "device=None: expected auto, cpu"),
    "features": (lambda: read_features(None), "path=None: expected a path"),
    "a home of nobody": (lambda: read_features("~nobody-here/f"), "path='~nobody-here/f': expected a path"),
    "a path of bytes": (lambda: read_features(_BytesPath()), "expected a path"),
    "a run": (lambda: load_run(3), "folder=3: expected a path"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_said_to_be_wrong(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("a.png")
    call, expected = WRONG[case]
    with pytest.raises((ConfigError, DataError)) as caught:
        call()
    assert expected in str(caught.value)


def test_numbers_of_numpy_and_single_names_are_taken(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    assert read_images(tmp_path / "a.png", size=np.int64(32))[0].shape == (1, 3, 32, 32)
    assert read_images(tmp_path / "a.png", size=np.array([32, 40]))[0].shape == (1, 3, 32, 40)
    seeded = FeatureExtractor(backbone(), [branch()], seed=np.int64(1))
    assert seeded.description["seed"] == 1 and type(seeded.seed) is int
    assert list(FeatureRecorder(backbone(), LAYER).specs) == list(backbone().feature_info(LAYER)) == [LAYER]
    # a list of names is kept as a tuple, so that rows of the conditions have their own
    assert Conditions(["a", "b"], captions=["c", "d"])[1] == Conditions(("b",), captions=("d",))


def test_arrays_of_texts_and_of_windows_are_kept_as_plain_tuples(tmp_path: Path) -> None:
    texts, windows = np.array(["a", "b"]), np.array([[0, 8], [16, 0]])
    given = Conditions(texts, views=texts, windows=windows, captions=texts, categories=texts)
    assert given == Conditions(*[("a", "b")] * 2, ((0, 8), (16, 0)), *[("a", "b")] * 2)
    # NumPy's own kinds of text and number would be written into files and keys as such
    assert {type(entry) for entry in (*given.sample_ids, *given.views, *given.captions)} == {str}
    assert {type(pixels) for window in given.windows for pixels in window} == {int}
    assert Conditions(texts, windows=(windows[0], [16, 0])) == Conditions(("a", "b"), windows=((0, 8), (16, 0)))
    assert Conditions(texts, views=[], windows=[]) == Conditions(("a", "b"))
    assert Conditions(("a",), views=np.array([""])) == Conditions(("a",))
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    assert read_images(tmp_path / "a.png", captions=np.array(["h"]))[1].captions == ("h",)


def test_entries_of_folders_are_paths(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    with os.scandir(tmp_path) as entries:
        entry = next(entries)
    assert read_images(entry)[1].sample_ids == read_images([entry])[1].sample_ids == ("a.png",)
    for file in (entry, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert Prompt("a", tokens=file).tokens == Prompt("a", tokens=[file]).tokens == (str(tmp_path / "a.png"),)
        assert Prompt(embedding=file).embedding == str(tmp_path / "a.png")


def test_changed_conditions_do_not_check_their_entries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Conditions(("a", "b"), noise={"x": torch.arange(2.0)}, control_images={"depth": torch.zeros(2, 3, 8, 8)})
    asked: list[Conditions] = []
    monkeypatch.setattr(Conditions, "__post_init__", asked.append)
    moved = [given.read_by(3), given[1:], given.to("cpu"), given.at_window(1, 2), given.map_controls(torch.neg)]
    assert not asked
    assert (moved[0].source, moved[1].sample_ids, moved[3].windows) == (3, ("b",), ((1, 2),) * 2)
    assert given.source is None and given.windows == ((0, 0),) * 2
