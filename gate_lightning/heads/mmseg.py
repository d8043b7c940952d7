"""Decode heads of mmsegmentation behind this project's head contract."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import Head, resize
from gate_lightning.heads.mmseg_kinds import KINDS, REFUSED, Kind, Read
from gate_lightning.ops.normalization import group_count

__all__ = ["WORKING_TYPES", "MMSegHead", "norm_config", "quiet"]

#: mmsegmentation's decode heads that ``MMSegHead`` builds.
WORKING_TYPES: tuple[str, ...] = tuple(KINDS)

# options that follow from the pyramid, or belong to the task
_COMPUTED = (
    *("in_index", "input_transform", "loss_decode", "loss_se_decode", "norm_cfg", "out_channels"),
    *("sampler", "ignore_index"),
)
_GROUP_NORM = "GateLightningGroupNorm"
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
            negative ones count from the coarsest). What a type makes of several levels is in `KINDS`: most resize them
            to the finest of them and concatenate, or take each for itself.
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
        _check_type(type)
        kind = KINDS[type]
        chosen = _levels_read(levels, len(self.in_channels))
        #: indices of the levels in the order in which the head gets them
        self.levels_read = _of_kind(chosen if order == "fine_first" else chosen[::-1], kind)
        read = Read(
            [self.in_channels[i] for i in self.levels_read], [self.strides[i] for i in self.levels_read], channels
        )
        self.reads = kind.reads
        head_class = _head_class(type, kind)
        _check_options(type, head_class, options)
        arguments: dict[str, Any] = {
            "channels": channels,
            **_inputs(read.channels, kind),
            **{name: default(read) for name, default in kind.defaults.items()},
            **options,
            **{name: derive(read) for name, derive in kind.derived.items()},
        }
        if kind.norm:
            arguments["norm_cfg"] = norm_config(norm)
        self.decode_head = _build(head_class, num_classes=num_classes, **arguments)
        if kind.finish is not None:
            kind.finish(self.decode_head)
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
        given = [levels[index] for index in self.levels_read]
        if self.reads in ("map", "equal"):
            size, corners = (given[0].shape[-2], given[0].shape[-1]), bool(self.decode_head.align_corners)
            given = [resize(level, size, corners) for level in given]
        if self.reads == "map":
            given = [torch.cat(given, dim=1) if len(given) > 1 else given[0]]
        logits = self.decode_head(given)
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


def _of_kind(read: list[int], kind: Kind) -> list[int]:
    """Of the levels asked for, in the order of the head, those that a type reads."""
    if kind.reads == "pair":
        return [read[0], read[0]] if len(read) == 1 else read[-2:]
    if kind.reads == "detail" and len(read) > 1:
        return [read[0], read[-1]]
    return read


def _inputs(channels: Sequence[int], kind: Kind) -> dict[str, object]:
    if kind.reads == "map":
        return {"in_channels": sum(channels), "in_index": 0}
    if kind.reads == "detail":
        return {"in_channels": channels[-1], "in_index": len(channels) - 1}
    return {"in_channels": list(channels), "in_index": list(range(len(channels)))}


def norm_config(norm: str) -> dict[str, object]:
    """mmsegmentation's description of the normalisation "GN", "BN" or "SyncBN"; raises ConfigError for another."""
    from mmengine.registry import MODELS

    if _GROUP_NORM not in MODELS:
        # by name: some heads look into the name of a norm
        MODELS.register_module(name=_GROUP_NORM, module=_GroupNorm)
    names = {"GN": _GROUP_NORM, "BN": "BN", "SyncBN": "SyncBN"}
    if norm not in names:
        raise ConfigError(f"norm={norm!r}; expected {', '.join(names)}")
    # a fresh dictionary: mmsegmentation may keep and change what it is given
    return {"type": names[norm]}


def _check_type(type_name: str) -> None:
    if type_name in REFUSED:
        raise ConfigError(f"head type {type_name!r} does not work: {REFUSED[type_name]}. {', '.join(KINDS)} do")
    if type_name not in KINDS:
        raise ConfigError(
            f"head type {type_name!r} is unknown{_did_you_mean(type_name, KINDS)}; mmsegmentation's that work: "
            f"{', '.join(KINDS)}"
        )


def _head_class(type_name: str, kind: Kind) -> Callable[..., nn.Module]:
    with quiet():
        import mmseg.models  # noqa: F401 - registers the heads; seconds, so only when a head is built
        from mmseg.registry import MODELS

        if kind.prepare is not None:
            kind.prepare()
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
            f"{name} cannot be built: {str(error) or 'it refuses these settings'}; it was given {shown}"
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
    accepted -= {"in_channels", "num_classes", "channels", *_COMPUTED, *KINDS[type_name].derived}
    for option in options:
        if option not in accepted:
            raise ConfigError(
                f"{type_name} has no option {option!r} to set{_did_you_mean(option, accepted)}; it takes "
                f"{', '.join(sorted(accepted))} (besides channels, norm and levels)"
            )


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""


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
