"""From a resolved configuration to branches and what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.augmented_views import AugmentedFeatureCache
from gate_lightning.features.caches.disk import DiskCache
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.config.branches import build_branches
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.techniques.base import Card

__all__ = ["MAIN", "Extractor", "branches_of", "extractor_of", "split_size"]

#: what branches call the backbone of ``backbone`` where there are more in ``backbones``
MAIN = "main"
#: settings that the edge control shares with the ControlNet technique, so that both see the same edges
CANNY = ("low", "high", "blur_sigma", "normalize")

Extractor = (
    FeatureExtractor
    | MultiBackboneExtractor
    | EdgeChannels
    | PooledExtractor
    | DiskCache
    | AugmentedFeatureCache
    | MemoryCache
)
#: a configuration node → the object it describes
Build = Callable[[Any], Any]


def branches_of(plain: Mapping[str, Any], card: Card, build: Build) -> list[Branch]:
    """Branches as ``techniques technique timestep layers separate_noises ensemble backbones`` say.

    No backbone is needed: its extractor resolves the layers' names.

    Args:
        plain: resolved configuration as plain data.
        card: prompts and branches of the data set.
        build: makes the objects of nodes with a ``_target_``.
    """
    further = list(plain.get("backbones") or {})
    if MAIN in further:
        raise ConfigError(f"backbones.{MAIN}: that is the name of the backbone of `backbone`; choose another")
    built: dict[str, Any] = {}

    def once(node: Mapping[str, Any]) -> Any:
        """Equal objects once, so that branches share what they make."""
        key = json.dumps(node, sort_keys=True)
        if key not in built:
            built[key] = build(node)
        return built[key]

    return build_branches(
        plain["techniques"],
        card=card,
        backbones=(MAIN, *further) if further else ("",),
        technique_settings=plain["technique"],
        timestep=plain["timestep"],
        layers=plain["layers"],
        separate_noises=plain["separate_noises"],
        ensemble=plain.get("ensemble", 1),
        seed=plain["seed"],
        build=once,
    )


def extractor_of(
    config: DictConfig,
    branches: Sequence[Branch],
    backbones: Mapping[str, Backbone],
    scales: Mapping[str, float],
    canny: Mapping[str, Any],
    views: Mapping[str, Any] | None = None,
) -> Extractor:
    """What reads the branches, with the edge control and the caches as ``edge_channels`` and ``cache.memory_gib*`` say.

    Args:
        config: resolved configuration.
        branches: what is read.
        backbones: by the names that branches give.
        scales: of the images of all backbones but the first, whose is ``backbone_scale``.
        canny: settings of the ControlNet technique.
        views: what decides how training views look, where these are to be stored (`engine.views`), or None.

    Raises:
        ConfigError: a backbone that no branch reads, or a number out of range.
    """
    made: FeatureExtractor | MultiBackboneExtractor
    extractors = {}
    for name, backbone in backbones.items():
        own = [branch for branch in branches if branch.backbone == name]
        if not own:
            raise ConfigError(_unread(name))
        extractors[name] = FeatureExtractor(
            backbone, own, seed=config.seed, noise=config.noise, posterior=config.get("posterior", "mean")
        )
    scale = config.get("backbone_scale", 1.0)
    if len(extractors) == 1 and scale == 1:
        made = next(iter(extractors.values()))
    else:
        scales = {next(iter(extractors)): scale, **scales}
        made = MultiBackboneExtractor(extractors, scales, [branch.name for branch in branches])
    if not isinstance(config.edge_channels, bool):
        raise ConfigError(f"edge_channels={config.edge_channels}: expected true or false")
    edged: FeatureExtractor | MultiBackboneExtractor | EdgeChannels = made
    if config.edge_channels:
        edged = EdgeChannels(made, **{key: value for key, value in canny.items() if key in CANNY})
    pooling = (config.get("features") or {}).get("pooling", 1)
    pooled = edged if pooling == 1 else PooledExtractor(edged, pooling)
    kept: (
        FeatureExtractor | MultiBackboneExtractor | EdgeChannels | PooledExtractor | DiskCache | AugmentedFeatureCache
    ) = pooled
    if views is not None:
        kept = AugmentedFeatureCache(pooled, config.cache.folder, config.cache.dtype, views)
    elif config.cache.folder:
        kept = DiskCache(pooled, config.cache.folder, config.cache.dtype)
    return MemoryCache(kept, config.cache.memory_gib) if config.cache.memory_gib else kept


def split_size(name: str, node: Mapping[str, Any], native_size: int) -> tuple[dict[str, Any], float]:
    """The configuration of a further backbone without its ``scale`` and ``size``, and its scale.

    Args:
        name: of the backbone.
        node: its configuration.
        native_size: of the first backbone, in pixels: what an image has that is to become one of ``size``.
    """
    rest = {key: value for key, value in node.items() if key not in ("scale", "size")}
    scale, size = node.get("scale"), node.get("size")
    if scale is not None and size is not None:
        raise ConfigError(f"backbones.{name} has a scale and a size; leave one of them out")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"backbones.{name}.size={size!r}: expected pixels, at least 1")
        return rest, size / native_size
    return rest, 1.0 if scale is None else scale


def _unread(name: str) -> str:
    if name == MAIN:
        return (
            "no branch reads the backbone of `backbone`, which decides the size of images; put the one they read "
            "there instead of into backbones"
        )
    return f"backbones.{name} is read by no branch; write `backbone: {name}` into a branch, or leave it out"
