"""Group norm of channels_last maps: the kernels (interpreted, and on a GPU), when they are called, and recordings."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from gate_lightning.backbones.kernels import dispatch
from gate_lightning.backbones.kernels import group_norm as module
from gate_lightning.backbones.kernels.dispatch import fast_ops
from gate_lightning.features.reading.recorded import Recordings, _of_torch, recorded
from tests.support.group_norms import check, maps
from tests.support.pretended_gpu import pretended_gpu
from tests.support.small_networks import build, relative

TYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGE = [(3, 320, 64, 64), (12, 1280, 8, 8), (3, 960, 64, 64), (1, 128, 512, 512), (2, 512, 64, 64)]

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="builds of torch for a CPU have no Triton")
def test_the_kernels_compute_group_norm() -> None:
    """In a process of its own, as kernels are interpreted from the import of Triton on."""
    command = [sys.executable, "-m", "tests.support.group_norms"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "shape", [(1, 320, 1, 1), (2, 320, 8, 12), (1, 128, 33, 17), (64, 640, 96, 96), (1, 4096, 7, 3), *LARGE]
)
def test_programs_share_all_positions(shape: tuple[int, ...]) -> None:
    shares = module._Shares.of(torch.Size(shape), 32)
    positions = shape[2] * shape[3]
    assert shares.rows * (shares.parts - 1) < positions <= shares.rows * shares.parts
    assert shares.parts <= module._MOST_PARTS and shares.rows % shares.tile == 0
    assert shares.groups * shares.width <= max(module._CHANNELS, shares.width)


def test_the_kernels_are_for_channels_last_maps_on_a_gpu_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "triton", object())
    monkeypatch.setattr(module, "_works", lambda device: True)
    given, one = maps(2, 32, 4, 6), torch.ones(32)
    with torch.no_grad(), pretended_gpu():
        there, weight = given.to("cuda:0"), one.to("cuda:0")
        assert module.group_norm_fits(there, 8, weight, weight)
        assert module.group_norm_fits(there.bfloat16(), 8, weight, weight)
        assert not module.group_norm_fits(given, 8, one, one)
        assert not module.group_norm_fits(there.contiguous(), 8, weight, weight)
        assert not module.group_norm_fits(there[:, :, :1, :1].contiguous(), 8, weight, weight)  # is both
        assert not module.group_norm_fits(there[:, :, 1:], 8, weight, weight)
        assert not module.group_norm_fits(there.flatten(2), 8, weight, weight)
        assert not module.group_norm_fits(there.double(), 8, weight, weight)
        assert not module.group_norm_fits(there, 8, None, weight)
        assert not module.group_norm_fits(there, 5, weight, weight)  # torch says what is wrong
        monkeypatch.setattr(module, "triton", None)
        assert not module.group_norm_fits(there, 8, weight, weight)
    monkeypatch.setattr(module, "triton", object())
    with pretended_gpu():
        assert not module.group_norm_fits(given.to("cuda:0"), 8, one.to("cuda:0"), one.to("cuda:0"))


def test_a_gpu_on_which_triton_fails_keeps_torchs(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def failing(*given: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(module, "group_norm_channels_last", failing)
    assert not module._works.__wrapped__(torch.device("cpu"))
    assert "Triton fails on cpu: Failed to find C compiler" in caplog.text


def test_a_gpu_on_which_they_give_something_else_keeps_torchs(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    assert module._works.__wrapped__(torch.device("cpu"))  # torch's own norm, in every type
    assert not caplog.text
    original = module.group_norm_channels_last

    def wrong(given: Tensor, *others: Any) -> Tensor:
        found = original(given, *others)
        return found * (1 + (len(given[0]) > 300) * 0.1)  # of maps in several parts alone

    monkeypatch.setattr(module, "group_norm_channels_last", wrong)
    assert not module._works.__wrapped__(torch.device("cpu"))
    assert "on cpu Triton's is off by 1e-01 of (1, 320, 40, 41) in torch.float32" in caplog.text
    monkeypatch.setattr(module, "group_norm_channels_last", lambda given, *others: given * torch.nan)
    assert not module._works.__wrapped__(torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_computes_as_without(dtype: torch.dtype) -> None:
    given, layer = maps(2, 64, 9, 7, dtype=dtype), torch.nn.GroupNorm(8, 64).to(dtype)
    with fast_ops():
        made = recorded(lambda: [layer(given)], [given])
        actual = layer(given)
    assert torch.equal(actual, layer(given))
    assert "group_norm_channels_last" not in str(made.graph)


@pytest.mark.thorough
@torch.no_grad()
def test_the_operator_is_recorded_and_compiled_as_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "group_norm_fits", lambda *given: True)
    layer = torch.nn.Sequential(torch.nn.Conv2d(8, 32, 1), torch.nn.GroupNorm(8, 32), torch.nn.SiLU())
    first, second = maps(2, 8, 9, 7), maps(2, 8, 9, 7)
    with fast_ops():
        made = recorded(lambda: [layer(first).permute(0, 2, 3, 1).view(2, -1, 32)], [first])
    targets = [node.target for node in made.graph.nodes if node.op == "call_function"]
    assert targets[1:3] == [module.group_norm_channels_last, torch.ops.aten.silu.default]
    expected = layer(second).permute(0, 2, 3, 1).reshape(2, -1, 32)
    assert relative(made(second)[0], expected) < 1e-6
    own = _of_torch(made)
    assert module.group_norm_channels_last not in [node.target for node in own.graph.nodes]
    assert torch.equal(torch.compile(own, fullgraph=True, backend="eager")(second)[0], own(second)[0])
    assert relative(own(second)[0], expected) < 1e-6


def test_the_operator_says_what_it_gives() -> None:
    torch.library.opcheck(
        module.group_norm_channels_last,
        (maps(2, 32, 4, 6), 8, torch.ones(32), torch.zeros(32), 1e-5),
        test_utils=("test_schema", "test_faketensor"),
    )


class TestOnAGpu:
    pytestmark = needs_gpu

    @pytest.mark.parametrize("dtype", TYPES)
    @pytest.mark.parametrize("shape", LARGE)
    def test_the_kernels_compute_group_norm(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        check(shape, 0.0, dtype, dtype, "cuda")
        check(shape, 100.0, dtype, torch.float32, "cuda")

    @pytest.mark.parametrize("shape", LARGE)
    def test_results_are_the_same_in_every_run(self, shape: tuple[int, ...]) -> None:
        given, one = maps(*shape, dtype=torch.bfloat16, device="cuda"), torch.ones(shape[1], device="cuda")
        first, second = (module.group_norm_channels_last(given, 32, one, one, 1e-5) for _ in range(2))
        assert torch.equal(first, second)

    @torch.no_grad()
    def test_a_cuda_graph_replays_them(self) -> None:
        layer = torch.nn.Sequential(torch.nn.Conv2d(8, 64, 1), torch.nn.GroupNorm(32, 64), torch.nn.SiLU())
        layer.to("cuda", torch.bfloat16, memory_format=torch.channels_last)
        recordings, network = Recordings("replayed"), build("pixels")
        with fast_ops():
            for _ in range(4):
                given = maps(2, 8, 33, 31, dtype=torch.bfloat16, device="cuda")
                (actual,) = recordings.run(network, ("block",), [given], lambda given=given: [layer(given)])
                assert torch.equal(actual, layer(given))
        (graph,) = recordings._made.values()
        assert isinstance(graph.graph, torch.cuda.CUDAGraph)
        expected = layer(given)  # outside: torch's
        assert relative(actual, expected) < 5e-3
        assert module._works(given.device)
