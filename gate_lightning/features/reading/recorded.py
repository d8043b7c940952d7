"""Passes of a fixed shape as one graph of operations, recorded once and replayed.

A pass of a frozen network sends over a thousand small operations, each through python code of several libraries. All
that depends on the shapes, the branches and the timestep alone, so a second pass of the same kind is recorded: its
operations on tensors, in their order, without the modules, hooks and exceptions that led to them. What does not depend
on the given tensors (time embeddings, transposed weights) is computed while recording and is a constant of the graph.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.kernels.group_norm import group_norm_channels_last, plain_group_norm
from gate_lightning.errors import ConfigError
from gate_lightning.utils.checks import check_choice

__all__ = ["PassKind", "Recordings", "recorded"]

log = logging.getLogger(__name__)

#: how passes are run: replayed on a GPU, else eager; operation by operation; replayed (on a GPU as a CUDA graph);
#: compiled, and then replayed
PassKind = Literal["auto", "eager", "replayed", "compiled"]
#: given tensors → results
_Function = Callable[..., Sequence[Tensor]]
#: most recordings that are kept
_MOST = 64
#: most values of a constant that may come from anywhere
_TABLE = 1024
#: earlier passes of a kind, after which it is recorded; recording takes as long as ten passes are shorter for it
#: (docs/gpu.md), so "auto" waits for those that are likely to come often
_EARLIER: Mapping[PassKind, int] = {"auto": 10, "replayed": 1, "compiled": 1}
#: runs of a function before it is captured, in which libraries allocate and choose what they need
_WARM_UP = 3


class Recordings:
    """Functions of tensors, run as they are when first met, recorded when met again, and replayed from then on.

    Args:
        kind: "replayed" gives results equal to the bit; "compiled" up to rounding; "eager" records nothing; "auto" is
            "replayed" on a GPU, for passes met ten times, while half its memory is free: a recorded pass keeps what it
            computes in, and where memory is full, passes are so large that sending operations costs little; "eager"
            elsewhere, and for what cannot be recorded.
    """

    def __init__(self, kind: PassKind = "eager") -> None:
        check_choice(kind, "passes", get_args(PassKind))
        self.kind = kind
        self._met: Counter[tuple[object, ...]] = Counter()
        #: None: run as it is
        self._made: dict[tuple[object, ...], _Function | None] = {}
        self._pool: Any = None

    def give_up(self) -> bool:
        """Drop all recordings and make no more, because memory has run out; False if there are none."""
        if not self._made:
            return False
        log.warning("out of memory: recorded passes are dropped, and passes are run operation by operation")
        self.kind, self._pool = "eager", None
        self._made.clear()
        torch.cuda.empty_cache()
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, (self.kind,)  # a copy belongs to another network, or to another process

    def run(
        self, network: Backbone, key: tuple[object, ...], given: Sequence[Tensor], function: Callable[[], list[Tensor]]
    ) -> list[Tensor]:
        """Call ``function()``, or replay its recording for the given tensors.

        Args:
            network: whose weights it reads.
            key: all that the operations depend on besides the shapes, types and devices of ``given``.
            given: all tensors it reads that are not the same in every call with this key.
            function: without effects but its results.
        """
        if self.kind == "eager" or torch.is_grad_enabled():
            return function()
        # the weights of a network that was moved or converted are elsewhere
        weights = next((one.data_ptr() for one in network.parameters()), 0)
        key = (*key, weights, *((one.shape, one.stride(), one.dtype, one.device) for one in given))
        if key not in self._made:
            if not self._due(key, given[0].device):
                return function()
            self._made[key] = self._record(network, given, function)
            if len(self._made) == _MOST:
                log.warning("%d kinds of passes are recorded; further ones are run as they are", _MOST)
        made = self._made[key]
        return function() if made is None else list(made(*given))

    def _due(self, key: tuple[object, ...], device: torch.device) -> bool:
        """True if a pass that has come again is to be recorded."""
        if len(self._made) >= _MOST or (self.kind == "auto" and not _gpu_with_room(device)):
            return False
        self._met[key] += 1
        return self._met[key] > _EARLIER[self.kind]

    def _record(
        self, network: Backbone, given: Sequence[Tensor], function: Callable[[], list[Tensor]]
    ) -> _Function | None:
        """A recording; None where the GPU has no room for one, or "auto" meets what cannot be recorded."""
        try:
            # what is kept must be of use in and outside of inference mode
            with torch.inference_mode(False), torch.no_grad():
                return self._replayable(recorded(function, given, network.fixed_tensors()), given)
        except torch.OutOfMemoryError:
            reason = "the GPU has no room for a recorded pass"
        except ConfigError as error:
            if self.kind != "auto":
                raise
            reason = str(error)
        log.warning("%s. Passes over %s are run operation by operation", reason, tuple(given[0].shape))
        torch.cuda.empty_cache()
        return None

    def _replayable(self, graph: fx.GraphModule, given: Sequence[Tensor]) -> _Function:
        function: _Function = graph
        if self.kind == "compiled":
            function = torch.compile(_of_torch(graph), fullgraph=True, dynamic=False)
        if given[0].is_cuda:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            function = _CudaGraph(function, given, self._pool)
        return function


def recorded(
    function: Callable[[], Sequence[Tensor]], given: Sequence[Tensor], fixed: Iterable[Tensor] = ()
) -> fx.GraphModule:
    """The operations that lead from tensors to the results of a function, as a module: ``given`` → tuple of results.

    Args:
        function: to be recorded; it is run once.
        given: what it reads, and is to read other values of.
        fixed: what it may read besides, larger than a table.

    Raises:
        ConfigError: an operation depends on values that only the device knows, writes into a constant, or reads a
            tensor that is neither given nor fixed.
    """
    recorder = _Recorder(given, fixed)
    with recorder:
        results = function()
    graph = recorder.graph
    graph.output(tuple(recorder.node_of(one) for one in results))
    graph.eliminate_dead_code()
    return fx.GraphModule(recorder.root, graph, "RecordedPass")


class _Recorder(TorchDispatchMode):
    """Writes operations into a graph; those without a tensor that depends on the given ones are constants."""

    def __init__(self, given: Sequence[Tensor], fixed: Iterable[Tensor]) -> None:
        super().__init__()
        self._fixed = {_memory(one) for one in fixed}
        self._own: Any = WeakTensorKeyDictionary()  # constants that were made while recording
        self.root, self.graph = nn.Module(), fx.Graph()
        self._nodes: Any = WeakTensorKeyDictionary()
        self._constants: Any = WeakTensorKeyDictionary()
        for index, tensor in enumerate(given):
            self._nodes[tensor] = self.graph.placeholder(f"given_{index}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if func.namespace == "prim" or not any(one in self._nodes for one in tensors):
            return self._constant(func(*args, **kwargs), tensors)
        if _reads_values(func, args):
            raise _refused(f"{func} reads values")
        if any(one not in self._nodes for one in _written(func, args, kwargs)):
            raise _refused(f"{func} writes into a constant")
        node = self.graph.call_function(func, *map_aggregate((args, kwargs), self._argument))
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._nodes[result] = node
        elif isinstance(result, tuple | list):
            for index, one in enumerate(result):
                if isinstance(one, Tensor):
                    self._nodes[one] = self.graph.call_function(operator.getitem, (node, index))
        return result

    def _constant(self, result: Any, tensors: Sequence[Tensor]) -> Any:
        """The result of an operation on other tensors than the given ones."""
        for one in tensors:
            self._check_constant(one)
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._own[one] = True
        return result

    def _check_constant(self, tensor: Tensor) -> None:
        if tensor in self._own or tensor in self._nodes or tensor.numel() <= _TABLE:
            return
        if _memory(tensor) not in self._fixed:
            raise _refused(f"it reads a tensor {tuple(tensor.shape)} that is neither given nor a weight")

    def _argument(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that makes a tensor; a constant where no recorded operation does."""
        if tensor in self._nodes:
            return self._nodes[tensor]
        if tensor not in self._constants:
            self._check_constant(tensor)
            name = f"constant_{len(self._constants)}"
            self.root.register_buffer(name, tensor, persistent=False)
            self._constants[tensor] = name
        return self.graph.get_attr(self._constants[tensor])


def _gpu_with_room(device: torch.device) -> bool:
    """True if it is a GPU, half of whose memory or more is in nobody's use."""
    if device.type != "cuda":
        return False
    free, total = torch.cuda.mem_get_info(device)
    return 2 * free >= total


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _reads_values(func: Any, args: Any) -> bool:
    """True if an operation, or the shape of its result, depends on values of its arguments."""
    if func is torch.ops.aten.index.Tensor:
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Tensors that an operation changes."""
    found = []
    for index, argument in enumerate(func._schema.arguments if func._schema.is_mutable else ()):
        value = args[index] if index < len(args) else kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
            found.append(value)
    return found


def _refused(reason: str) -> ConfigError:
    return ConfigError(f"a pass of the backbone cannot be recorded: {reason}; set passes=eager (features.passes=eager)")


def _of_torch(graph: fx.GraphModule) -> fx.GraphModule:
    """A graph without operators of our own, which the compiler cannot fuse with others; it is changed in place."""
    for node in graph.graph.nodes:
        if node.target is group_norm_channels_last:
            node.target = plain_group_norm
    graph.recompile()
    return graph


class _CudaGraph:
    """A function of tensors on a GPU whose kernels are sent as one.

    Args:
        function: of tensors of the shapes of ``given``.
        given: tensors to try it with.
        pool: of memory, shared with others of which only one runs at a time.
    """

    def __init__(self, function: _Function, given: Sequence[Tensor], pool: Any) -> None:
        self.given = [one.clone(memory_format=torch.preserve_format) for one in given]
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                function(*self.given)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        failed: torch.OutOfMemoryError | None = None
        # threads that pin batches or watch other processes may call CUDA meanwhile
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            try:
                self.results = function(*self.given)
            except torch.OutOfMemoryError as error:  # leaving a capture by an error hides which one
                failed = error
        if failed is not None:
            raise failed

    def __call__(self, *given: Tensor) -> list[Tensor]:
        for own, one in zip(self.given, given, strict=True):
            own.copy_(one)
        self.graph.replay()
        return [one.clone() for one in self.results]  # the next replay writes to the same memory
