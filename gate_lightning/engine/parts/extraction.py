"""From a resolved configuration to branches and what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.branch import Branch
from gate_lightning.features.caches.disk import DiskCache, full_description
from gate_lightning.features.caches.memory import MemoryCache
from gate_lightning.features.config.branches import build_branches
from gate_lightning.features.reading.extractor import FeatureExtractor
from gate_lightning.features.wrappers.caption_channels import CaptionChannels
from gate_lightning.features.wrappers.edge_channels import EdgeChannels
from gate_lightning.features.wrappers.multi_backbone import MultiBackboneExtractor
from gate_lightning.features.wrappers.pooled import PooledExtractor
from gate_lightning.structures import Extractor
from gate_lightning.tasks.content_shift.candidates import Candidates
from gate_lightning.techniques.base import Card
from gate_lightning.techniques.controlnet import CannyEdges
from gate_lightning.utils.checks import check_known
from gate_lightning.utils.files import digest_of, plain_json

__all__ = ["MAIN", "branches_of", "candidates_of", "extractor_of"]

#: what branches call the backbone of ``backbone`` where there are more in ``backbones``
MAIN = "main"
#: settings that the edge channels share with the ControlNet technique, so that both see the same edges
CANNY = ("low", "high", "blur_sigma", "normalize")

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
        ensemble=plain["ensemble"],
        seed=plain["seed"],
        build=once,
    )


def candidates_of(plain: Mapping[str, Any], card: Card, build: Build) -> Candidates:
    """Branches to be compared; of a list of them those whose weights are there, and why the others are left out.

    Raises:
        WeightsError: none of them has its weights.
    """
    given = card.branches if plain["techniques"] == "all" else plain["techniques"]
    if not isinstance(given, list | tuple) or not all(isinstance(one, Mapping) for one in given) or len(given) < 2:
        return Candidates(tuple(branches_of(plain, card, build)))
    made: list[Branch] = []
    missing: dict[str, WeightsError] = {}
    for number, mapping in enumerate(given):
        try:
            made += branches_of({**plain, "techniques": [mapping]}, card, build)
        except WeightsError as error:
            missing[str(mapping.get("name") or f"branch {number}")] = error
    if not made:
        raise next(iter(missing.values()))
    return Candidates(tuple(made), {name: str(error) for name, error in missing.items()})


def edge_channels(config: DictConfig) -> CannyEdges | None:
    """Settings of the edges that are input channels of the head (``edge_channels``); None without."""
    if "edge_channels" not in config or not _switch(config, "edge_channels"):  # of a task that has no such input
        return None
    return CannyEdges(**{key: config.technique.controlnet[key] for key in CANNY})


def extractor_of(
    config: DictConfig,
    branches: Sequence[Branch],
    backbones: Mapping[str, Backbone],
    views: int = 0,
) -> Extractor:
    """Extractor of the branches, as ``backbone_scale edge_channels caption_channels features cache`` say.

    Args:
        config: resolved configuration.
        branches: what is read.
        backbones: by the names that branches give.
        views: how many augmented training views are to be kept on disk (`engine.views`).

    Raises:
        ConfigError: a backbone that no branch reads, or a number out of range.
    """
    extractors = {}
    for name, backbone in backbones.items():
        own = [branch for branch in branches if branch.backbone == name]
        if not own:
            raise ConfigError(_unread(name))
        extractors[name] = FeatureExtractor(
            backbone,
            own,
            seed=config.seed,
            noise=config.noise,
            posterior=config.posterior,
            **{key: config.features[key] for key in ("max_samples", "passes") if key in config.features},
        )
    scales = _scales(config.backbone_scale, list(backbones))
    made: Extractor = next(iter(extractors.values()))
    if len(extractors) > 1 or any(scale != 1 for scale in scales.values()):
        made = MultiBackboneExtractor(extractors, scales, [branch.name for branch in branches])
    edges = edge_channels(config)
    if edges is not None:
        made = EdgeChannels(made, **asdict(edges))
    if _switch(config, "caption_channels"):
        made = CaptionChannels(made, next(iter(backbones.values())))
    if config.features.pooling != 1:
        made = PooledExtractor(made, config.features.pooling)
    cache = config.cache
    if cache.folder or views:
        folder = cache.folder or _views_folder(made, cache.dtype, config.paths.cached_views)
        made = DiskCache(made, folder, cache.dtype, views=views)
    return MemoryCache(made, cache.memory_gib, cache.place) if cache.memory_gib else made


def _switch(config: DictConfig, key: str) -> bool:
    if not isinstance(config[key], bool):
        raise ConfigError(f"{key}={config[key]}: expected true or false")
    return config[key]


def _scales(given: Any, backbones: Sequence[str]) -> dict[str, float]:
    """Backbone → factor on the sides of the images it sees, from ``backbone_scale``."""
    if not isinstance(given, Mapping):
        return {backbones[0]: given}
    named = {name or MAIN: name for name in backbones}  # the only backbone has no name
    check_known(given, named, "backbone_scale")
    return {named[name]: scale for name, scale in given.items()}


def _views_folder(extractor: Extractor, dtype: str, root: str) -> Path:
    """One for every description, so that runs with equal settings share it and others do not meet."""
    description = full_description(extractor.description)
    return Path(root) / digest_of(plain_json({**description, "stored_as": dtype}))[:12]


def _unread(name: str) -> str:
    if name == MAIN:
        return (
            "no branch reads the backbone of `backbone`, which decides the size of images; put the one they read "
            "there instead of into backbones"
        )
    return f"backbones.{name} is read by no branch; write `backbone: {name}` into a branch, or leave it out"
