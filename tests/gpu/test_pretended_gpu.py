"""The pretended GPU itself: the rules of CUDA, and what is counted."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.support.pretended_gpu import GPU, GpuTensor, MixedDevicesError, Record, pretended_gpu


@pytest.fixture
def record() -> Iterator[Record]:
    with pretended_gpu() as found:
        yield found


def moved(*shape: int) -> Tensor:
    values = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return values.to(GPU, non_blocking=True)


def test_training_gives_the_numbers_of_the_cpu(record: Record) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    there = copy.deepcopy(plain).to(GPU)
    images = torch.randn(2, 3, 8, 8)
    assert all(isinstance(one, GpuTensor) and isinstance(one, nn.Parameter) for one in there.parameters())
    for network, given in ((plain, images), (there, images.to("cuda:0"))):
        optimizer = torch.optim.AdamW(network.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            network(given).square().mean().backward()
            optimizer.step()
    expected = plain.state_dict()
    for name, found in there.state_dict().items():
        assert found.device == GPU
        assert torch.equal(found.cpu(), expected[name])


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: moved(2) + torch.ones(2),
        lambda: torch.cat([moved(2), torch.ones(2)]),
        lambda: torch.stack([moved(1).sum(), torch.tensor(1.0)]),
        lambda: torch.ones(3)[torch.tensor([0]).to(GPU)],
        lambda: torch.ones(3).index_select(0, torch.tensor([0]).to(GPU)),
        lambda: nn.Linear(2, 2)(moved(2)),
        lambda: nn.functional.cross_entropy(moved(2, 3), torch.tensor([0, 1])),
    ],
)
def test_tensors_of_both_devices_are_refused(record: Record, mixed: Callable[[], Tensor]) -> None:
    with pytest.raises(MixedDevicesError):
        mixed()


def test_numbers_on_the_host_and_overwriting_are_allowed(record: Record) -> None:
    tensor = moved(3)
    tensor[1] = 7.0
    tensor.copy_(tensor * torch.tensor(2.0) + torch.where(tensor > 1, tensor, 0.5))
    assert record.waits.total() == 0
    tensor.copy_(torch.ones(3))
    assert tensor.device == GPU
    assert (record.copies.total(), record.waits.total()) == (2, 1)
    assert tensor.tolist() == [1, 1, 1]


def test_values_are_no_arrays(record: Record) -> None:
    with pytest.raises(TypeError, match="cuda:0"):
        moved(3).numpy()
    assert moved(3).cpu().numpy().tolist() == [0, 1, 2]
    assert moved(3).to("cpu", torch.float16).numpy().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "waiting",
    [
        lambda: moved(1).item(),
        lambda: bool(moved(2).sum() > 0),
        lambda: moved(3).nonzero(),
        lambda: moved(3)[moved(3) > 1],
        lambda: moved(4)[[0, 2]],
        lambda: moved(4)[torch.tensor([0, 2])],
        lambda: torch.tensor([1.0, 2.0], device=GPU),
        lambda: moved(3).new_tensor([1, 2]),
        lambda: moved(3).cpu(),
        lambda: torch.equal(moved(2), moved(2)),
        lambda: moved(3).unique(),
        lambda: torch.cuda.synchronize(),
    ],
)
def test_waits_of_the_host_are_counted(record: Record, waiting: Callable[[], object]) -> None:
    waiting()
    assert record.waits.total() == 1, record
    assert "test_pretended_gpu.py" in next(iter(record.waits))


def test_a_copy_to_the_host_may_convert(record: Record) -> None:
    found = moved(3).to("cpu", torch.float16)
    assert (found.device.type, found.dtype, found.numpy().tolist()) == ("cpu", torch.float16, [0, 1, 2])
    assert record.waits.total() == 1


def test_a_copy_waits_unless_it_is_small_or_pinned(record: Record) -> None:
    large = torch.ones(100_000)
    for tensor, non_blocking, waits in (
        (large, False, 1),
        (large, True, 1),
        (large.pin_memory(), True, 0),
        (large.pin_memory(), False, 1),
        (torch.ones(3), True, 0),
    ):
        record.clear()
        tensor.to(GPU, non_blocking=non_blocking)
        assert (record.copies.total(), record.waits.total()) == (1, waits)


def test_operations_are_told_from_views(record: Record) -> None:
    tensor = moved(4, 4)
    record.clear()
    (tensor.transpose(0, 1)[1:] * 2).add_(1)
    assert record.operations == {"mul": 1, "add_": 1}
    assert record.views == {"transpose": 1, "slice": 1}
    assert record.written_bytes == 2 * 3 * 4 * 4


def test_data_of_a_parameter_may_be_exchanged(record: Record) -> None:
    weight = nn.Parameter(moved(3))
    weight.data = moved(2)
    assert weight.data.device == GPU
    assert (weight * 2).tolist() == [0, 2]


def test_files_hold_the_values(record: Record) -> None:
    file = io.BytesIO()
    torch.save({"weight": nn.Parameter(moved(3))}, file)
    file.seek(0)
    assert torch.load(file, weights_only=True)["weight"].tolist() == [0, 1, 2]


def test_it_is_gone_afterwards() -> None:
    before = torch.cuda.is_available
    with pretended_gpu():
        tensor = moved(3)
        assert torch.cuda.is_available()
    assert torch.cuda.is_available is before
    with pytest.raises(RuntimeError, match="switched off"):
        tensor + 1
