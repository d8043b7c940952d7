"""Table of a backbone's layers: shapes, and operations of the denoiser up to each layer."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.stable_diffusion.layer_table import unet_layers
from gate_lightning.backbones.weights.networks import build_network
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.features.config.layer_presets import preset_names, resolve_layers
from gate_lightning.tools.layers.costs import Costs, layer_costs
from gate_lightning.utils.files import write_csv
from gate_lightning.utils.text import read_json

__all__ = ["layer_rows", "layers"]

COLUMNS = ("layer", "kind", "channels", "stride", "shape", "gflop", "share", "module", "aliases")
#: columns that are printed flush right
_NUMBERS = ("channels", "stride", "gflop", "share")
#: of a network whose weights are not read; SDXL's U-Net has 1,680
_MOST_TENSORS = 5000


def layers(
    network: Backbone | Mapping[str, Any],
    size: int | Sequence[int] | None = None,
    filter: str | None = None,
    output: str | Path | None = None,
) -> str:
    """Table of a backbone's layers as text; no weights are loaded where the architecture is known.

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
        rounded = [row | {key: f"{row[key]:.6g}" for key in ("gflop", "share")} for row in chosen]
        write_csv(Path(output) / "layers.csv", COLUMNS, [list(row.values()) for row in rounded])
    head = (
        f"{backbone.identity.name}: {len(backbone.layers)} layers and {len(backbone.derived)} made of them, here "
        f"{len(chosen)}, for one image of {sides[0]} × {sides[1]} px. Encoding it takes {costs.encoder / 1e9:.1f} "
        f"GFLOP, the whole pass of the denoiser {costs.denoiser / 1e9:.1f}.\n"
        f"Presets: {', '.join(preset_names(backbone))}"
    )
    return f"{head}\n{_text(chosen)}" + ("" if output is None else f"\nwritten to {Path(output) / 'layers.csv'}")


def layer_rows(backbone: Backbone, costs: Costs) -> list[dict[str, Any]]:
    """Rows of the table, column → value: layers in the order of the network, then those made of several.

    ``gflop`` are 10⁹ operations (a multiplication and an addition are two) of the denoiser until the layer is there,
    ``share`` is their share of the whole pass; the other columns are those of `LayerSpec`.
    """
    names: dict[str, list[str]] = {}
    for alias, layer in backbone.aliases.items():
        names.setdefault(layer, []).append(alias)
    rows = []
    for layer, spec in {**backbone.layers, **backbone.derived}.items():
        shape, operations = costs.layers[layer]
        share = operations / costs.denoiser if costs.denoiser else math.nan
        values = (layer, spec.kind, spec.channels, spec.stride, "x".join(map(str, shape)), operations / 1e9, share)
        rows.append(dict(zip(COLUMNS, (*values, spec.module, " ".join(names.get(layer, ()))), strict=True)))
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
        folder = Path(str(settings["weights"]))
        unet = folder / "unet" / "config.json"
        # a folder of another architecture than the configuration's, or of one network (ADM, vision transformers)
        if (folder / "config.json").is_file() or (unet.is_file() and not _is_structure_of(made, unet)):
            made = build(**settings)
    assert isinstance(made, Backbone)
    return made.to("meta") if "weights" in settings else made


def _is_structure_of(backbone: Backbone, config: Path) -> bool:
    content = read_json(config, WeightsError)
    unet = build_network(lambda: UNet2DConditionModel.from_config(content), content, _MOST_TENSORS, str(config))
    return unet_layers(unet, backbone.latent_stride) == backbone.layers


def _matching(rows: list[dict[str, Any]], pattern: str | None, backbone: Backbone) -> list[dict[str, Any]]:
    if pattern is None:
        return rows
    if pattern in preset_names(backbone):
        wanted = resolve_layers(backbone, pattern)
        return [row for row in rows if row["layer"] in wanted]
    glob = pattern if set(pattern) & set("*?") else f"*{pattern}*"
    # brackets are part of names: up_blocks[1]
    glob = glob.replace("[", "[[]")
    chosen = [row for row in rows if any(fnmatchcase(name, glob) for name in (row["layer"], *row["aliases"].split()))]
    if not chosen:
        raise ConfigError(
            f"filter={pattern}: no layer of {backbone.identity.name} is called so; give a pattern like up-*-cross-q, a "
            f"part of a name, or a preset ({', '.join(preset_names(backbone))})"
        )
    return chosen


def _shown(column: str, value: Any) -> str:
    """A cell of the printed table."""
    if column in ("channels", "stride"):
        return str(value or "–")
    if column == "shape":
        return str(value).replace("x", "×")
    if column == "gflop":
        return f"{value:.1f}"
    if column == "share":
        return "–" if math.isnan(value) else f"{100 * value:.1f} %"
    return str(value)


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [COLUMNS, *(tuple(_shown(column, row[column]) for column in COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
            for column, cell, width in zip(COLUMNS, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )
