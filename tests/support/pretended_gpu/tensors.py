"""Tensors that say they are on ``cuda:0`` and hold their values on the CPU, by the rules of CUDA.

Two modes of torch see every call: one sees Python's (``.to``, ``torch.tensor``, ``.numpy`` …), as these decide by the
device that C++ knows of, which is the CPU; the other sees the operations, and computes them on the values. Autograd
works as it is.

Not told apart from a GPU: its numerics, its memory, its streams, and autocast of ``cuda``, which does not act on these
tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.pretended_gpu.record import Record, place

__all__ = ["GPU", "Calls", "GpuTensor", "MixedDevicesError", "Operations"]

GPU = torch.device("cuda:0")
#: with an index, to tell a wish for the host from C++, which takes tensors of the GPU to be on the CPU (without one)
HOST = torch.device("cpu", 0)
_aten: Any = torch.ops.aten
#: the driver keeps pageable copies to the GPU up to this size and returns at once (CUDA C++ programming guide)
SMALL_COPY = 64 * 1024
#: operations whose result has a size that only the values tell
_SIZE_OF_VALUES = frozenset(
    ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount")
)
#: operations that look at their result on the host
_LOOKED_AT = frozenset(("_local_scalar_dense", "equal", "_linalg_check_errors"))
#: the same storage, or nothing at all
_NO_KERNEL = frozenset(("detach", "_unsafe_view", "lift_fresh"))
_INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"))


class MixedDevicesError(RuntimeError):
    """An operation on tensors of the host and of the GPU, which CUDA refuses."""


class GpuTensor(Tensor):
    """A tensor on the pretended GPU.

    Attributes:
        held: the same on the CPU.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> GpuTensor:
        with torch.inference_mode(False):  # views of the others' tensors have to be of one kind
            made: GpuTensor = torch.Tensor._make_wrapper_subclass(
                cls,
                values.size(),
                strides=values.stride(),
                storage_offset=values.storage_offset(),
                dtype=values.dtype,
                device=torch.device("cpu"),  # autograd of a build without CUDA refuses another one
            )
        made.held = values
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} on a pretended GPU that is switched off")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.dtype}, {tuple(self.shape)})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # files hold the values; those who read them say where they go
        return self.held.detach().__reduce_ex__(protocol)


class Operations(TorchDispatchMode):
    """Computes the operations on the values; refuses what CUDA refuses."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return GPU
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        tensors = [*_tensors((*args, *kwargs.values()))]
        on_gpu = [one for one in tensors if isinstance(one, GpuTensor)]
        named = kwargs.get("device")
        to_gpu = bool(on_gpu) if named in (None, torch.device("cpu")) else named.type == "cuda"
        if not on_gpu and not to_gpu:
            return func(*args, **kwargs)
        if named is not None:
            kwargs["device"] = HOST
        if name == "copy_":
            return self._overwrite(*args, **kwargs)
        if name == "_to_copy" and bool(on_gpu) != to_gpu:
            return self._move(args[0], to_gpu, kwargs)
        self._check(name, args, tensors, on_gpu)
        if name in _LOOKED_AT or self._has_size_of_values(name, tensors, args):
            self.record.wait(name)
        result = func(*_values(args), **{key: _values(value) for key, value in kwargs.items()})
        if func.is_view or name in _NO_KERNEL:
            self.record.views[name] += 1
        else:
            self.record.operations[name] += 1
            self.record.written_bytes += sum(map(_bytes, _tensors((result,))))
        return _mapped(result, _Placed(on_gpu)) if to_gpu else result

    def _move(self, tensor: Tensor, to_gpu: bool, settings: Mapping[str, Any]) -> Tensor:
        non_blocking = bool(settings.get("non_blocking", False))
        settings = {key: value for key, value in settings.items() if key not in ("device", "non_blocking")}
        moved: Tensor = _aten._to_copy.default(_values(tensor), **settings)
        self._transfer(tensor, moved, to_gpu, non_blocking)
        return GpuTensor(moved) if to_gpu else moved

    def _overwrite(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        number = source.dim() == 0 and isinstance(target, GpuTensor)  # of `x[i] = 1.0`, which is filled in
        if number or isinstance(target, GpuTensor) == isinstance(source, GpuTensor):
            self.record.operations["copy_"] += 1
            self.record.written_bytes += _bytes(target)
        else:
            self._transfer(source, _values(source), isinstance(target, GpuTensor), non_blocking)
        _values(target).copy_(_values(source))
        return target

    def _transfer(self, source: Tensor, moved: Tensor, to_gpu: bool, non_blocking: bool) -> None:
        size = _bytes(moved)
        at_once = to_gpu and non_blocking and (size <= SMALL_COPY or getattr(source, "pinned", False))
        self.record.copy("to GPU" if to_gpu else "to host", size, not at_once)

    def _check(self, name: str, args: Sequence[Any], tensors: Sequence[Tensor], on_gpu: Sequence[Tensor]) -> None:
        """Refuse tensors of both devices, except for numbers and for indices on the host, which are copied."""
        if not on_gpu:
            return
        on_host = [one for one in tensors if not isinstance(one, GpuTensor)]
        if name in _INDEXING:
            indices = [one for one in args[1] if isinstance(one, Tensor)]
            if not isinstance(args[0], GpuTensor):
                raise MixedDevicesError(f"indices on the GPU into a tensor on the host, {name} at {place()}")
            for index in indices:
                if not isinstance(index, GpuTensor):
                    self.record.copy("to GPU", _bytes(index), waits=True)
            on_host = [one for one in on_host if all(one is not index for index in indices)]
        refused = [one for one in on_host if one.dim() > 0 or name in ("cat", "stack")]
        if refused:
            shapes = ", ".join(str(tuple(one.shape)) for one in refused)
            raise MixedDevicesError(f"tensors on the host {shapes} among those on the GPU, {name} at {place()}")

    @staticmethod
    def _has_size_of_values(name: str, tensors: Sequence[Tensor], args: Sequence[Any]) -> bool:
        if name == "repeat_interleave":
            return len(args) < 2 and not any(isinstance(one, int) for one in args)
        if name not in _INDEXING:
            return name in _SIZE_OF_VALUES
        masks = any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        filled = name != "index" and len(args) > 2 and args[2].numel() == 1  # that is masked_fill
        return masks and not filled


class Calls(TorchFunctionMode):
    """Calls of Python that C++ would answer by the device it knows of."""

    def __init__(self) -> None:
        super().__init__()
        self.own: dict[Any, Callable[..., Any]] = {
            torch.Tensor.to: _to,
            torch.Tensor.cpu: lambda tensor, **_: _moved(tensor, HOST),
            torch.Tensor.cuda: lambda tensor, device=None, non_blocking=False: _moved(tensor, GPU, non_blocking),
            torch.Tensor.tolist: _tolist,
            torch.Tensor.numpy: _numpy,
            torch.Tensor.__array__: _numpy,
            torch.Tensor.pin_memory: _pin,
            torch.Tensor.is_pinned: lambda tensor, *_: getattr(tensor, "pinned", False),
            torch.Tensor.new_tensor: _new_tensor,
            torch.Tensor.data.__get__: lambda tensor, *_: tensor.detach(),  # type: ignore[attr-defined]
            torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
            torch.tensor: _tensor,
            torch.as_tensor: _as_tensor,
            torch.nn.functional.one_hot: _one_hot,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu":
            kwargs["device"] = HOST
        return self.own.get(func, func)(*args, **kwargs)


def _moved(tensor: Tensor, device: torch.device, non_blocking: bool = False) -> Tensor:
    if tensor.device.type == device.type:
        return tensor
    device = GPU if device.type == "cuda" else HOST
    moved: Tensor = _aten._to_copy.default(tensor, device=device, non_blocking=non_blocking)
    return moved


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    kinds: dict[str, Any] = {
        "device": (str, torch.device, int),
        "dtype": torch.dtype,
        "other": Tensor,
        "non_blocking": bool,
    }
    for value in args:
        fits = [name for name, kind in kinds.items() if isinstance(value, kind)]
        if fits:
            kwargs[fits[-1]] = value  # the last: a bool is an int too
    other, device = kwargs.pop("other", None), kwargs.pop("device", None)
    non_blocking = kwargs.pop("non_blocking", False)
    if other is not None:
        device, kwargs["dtype"] = other.device, other.dtype
    if kwargs.get("dtype") is None:
        kwargs["dtype"] = tensor.dtype
    device = tensor.device if device is None else torch.device(device)
    if device.type == "meta":
        return torch.Tensor.to(tensor, device, **kwargs)
    if device.type == tensor.device.type:
        return torch.Tensor.to(tensor, **kwargs)
    device = HOST if device.type == "cpu" else device
    settings = {key: value for key, value in kwargs.items() if key in ("dtype", "memory_format") and value is not None}
    device = GPU if device.type == "cuda" else HOST
    made: Tensor = _aten._to_copy.default(tensor, device=device, non_blocking=non_blocking, **settings)
    return made


def _tolist(tensor: Tensor) -> Any:
    return _moved(tensor, HOST).detach().tolist()


def _numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(tensor, GpuTensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
    return torch.Tensor.numpy(tensor, *args, **kwargs) if not args else tensor.detach().numpy().astype(args[0])


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    if isinstance(tensor, GpuTensor):
        raise RuntimeError("cannot pin a tensor of the GPU")
    pinned = tensor.clone()
    pinned.pinned = True  # type: ignore[attr-defined]
    return pinned


def _set_data(tensor: Tensor, value: Tensor) -> None:
    torch.Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
    if isinstance(tensor, GpuTensor) and isinstance(value, GpuTensor):
        tensor.held = value.held


def _tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **kwargs: Any) -> Tensor:
    own = isinstance(data, GpuTensor)
    made = data.detach().clone() if own else torch.tensor(data, **kwargs)
    made = made if device is None else _moved(made, torch.device(device))
    return made.requires_grad_(requires_grad)


def _as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    made = data if isinstance(data, Tensor) else torch.as_tensor(data)
    return _to(made, device=device, dtype=dtype)


def _new_tensor(tensor: Tensor, data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
    return _tensor(data, dtype=dtype or tensor.dtype, device=device or tensor.device, **kwargs)


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    if not isinstance(tensor, GpuTensor) or num_classes < 0:
        return torch.nn.functional.one_hot(tensor, num_classes)
    # on the CPU it looks at the values first, on GPUs it does not
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=GPU)).long()


def _tensors(nested: Iterable[Any]) -> Iterator[Tensor]:
    for one in nested:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _tensors(one)


def _mapped(nested: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``nested`` with ``function`` applied to every tensor in it."""
    if isinstance(nested, Tensor):
        return function(nested)
    return type(nested)(_mapped(one, function) for one in nested) if type(nested) in (list, tuple) else nested


def _values(nested: Any) -> Any:
    return _mapped(nested, lambda one: one.held if isinstance(one, GpuTensor) else one)


class _Placed:
    """Results as tensors of the GPU; arguments that were changed in place are themselves."""

    def __init__(self, arguments: Sequence[GpuTensor]) -> None:
        self.known = {id(one.held): one for one in arguments}

    def __call__(self, result: Tensor) -> GpuTensor:
        known = self.known.get(id(result))
        return GpuTensor(result) if known is None else known


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
