"""The table of layers: what can be read from a backbone, how large it is, and what it costs to get there."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.stable_diffusion.layer_table import unet_layers
from gate_lightning.backbones.weights.locate import read_json
from gate_lightning.errors import ConfigError
from gate_lightning.features.config.layer_presets import preset_names, resolve_layers
from gate_lightning.tools.layers.costs import Costs, layer_costs

__all__ = ["LayerRow", "layer_rows", "layers"]

COLUMNS = ("layer", "kind", "channels", "stride", "shape", "gflop", "share", "module", "aliases")


@dataclass(frozen=True)
class LayerRow:
    """One layer.

    Attributes:
        layer: its id.
        kind: how it is read, see LayerSpec.
        channels, stride: as in LayerSpec.
        shape: of one image's activation.
        gflop: operations (two for a multiplication and addition) of the denoiser until it is there, in 10⁹.
        share: of the whole pass of the denoiser.
        module: path of the module inside the denoiser.
        aliases: its other names.
    """

    layer: str
    kind: str
    channels: int
    stride: int
    shape: tuple[int, ...]
    gflop: float
    share: float
    module: str
    aliases: tuple[str, ...]


def layers(
    network: Backbone | Mapping[str, Any],
    size: int | Sequence[int] | None = None,
    filter: str | None = None,
    output: str | Path | None = None,
) -> str:
    """The table of layers, as text; no weights are loaded where the architecture is known.

    Args:
        network: a backbone, or its configuration: ``_target_`` and arguments.
        size: side of the image in pixels, or (height, width); None for the size the backbone was trained on.
        filter: only layers whose id or alias matches: a pattern (``up-*-cross-q``), a part of a name, or a preset.
        output: folder for ``layers.csv``; None writes nothing.

    Raises:
        ConfigError: nothing matches, or an impossible size.
    """
    backbone = network if isinstance(network, Backbone) else _structure(network)
    sides = (size, size) if isinstance(size, int) else tuple(size or (backbone.native_size,) * 2)
    if len(sides) != 2:
        raise ConfigError(f"size={size}: expected a side in pixels, or height and width")
    backbone.check_images(torch.empty(1, 3, *sides, device="meta"))
    costs = layer_costs(backbone, sides[0], sides[1])
    chosen = _matching(layer_rows(backbone, costs), filter, backbone)
    if output is not None:
        _write(chosen, Path(output))
    head = (
        f"{backbone.identity.name}: {len(backbone.layers)} layers and {len(backbone.derived)} made of them, here "
        f"{len(chosen)}, for one image of {sides[0]} × {sides[1]} px. Encoding it takes {costs.encoder / 1e9:.1f} "
        f"GFLOP, the whole pass of the denoiser {costs.denoiser / 1e9:.1f}.\n"
        f"Presets: {', '.join(preset_names(backbone))}"
    )
    return f"{head}\n{_text(chosen)}" + ("" if output is None else f"\nwritten to {Path(output) / 'layers.csv'}")


def layer_rows(backbone: Backbone, costs: Costs) -> list[LayerRow]:
    """A row for every layer, in the order of the network, then those made of several."""
    names: dict[str, list[str]] = {}
    for alias, layer in backbone.aliases.items():
        names.setdefault(layer, []).append(alias)
    rows = []
    for layer, spec in {**backbone.layers, **backbone.derived}.items():
        shape, operations = costs.layers[layer]
        share = operations / costs.denoiser if costs.denoiser else math.nan
        aliases = tuple(names.get(layer, ()))
        gflop = operations / 1e9
        rows.append(LayerRow(layer, spec.kind, spec.channels, spec.stride, shape, gflop, share, spec.module, aliases))
    return rows


def _structure(network: Mapping[str, Any]) -> Backbone:
    """The backbone of a configuration, without weights where its architecture can be built without them."""
    module, _, name = str(network.get("_target_", "")).rpartition(".")
    if not module.startswith("gate_lightning.backbones"):
        raise ConfigError(f"tool=layers cannot build {network.get('_target_')!r}; choose a backbone of conf/backbone/")
    build = getattr(importlib.import_module(module), name)
    settings = {str(key): value for key, value in network.items() if not str(key).startswith("_")}
    if "weights" not in settings:
        made = build(**settings)
    else:
        with torch.device("meta"):
            made = build(
                **{**settings, "weights": "random", **({"controlnets": {}} if "controlnets" in settings else {})}
            )
        config = Path(str(settings["weights"])) / "unet" / "config.json"
        if config.is_file() and not _is_structure_of(made, config):
            made = build(**settings)  # a folder of another architecture than the configuration's
    assert isinstance(made, Backbone)
    return made.to("meta") if "weights" in settings else made


def _is_structure_of(backbone: Backbone, config: Path) -> bool:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(config))
    return unet_layers(unet, backbone.latent_stride) == backbone.layers


def _matching(rows: Sequence[LayerRow], pattern: str | None, backbone: Backbone) -> list[LayerRow]:
    if pattern is None:
        return list(rows)
    if pattern in preset_names(backbone):
        wanted = resolve_layers(backbone, pattern)
        return [row for row in rows if row.layer in wanted]
    glob = pattern if set(pattern) & set("*?") else f"*{pattern}*"
    # brackets are part of names: up_blocks[1]
    glob = glob.replace("[", "[[]")
    chosen = [row for row in rows if any(fnmatchcase(name, glob) for name in (row.layer, *row.aliases))]
    if not chosen:
        raise ConfigError(
            f"filter={pattern}: no layer of {backbone.identity.name} is called so; give a pattern like up-*-cross-q, a "
            f"part of a name, or a preset ({', '.join(preset_names(backbone))})"
        )
    return chosen


def _cells(row: LayerRow) -> tuple[str, ...]:
    return (
        row.layer,
        row.kind,
        str(row.channels or "–"),
        str(row.stride or "–"),
        "×".join(map(str, row.shape)),
        f"{row.gflop:.1f}",
        "–" if math.isnan(row.share) else f"{100 * row.share:.1f} %",
        row.module,
        " ".join(row.aliases),
    )


def _text(rows: Sequence[LayerRow]) -> str:
    cells = [COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = ("channels", "stride", "gflop", "share")
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, cell, width in zip(COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def _write(rows: Sequence[LayerRow], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "layers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            numbers = [row.channels, row.stride, "x".join(map(str, row.shape)), f"{row.gflop:.6g}", f"{row.share:.6g}"]
            writer.writerow([row.layer, row.kind, *numbers, row.module, " ".join(row.aliases)])
