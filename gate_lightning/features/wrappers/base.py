"""Base class of extractor wrappers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from torch import nn

from gate_lightning.errors import CacheError, ConfigError
from gate_lightning.structures import BackboneInfo, Extractor, FeaturesInfo
from gate_lightning.utils.checks import shown
from gate_lightning.utils.files import differences, plain_json

__all__ = ["BranchBesides", "StoringExtractor", "WrappedExtractor", "check_extractor"]


def check_extractor(extractor: Any, name: str = "extractor") -> None:
    """Raise ConfigError unless this is an extractor."""
    if not isinstance(getattr(extractor, "feature_info", None), Mapping):
        raise ConfigError(
            f"{name}={shown(extractor)}: expected an extractor, such as FeatureExtractor(backbone, branches)"
        )


class WrappedExtractor(nn.Module):
    """Wrapper with the properties of its extractor; subclasses define ``forward`` and override what they change.

    Args:
        extractor: any extractor, also another wrapper.
    """

    extractor: Extractor

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        check_extractor(extractor)
        self.extractor = extractor

    @property
    def backbone(self) -> BackboneInfo:
        """Frozen network; the first of several."""
        return self.extractor.backbone

    @property
    def feature_info(self) -> FeaturesInfo:
        """Branch → layer id → FeatureInfo, in the order of branches and layers."""
        return self.extractor.feature_info

    @property
    def concatenated(self) -> tuple[str, ...]:
        """Names of the branches to be concatenated after amalgamation instead of fused."""
        return self.extractor.concatenated

    @property
    def description(self) -> Mapping[str, Any]:
        """Everything the features depend on besides images and conditions, JSON-able."""
        return self.extractor.description

    def check_room(self, images: int, values: int) -> None:
        """Check the disk of a cache, before features are computed; see `Extractor`."""
        self.extractor.check_room(images, values)


class StoringExtractor(WrappedExtractor):
    """Wrapper that stores features of an extractor of one description: it may be moved, but not be converted."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        # every conversion of a module comes through here
        before = plain_json(self.extractor.description)
        made: Self = super()._apply(fn, recurse)
        changes = differences(before, plain_json(self.extractor.description))
        if changes:
            raise CacheError(
                f"features are stored of one type of weights, and these were converted ({'; '.join(changes)}); load "
                'the backbone in the type it is to have: dtype="float32", "bfloat16" or "float16" (backbone.dtype)'
            )
        return made


class BranchBesides(WrappedExtractor):
    """Extractor with an additional branch ``BRANCH`` at every stride of the features.

    The branch is concatenated to the pyramid after amalgamation, not fused with the others. Subclasses define the
    branch's ``feature_info`` and ``forward``.

    Args:
        extractor: source of all other branches.

    Raises:
        ConfigError: there is a branch of that name already.
    """

    BRANCH: str

    def __init__(self, extractor: Extractor) -> None:
        super().__init__(extractor)
        if self.BRANCH in extractor.feature_info:
            key = f"{self.BRANCH.removesuffix('s')}_channels"
            raise ConfigError(f"{key}=true adds a branch {self.BRANCH!r}, and there is one already; rename yours")
        strides = {info.stride for branch in extractor.feature_info.values() for info in branch.values() if info.stride}
        self.strides = sorted(strides, reverse=True)

    @property
    def concatenated(self) -> tuple[str, ...]:
        """The extractor's, and the branch."""
        return (*self.extractor.concatenated, self.BRANCH)
