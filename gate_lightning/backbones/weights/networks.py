"""Networks filled from files: every tensor is there, fits and is finite, or the network is refused.

A network is built without memory first and compared with the tensors of its files by name and shape. Nothing is built
that is larger than these, and nothing keeps the values it was initialised with.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gate_lightning.backbones.weights.checkpoints import read_safetensors
from gate_lightning.backbones.weights.locate import weight_files
from gate_lightning.errors import WeightsError, first_line
from gate_lightning.utils.text import read_json

__all__ = ["build_network", "check_fit", "check_numbers", "fill_network", "open_part", "read_files"]

_ALIGNMENT = 64  # bytes; what torch itself allocates at
_SHOWN = 3  # tensors that a message names
#: parameters of a network beyond those of its file, up to which what is missing is listed
_SPARE = 1000
_KINDS: Mapping[Any, str] = {float: "a number", bool: "true or false"}
#: names that wrappers of networks put before or between those of the layers
_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DataParallel or DistributedDataParallel"}
#: last module name of attention layers in files of diffusers before 0.13 → today's
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
#: buffers that count tokens: older files have them, newer ones do not
_COUNTERS = "position_ids"
#: number formats whose values every type of DTYPES holds, up to rounding: e8m0 and the packed ones are scales and codes
_FORMATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_FORMATS |= {torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}


def open_part(kind: type[Any], folder: Path, dtype: torch.dtype, files: Sequence[Path] = ()) -> Any:
    """One network of a diffusers or transformers folder, in evaluation mode.

    Args:
        kind: its class.
        folder: holds config.json and the weights.
        dtype: floating-point type to load as.
        files: its weights, see `weight_files`; empty for those without a variant.

    Raises:
        WeightsError: files missing or broken, of another class, or that do not cover the network.
    """
    path = folder / "config.json"
    config = read_json(path, WeightsError)
    made_by = config.get("_class_name", kind.__name__)
    if made_by != kind.__name__:
        raise WeightsError(f"{folder} holds a {made_by}, expected a {kind.__name__}")
    weights = read_files(files or weight_files(folder))
    if hasattr(kind, "from_config"):  # diffusers
        _check_types(kind, config, str(path))
        network = build_network(lambda: kind.from_config(config), config, len(weights), str(path))
    else:
        network = build_network(lambda: kind(kind.config_class.from_dict(config)), config, len(weights), str(path))
    return fill_network(network, _todays_names(network.state_dict(), weights), dtype, str(folder)).eval()


def read_files(paths: Sequence[Path]) -> dict[str, Tensor]:
    """Tensors of the files of one network."""
    weights: dict[str, Tensor] = {}
    for path in paths:
        tensors, _ = read_safetensors(path)
        twice = weights.keys() & tensors.keys()
        if twice:
            raise WeightsError(f"{path} holds {min(twice)}, and another file of {path.parent} holds it too")
        weights |= tensors
    return weights


def _check_types(kind: type[Any], config: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError for texts and the like where a diffusers network takes a number or true and false.

    No shape tells of these: a wrong one fails in the first pass, or, as a text "false", is taken for true.
    """
    for name, expected in get_type_hints(kind.__init__).items():
        value = config.get(name)
        fits = {
            float: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
            bool: isinstance(value, bool),
        }
        if value is not None and not fits.get(expected, True):
            raise WeightsError(f"{where}: {name}={value!r:.40}, expected {_KINDS[expected]}")


def build_network(make: Callable[[], Any], config: Mapping[str, Any], tensors: int, where: str) -> Any:
    """A network without memory (on the meta device).

    Args:
        make: constructor.
        config: what it is made by.
        tensors: tensors in its files. A network of many more is not built.
        where: source of the config, for messages.

    Raises:
        WeightsError: the config describes no such network, or one that the tensors are far too few for.
    """
    too_many = f"{where} describes a network of far more tensors than the {tensors} of its files"
    for key, value in config.items():
        counts = value if isinstance(value, list | tuple) else [value]
        if "layers" in key and any(isinstance(count, int) and count > tensors for count in counts):
            raise WeightsError(f"{too_many} ({key}={value!r})")
    try:
        with _at_most(2 * tensors + _SPARE, too_many), torch.device("meta"):
            return make()
    except WeightsError:
        raise
    except Exception as error:  # constructors of two libraries check little, and each in its own way
        raise WeightsError(
            f"{where} describes no network that can be built ({type(error).__name__}: {first_line(error)}); take the "
            f"config that belongs to the weights"
        ) from error


@contextmanager
def _at_most(count: int, message: str) -> Iterator[None]:
    """Context in which this thread may make ``count`` parameters."""
    left, thread = [count], threading.get_ident()

    def hook(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and threading.get_ident() == thread:
            left[0] -= 1
            if left[0] < 0:
                raise WeightsError(message)

    handle = register_module_parameter_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def fill_network(
    network: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype, where: str, advice: str = ""
) -> Any:
    """Give a network, which may be on the meta device, exactly these weights; the network.

    Args:
        network: filled in place, except that its parameters become new ones.
        weights: its state dict. Buffers that count tokens may be there or not.
        dtype: floating-point type to convert to.
        where: source of the weights, for messages.
        advice: last sentence of the error if names or shapes differ.

    Raises:
        WeightsError: tensors that are missing, not expected, of another shape, no numbers or not finite.
    """
    given = check_fit(network, weights, where, advice)
    converted = {name: check_numbers(tensor, name, where).to(dtype) for name, tensor in given.items()}
    for name, tensor in converted.items():
        _check_finite(tensor, given[name], name, where)
    network.load_state_dict(_aligned(converted, given), assign=True)
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta and name == _COUNTERS:
                module.register_buffer(name, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)
    empty = [name for name, tensor in (*network.named_parameters(), *network.named_buffers()) if tensor.is_meta]
    if empty:
        raise WeightsError(f"{where}: {', '.join(empty[:_SHOWN])} of {type(network).__name__} cannot be known from it")
    return network


def check_fit(network: nn.Module, weights: Mapping[str, Tensor], where: str, advice: str = "") -> dict[str, Tensor]:
    """The weights without buffers that count tokens; arguments as for `fill_network`.

    Raises:
        WeightsError: names or shapes other than those of the network.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tensor for name, tensor in weights.items() if name in wanted or not name.endswith(_COUNTERS)}
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    if found != wanted:
        raise WeightsError(_misfit(type(network).__name__, wanted, found, where, advice))
    return given


def check_numbers(tensor: Tensor, name: str, where: str) -> Tensor:
    """The tensor itself, if its number format is one that weights are computed in, or float8.

    Raises:
        WeightsError: whole numbers, codes or other formats.
    """
    if tensor.dtype not in _FORMATS:
        raise WeightsError(
            f"{where}: {name} is {str(tensor.dtype).removeprefix('torch.')}, a number format that is not read; "
            f"expected floating-point numbers of 64, 32, 16 or 8 bits: save a quantised model again as one of these"
        )
    return tensor


def _check_finite(tensor: Tensor, stored: Tensor, name: str, where: str) -> None:
    # a sum shows every NaN and Inf in a thirtieth of the time; where it overflows itself each number is looked at
    if tensor.sum(dtype=torch.float32).isfinite() or tensor.isfinite().all():
        return
    if stored.double().isfinite().all():
        kind = str(tensor.dtype).removeprefix("torch.")
        most, hint = float(stored.double().abs().max()), ""
        if tensor.dtype == torch.float16:
            hint = "; set backbone.dtype=bfloat16 or float32"
        raise WeightsError(f"{where}: {name} holds numbers up to {most:.3g}, too large for {kind}{hint}")
    raise WeightsError(f"{where} is broken: {name} holds values that are not finite; take another copy")


def _aligned(converted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The converted weights, with those that are read from the file's mapping copied if one is at an unaligned offset.

    Matrix kernels choose their blocking by alignment, so that the length of a file's header would change last bits. All
    are copied, because a single one keeps the mapping, and with it the pages of the whole file; where none has to be,
    processes of one machine share these.
    """
    mapped = {name for name, tensor in converted.items() if tensor is given[name] and tensor.device.type == "cpu"}
    if all(converted[name].data_ptr() % _ALIGNMENT == 0 for name in mapped):
        return converted
    return {name: tensor.clone() if name in mapped else tensor for name, tensor in converted.items()}


def _todays_names(wanted: Collection[str], weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights under the wanted names, where these are what the libraries call them today."""

    def renamed(name: str) -> str:
        path, _, part = name.rpartition(".")
        outer, _, last = path.rpartition(".")
        former = f"{outer}.{_FORMER.get(last, last)}.{part}"
        # CLIP's text model was a module of its own until transformers 5
        candidates = (name, former, name.removeprefix("text_model."))
        return next((candidate for candidate in candidates if candidate in wanted), name)

    names = {name: renamed(name) for name in weights}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    return {name if names[name] in twice else names[name]: tensor for name, tensor in weights.items()}


def _misfit(kind: str, wanted: Mapping[str, Any], found: Mapping[str, Any], where: str, advice: str) -> str:
    """Message about the differences of two sets of names and shapes."""
    for mark in _marks(wanted, found):
        # a wrapper around the whole network, or around its blocks
        for edit in ("removeprefix({!r})", "replace({!r}, '')"):
            bare = {_without(name, mark, edit): shape for name, shape in found.items()}
            if _todays_names(wanted, bare) == wanted:
                by = f", which {_WRAPPERS[mark]} puts there" if mark in _WRAPPERS else ""
                return (
                    f"{where} fits {kind} but for {mark!r} in the names of its tensors{by}: save it again without, as "
                    f"{{name.{edit.format(mark)}: tensor for name, tensor in state_dict.items()}}"
                )
    missing, more = [name for name in wanted if name not in found], [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {found[name]}, expected {wanted[name]}"
        for name in wanted
        if found.get(name, wanted[name]) != wanted[name]
    ]
    parts = [
        f"{len(names)} {what}, such as {separator.join(names[:_SHOWN])}"
        for names, what, separator in (
            (missing, "missing", ", "),
            (more, "not expected", ", "),
            (shapes, "of another shape", "; "),
        )
        if names
    ]
    return (
        f"{where} does not fit {kind}, which has {len(wanted)} tensors, and is not loaded in part: {'; '.join(parts)}. "
        f"{advice or 'Take a complete copy, and the config.json that belongs to it'}"
    )


def _marks(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Parts of the names in ``found`` that may hide the wanted ones."""
    yield from _WRAPPERS
    first = next(iter(wanted), "")
    yield from (name.removesuffix(first) for name in found if first and name.endswith(f".{first}"))


def _without(name: str, mark: str, edit: str) -> str:
    return name.removeprefix(mark) if edit.startswith("removeprefix") else name.replace(mark, "")
