"""Decode heads of mmsegmentation behind this project's head contract."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import Head
from gate_lightning.ops.normalization import group_count

__all__ = ["WORKING_TYPES", "MMSegHead", "norm_config", "quiet"]


@dataclass(frozen=True)
class _Kind:
    """What a head type reads, and what must be known to build it.

    Attributes:
        reads: "levels": a list of levels. "map": one map, for which several levels are resized and concatenated.
        derived: option → function of the strides read.
        frozen: suffixes of parameters that no gradient can ever reach and that are therefore not trained: biases that
            a softmax or a centring takes out again, and classifiers of intermediate outputs that are not used here.
        frozen_with_batch_norm: the same, where the reason is a batch normalisation further on.
    """

    reads: Literal["levels", "map"]
    derived: dict[str, Callable[[Sequence[int]], object]] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    frozen_with_batch_norm: tuple[str, ...] = ()


# Types that build without compiled operators, run without a further network's output and learn. Each is in the tests.
_KINDS: dict[str, _Kind] = {
    "APCHead": _Kind("map"),
    "ASPPHead": _Kind("map"),
    "DAHead": _Kind("map", frozen=("pam.key_project.bias", "am_conv_seg.weight", "am_conv_seg.bias")),
    "DMHead": _Kind("map"),
    "DNLHead": _Kind(
        "map",
        frozen=("theta.conv.bias", "phi.conv.bias", "conv_mask.bias"),
        frozen_with_batch_norm=("g.conv.bias",),
    ),
    "DepthwiseSeparableFCNHead": _Kind("map", frozen_with_batch_norm=("depthwise_conv.bn.bias",)),
    "EMAHead": _Kind("map"),
    "FCNHead": _Kind("map"),
    "FPNHead": _Kind("levels", derived={"feature_strides": list}),
    "GCHead": _Kind("map", frozen=("conv_mask.bias",)),
    "ISAHead": _Kind("map", frozen_with_batch_norm=("value_project.bias",)),
    "NLHead": _Kind("map", frozen=("phi.conv.bias",), frozen_with_batch_norm=("g.conv.bias",)),
    "PSPHead": _Kind("map"),
    "SETRUPHead": _Kind("map"),
    "SegformerHead": _Kind("levels"),
    "UPerHead": _Kind("levels"),
}
#: mmsegmentation's decode heads that ``MMSegHead`` builds.
WORKING_TYPES: tuple[str, ...] = tuple(_KINDS)

# options that follow from the pyramid, or belong to the task
_COMPUTED = ("in_index", "input_transform", "loss_decode", "norm_cfg", "out_channels", "sampler", "ignore_index")
_PLACES = ("all", "finest", "middle", "coarsest")
_ORDERS = ("fine_first", "coarse_first")


class _GroupNorm(nn.GroupNorm):
    """Group normalisation that finds a number of groups for any number of channels.

    mmcv's own takes one number for the whole head, which few numbers of channels divide.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(group_count(num_features), num_features, eps=eps)


class MMSegHead(Head):
    """A decode head of mmsegmentation, by name.

    Channels and strides come from the amalgamation; ``init_weights()``, which mmsegmentation leaves to its own
    runner, is called; parameters that can never receive a gradient are frozen. Its losses are not used.

    Args:
        in_channels: channels of each level, finest level first.
        strides: pixels per position of each level, growing.
        num_classes: K.
        type: one of ``WORKING_TYPES``.
        channels: width of the head.
        norm: "GN" (group, does not depend on the batch), "BN" (batch) or "SyncBN" (batch over processes, GPU only).
        levels: which levels it reads: "all", "finest", "middle", "coarsest" or a list of indices (0 is the finest,
            negative ones count from the coarsest). A head that reads one map gets several levels resized to the finest
            of them and concatenated.
        order: "fine_first", as mmsegmentation means its heads to be used, or "coarse_first", as GATE's released
            configurations list their levels: the head takes the coarsest level for the finest, works at its resolution
            (UPerHead then pools the finest level) and leaves the logits there.
        options: what else the type takes, for example ``pool_scales`` of UPerHead, ``num_convs`` of FCNHead and
            ``dropout_ratio`` of all of them.

    Raises:
        ConfigError: for a type, norm, level, order or option that does not work, naming those that do.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        type: str = "UPerHead",
        channels: int = 256,
        norm: Literal["GN", "BN", "SyncBN"] = "GN",
        levels: str | Sequence[int] = "all",
        order: Literal["fine_first", "coarse_first"] = "fine_first",
        **options: Any,
    ) -> None:
        super().__init__(in_channels, strides, num_classes)
        if order not in _ORDERS:
            raise ConfigError(f"order={order!r}; expected {' or '.join(_ORDERS)}")
        self.order = order
        if type not in _KINDS:
            raise ConfigError(f"head type {type!r} does not work{_did_you_mean(type, _KINDS)}; {', '.join(_KINDS)} do")
        kind = _KINDS[type]
        read = _levels_read(levels, len(self.in_channels))
        channels_read, strides_read = ([given[index] for index in read] for given in (self.in_channels, self.strides))
        if order == "coarse_first":
            # what the head gets is the reversed list of levels
            channels_read, strides_read = channels_read[::-1], strides_read[::-1]
            read = [len(self.in_channels) - 1 - index for index in reversed(read)]
        head_class = _head_class(type)
        _check_options(type, head_class, options)
        arguments = {
            **_inputs(channels_read, read, kind),
            **{name: compute(strides_read) for name, compute in kind.derived.items()},
            **options,
        }
        self.decode_head = _build(
            head_class, channels=channels, num_classes=num_classes, norm_cfg=norm_config(norm), **arguments
        )
        frozen = kind.frozen if norm == "GN" else (*kind.frozen, *kind.frozen_with_batch_norm)
        for name, parameter in self.decode_head.named_parameters():
            if name.endswith(frozen):
                parameter.requires_grad_(False)

    @property
    def resolution(self) -> int:
        """See Head: the coarsest level where that comes first."""
        return 0 if self.order == "fine_first" else len(self.in_channels) - 1

    def predict(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at the resolution the head works at."""
        logits = self.decode_head(list(levels) if self.order == "fine_first" else list(levels)[::-1])
        # some heads return intermediate outputs behind the one that counts
        chosen: Tensor = logits[0] if isinstance(logits, (tuple, list)) else logits
        return chosen


def _levels_read(levels: str | Sequence[int], count: int) -> list[int]:
    places = {"all": list(range(count)), "finest": [0], "middle": [count // 2], "coarsest": [count - 1]}
    if isinstance(levels, str):
        if levels not in places:
            raise ConfigError(f"levels={levels!r}; expected {', '.join(_PLACES)} or a list of indices")
        return places[levels]
    read = sorted({index % count for index in levels if -count <= index < count})
    if not read or len(read) != len(list(levels)):
        raise ConfigError(f"levels={list(levels)}; the pyramid has levels 0 … {count - 1}; name each at most once")
    return read


def _inputs(in_channels: list[int], read: list[int], kind: _Kind) -> dict[str, object]:
    if kind.reads == "levels":
        return {"in_channels": in_channels, "in_index": read}
    if len(read) == 1:
        return {"in_channels": in_channels[0], "in_index": read[0]}
    return {"in_channels": in_channels, "in_index": read, "input_transform": "resize_concat"}


def norm_config(norm: str) -> dict[str, object]:
    """mmsegmentation's description of the normalisation "GN", "BN" or "SyncBN"; raises ConfigError for another."""
    # fresh dictionaries: mmsegmentation may keep and change what it is given
    configs: dict[str, dict[str, object]] = {
        "GN": {"type": _GroupNorm},
        "BN": {"type": "BN"},
        "SyncBN": {"type": "SyncBN"},
    }
    if norm not in configs:
        raise ConfigError(f"norm={norm!r}; expected {', '.join(configs)}")
    return configs[norm]


def _head_class(type_name: str) -> Callable[..., nn.Module]:
    with quiet():
        import mmseg.models  # noqa: F401 - registers the heads; seconds, so only when a head is built
        from mmseg.registry import MODELS
    head_class: Callable[..., nn.Module] = MODELS.get(type_name)
    return head_class


def _build(head_class: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    try:
        with quiet():
            head = head_class(**arguments)
            head.init_weights()  # type: ignore[operator]
    except (AssertionError, TypeError, ValueError) as error:
        name = getattr(head_class, "__name__", head_class)
        shown = {key: value for key, value in arguments.items() if key != "norm_cfg"}
        raise ConfigError(
            f"{name} cannot be built: {error or 'it refuses these settings'}; it was given {shown}"
        ) from error
    return head


def _check_options(type_name: str, head_class: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    accepted = {
        name
        for base in inspect.getmro(head_class)  # type: ignore[arg-type]
        if base.__module__.startswith("mmseg.")
        for name, parameter in inspect.signature(base).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    accepted -= {"in_channels", "num_classes", "channels", *_COMPUTED, *_KINDS[type_name].derived}
    for option in options:
        if option not in accepted:
            raise ConfigError(
                f"{type_name} has no option {option!r} to set{_did_you_mean(option, accepted)}; it takes "
                f"{', '.join(sorted(accepted))} (besides channels, norm and levels)"
            )


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep mmsegmentation's lines about optional packages and initialisation off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
