"""Decode heads of mmsegmentation (optional extra ``mmseg``) behind this project's head contract."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gate_lightning.errors import ConfigError
from gate_lightning.heads.base import Head, resize
from gate_lightning.ops.normalization import group_count
from gate_lightning.utils.checks import check_choice, did_you_mean

__all__ = ["WORKING_TYPES", "MMSegHead", "norm_config", "quiet"]

# Input of a type. "levels": a list of levels. "map": one map, the levels resized to the first of them and
# concatenated. "detail": the last level, and the first one too if there are several.
_READS: dict[str, Literal["levels", "map", "detail"]] = {
    **dict.fromkeys(("FPNHead", "SegformerHead", "UPerHead"), "levels"),
    **dict.fromkeys(("APCHead", "ASPPHead", "DMHead", "EMAHead", "FCNHead", "PSPHead", "SETRUPHead"), "map"),
    "DepthwiseSeparableASPPHead": "detail",
}

#: types that build from channels and options alone
WORKING_TYPES: tuple[str, ...] = tuple(_READS)

# options that follow from the pyramid, or belong to the task
_COMPUTED = {
    *("in_channels", "num_classes", "channels", "in_index", "input_transform", "norm_cfg", "out_channels"),
    *("loss_decode", "sampler", "ignore_index", "feature_strides", "c1_in_channels"),
}
_GROUP_NORM = "GateLightningGroupNorm"
_ORDERS = ("fine_first", "coarse_first")


class _GroupNorm(nn.GroupNorm):
    """Group normalisation with a number of groups for any number of channels.

    mmcv's own takes one number for the whole head, which few numbers of channels divide.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(group_count(num_features), num_features, eps=eps)


class MMSegHead(Head):
    """A decode head of mmsegmentation, by name.

    Channels and strides come from the amalgamation. The head is initialised by its ``init_weights()``; its losses are
    not used.

    Args:
        in_channels: channels of each level, finest level first.
        strides: pixels per position of each level, growing.
        num_classes: K.
        type: one of ``WORKING_TYPES``.
        channels: width of the head.
        norm: "GN" (group, does not depend on the batch), "BN" (batch) or "SyncBN" (batch over processes, GPU only).
        levels: levels that are read: "all", "finest", "middle", "coarsest" or a list of indices (0 is the finest,
            negative ones count from the coarsest). UPerHead, FPNHead and SegformerHead take them one by one;
            DepthwiseSeparableASPPHead takes the first and the last; the others resize them to the finest of them and
            concatenate.
        order: "fine_first", as mmsegmentation means its heads to be used, or "coarse_first", as GATE's released
            configurations list their levels: the head takes the coarsest level for the finest, works at its resolution
            (UPerHead then pools the finest level) and leaves the logits there.
        options: further arguments of the type, for example ``pool_scales`` of UPerHead, ``num_convs`` of FCNHead
            and ``dropout_ratio`` of all of them.

    Raises:
        ConfigError: mmsegmentation is not installed, or a type, norm, level, order or option is not supported; the
            message lists the supported ones.
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
        check_choice(order, "order", _ORDERS)
        self.order = order
        head_class = _head_class(type)
        self.reads = _READS[type]
        chosen = _levels_read(levels, len(self.in_channels))[:: 1 if order == "fine_first" else -1]
        #: indices of the levels in the order in which the head gets them
        self.levels_read = [chosen[0], chosen[-1]] if self.reads == "detail" and len(chosen) > 1 else chosen
        _check_options(type, head_class, options)
        arguments = {**self._inputs(), **options, "norm_cfg": norm_config(norm)}
        if type == "FPNHead":
            arguments["feature_strides"] = [self.strides[index] for index in self.levels_read]
        self.decode_head = _build(head_class, num_classes=num_classes, channels=channels, **arguments)

    def _inputs(self) -> dict[str, Any]:
        """mmsegmentation's arguments for the levels read."""
        widths = [self.in_channels[index] for index in self.levels_read]
        if self.reads == "map":
            return {"in_channels": sum(widths), "in_index": 0}
        if self.reads == "levels":
            return {"in_channels": widths, "in_index": list(range(len(widths)))}
        last = {"in_channels": widths[-1], "in_index": len(widths) - 1}
        fine, width = (widths[0], 48) if len(widths) > 1 else (0, 0)  # 48: mmsegmentation's configurations
        return last | {"c1_in_channels": fine, "c1_channels": width}

    @property
    def resolution(self) -> int:
        """See Head: the coarsest level where that comes first."""
        return 0 if self.order == "fine_first" else len(self.in_channels) - 1

    def predict(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits (B, K, h, w) at the resolution the head works at."""
        given = [levels[index] for index in self.levels_read]
        if self.reads == "map":
            size, corners = (given[0].shape[-2], given[0].shape[-1]), bool(self.decode_head.align_corners)
            given = [resize(level, size, corners) for level in given]
            given = [torch.cat(given, dim=1) if len(given) > 1 else given[0]]
        logits: Tensor = self.decode_head(given)
        return logits


def _levels_read(levels: str | Sequence[int], count: int) -> list[int]:
    places = {"all": list(range(count)), "finest": [0], "middle": [count // 2], "coarsest": [count - 1]}
    if isinstance(levels, str):
        if levels not in places:
            raise ConfigError(f"levels={levels!r}; expected {', '.join(places)} or a list of indices")
        return places[levels]
    read = sorted({index % count for index in levels if -count <= index < count})
    if not read or len(read) != len(list(levels)):
        raise ConfigError(f"levels={list(levels)}; the pyramid has levels 0 … {count - 1}; name each at most once")
    return read


def norm_config(norm: str) -> dict[str, object]:
    """mmsegmentation's ``norm_cfg`` of "GN", "BN" or "SyncBN"; raises ConfigError for another name."""
    from mmengine.registry import MODELS

    if _GROUP_NORM not in MODELS:
        # registered by name, as some heads inspect it
        MODELS.register_module(name=_GROUP_NORM, module=_GroupNorm)
    names = {"GN": _GROUP_NORM, "BN": "BN", "SyncBN": "SyncBN"}
    check_choice(norm, "norm", names)
    # a fresh dictionary: mmsegmentation may keep and change it
    return {"type": names[norm]}


def _head_class(type_name: str) -> Callable[..., nn.Module]:
    if type_name not in WORKING_TYPES:
        raise ConfigError(
            f"type={type_name!r}: {did_you_mean(type_name, WORKING_TYPES)}expected one of {', '.join(WORKING_TYPES)}. "
            "docs/segmentation.md says why mmsegmentation's other heads are not built; wrap such a head in a class of "
            "your own and name it by head.decode._target_"
        )
    try:
        with quiet():
            import mmseg.models  # noqa: F401 - registers the heads; seconds, so only when a head is built
            from mmseg.registry import MODELS
    except ImportError as error:
        raise ConfigError(
            f"head type {type_name} is mmsegmentation's, which cannot be imported ({error}); install it with "
            "pip install 'gate-lightning[mmseg]', or use head=linear"
        ) from error
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
    } - _COMPUTED
    for option in options:
        if option not in accepted:
            raise ConfigError(
                f"{type_name} has no option {option!r} to set; {did_you_mean(option, accepted)}it takes "
                f"{', '.join(sorted(accepted))} (besides channels, norm and levels)"
            )


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
