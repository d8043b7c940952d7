"""``techniques=auto``, ``timestep=auto``, ``layers=auto``: chosen by a measure on training images, before training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gate_lightning.data.core.sampled import SampledImages
from gate_lightning.engine.command.used_keys import automatic_keys
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.parts.building import built
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError
from gate_lightning.features.config.required_inputs import required_inputs_of
from gate_lightning.metrics.content_shift.statistic import Bootstrap, Statistic
from gate_lightning.tasks.content_shift.candidates import PLAIN
from gate_lightning.tasks.content_shift.measure import Key
from gate_lightning.tasks.content_shift.reading import ShiftReader
from gate_lightning.tasks.content_shift.study import ShiftResults, measure_content_shift
from gate_lightning.tools.devices import device_of
from gate_lightning.utils.checks import whole_number
from gate_lightning.utils.files import digest_of, write_csv

__all__ = ["CHOSEN", "with_choice"]

log = logging.getLogger(__name__)

#: file of the run folder that says what was chosen, and why
CHOSEN = "auto.json"
#: of every candidate and timestep: the figure that it was chosen by
TABLE = "auto.csv"
_MEASURE = "auto.measure"
#: of ``features``: how passes are run
_HOW = ("max_samples", "passes")


@dataclass(frozen=True)
class _Option:
    """A candidate at a timestep, with the layers that are read.

    Attributes:
        candidate, timestep: names.
        layers: of the backbone.
        statistics: of these layers; the figure is the mean of theirs.
    """

    candidate: str
    timestep: int
    layers: tuple[str, ...]
    statistics: tuple[Statistic, ...]

    @property
    def value(self) -> float:
        return sum(one.value for one in self.statistics) / len(self.statistics)

    def interval(self, bootstrap: Bootstrap) -> tuple[float, float]:
        draws = [bootstrap.draws(one) for one in self.statistics]
        return bootstrap.interval(sum(draws[1:], draws[0]) / len(draws))


def with_choice(config: DictConfig, run_folder: Path) -> DictConfig:
    """The configuration with what was chosen in place of ``auto``; the run folder says why.

    Every candidate is read at every timestep on a sample of the training images, none of them augmented. Its figure is
    the mean over the layers that are read; where layers are chosen, too, over the best one of every stride.

    Args:
        config: resolved configuration.
        run_folder: where the choice is written, or has been written by another process.

    Raises:
        ConfigError: the measure cannot be taken on these images, or does not compare what is to be chosen.
    """
    asked = automatic_keys(config)
    if not asked:
        return config
    of = digest_of(OmegaConf.to_container(config))
    done = runs.read_json(run_folder / CHOSEN)
    if done is None or done.get("of") != of:
        done = {**_choose(config, asked, run_folder), "of": of}
        runs.write_json(run_folder / CHOSEN, done)
    chosen = OmegaConf.create(OmegaConf.to_container(config))
    assert isinstance(chosen, DictConfig)
    for key in asked:
        chosen[key] = done["chosen"][key]
    return chosen


def _choose(config: DictConfig, asked: Sequence[str], run_folder: Path) -> dict[str, Any]:
    auto: Any = OmegaConf.to_container(config.auto)
    mappings = _checked(auto)
    if asked == ("techniques",) and len(mappings) == 1:
        raise ConfigError(
            f"auto.techniques={auto['techniques']} leaves nothing to choose from but plain features; name candidates: "
            "auto.techniques=[{name: prompt, techniques: [prompt]}]"
        )
    trial = OmegaConf.create(OmegaConf.to_container(config))
    assert isinstance(trial, DictConfig)
    timesteps = list(auto["timesteps"]) if "timestep" in asked else [config.timestep]
    trial.timestep = timesteps[0]
    if "layers" in asked:
        trial.layers = auto["layers"]
    if "techniques" in asked:
        trial.techniques = mappings
    measure = built(OmegaConf.create(auto["measure"]), _MEASURE)
    if getattr(measure, "relative", False) and {"timestep", "layers"} & set(asked):
        raise ConfigError(
            f"{' and '.join(one for one in asked if one != 'techniques')}=auto: figures of {_name(auto)} are measured "
            "against something else at every timestep and layer, so they rank techniques only; use auto=probe, or name "
            "timestep and layers"
        )
    key = "auto.timesteps" if "timestep" in asked else "timestep"
    results, strides = _measured(trial, auto, measure, timesteps, key)
    found = results.statistics[_MEASURE]
    by_stride = strides if "layers" in asked else {}
    options = list(_options(results, found, by_stride, one_by_one="techniques" in asked))
    better = next(iter(found.values())).higher_is_better
    best = max(options, key=lambda one: one.value if better else -one.value)
    bootstrap = Bootstrap(len(results.images), seed=config.seed)
    lines = [
        [one.candidate, one.timestep, " ".join(one.layers), one.value, *one.interval(bootstrap), one is best]
        for one in options
    ]
    write_csv(run_folder / TABLE, ["candidate", "timestep", "layers", "value", "low", "high", "chosen"], lines)
    for name, reason in results.left_out.items():
        log.warning("not compared: %s: %s", name, reason)
    values = {
        "techniques": "none" if best.candidate == PLAIN else [m for m in mappings if m["name"] == best.candidate],
        "timestep": best.timestep,
        "layers": list(best.layers),
    }
    log.info(
        "chosen by %s on %d training images, of %d options: %s (%.4g; %s has all)",
        *(_name(auto), len(results.images), len(options)),
        ", ".join(f"{key}={best.candidate if key == 'techniques' else values[key]}" for key in asked),
        *(best.value, run_folder / TABLE),
    )
    return {
        "chosen": {key: values[key] for key in asked},
        "measure": auto["measure"],
        "higher_is_better": better,
        "images": list(results.images),
        "left_out": dict(results.left_out),
        "seconds": results.seconds,
        "options": [dict(zip(("candidate", "timestep", "layers", "value", "low", "high", "chosen"), line, strict=True))
                    for line in lines],
    }  # fmt: skip


def _checked(auto: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Branches to choose from, the plain one first.

    Raises:
        ConfigError: settings of ``auto`` that are no such thing.
    """
    whole_number(auto["images"], "auto.images", 2)
    for key, example in (("timesteps", "[50,200]"), ("techniques", "[{name: prompt, techniques: [prompt]}]")):
        if not isinstance(auto[key], list) or (key == "timesteps" and not auto[key]):
            raise ConfigError(f"auto.{key}={auto[key]}: expected a list, such as {example}")
    unnamed = [one for one in auto["techniques"] if not isinstance(one, dict) or not one.get("name")]
    if unnamed:
        raise ConfigError(
            f"auto.techniques: {unnamed[0]} has no name; give one: {{name: prompt, techniques: [prompt]}}"
        )
    plain: dict[str, Any] = {"name": PLAIN, "techniques": []}
    return [plain, *(one for one in auto["techniques"] if one not in (plain, {"name": PLAIN}))]


def _measured(
    trial: DictConfig, auto: Mapping[str, Any], measure: Any, timesteps: Sequence[int], key: str
) -> tuple[ShiftResults, dict[str, int]]:
    """The measure of every candidate, timestep and layer on a sample of the training images; strides of the layers."""
    components = Components(trial, run_folder="")
    dataset = built(trial.dataset, "dataset")
    split_anew = OmegaConf.select(trial, "task.data.split_seed") is not None
    if split_anew and getattr(measure, "reads_labels", False):
        raise ConfigError(
            f"the task splits {dataset.card.name} anew, so that {_name(auto)} would choose by labels of test images; "
            "use auto=laplacian, which reads no labels"
        )
    data = SampledImages(dataset, images=auto["images"], batch_size=auto["batch_size"], seed=trial.seed)
    candidates = components.candidates
    data.attach_inputs(required_inputs_of(candidates.branches))
    data.setup("fit")
    reader = ShiftReader(
        *(components.backbones, candidates.branches, timesteps),
        seed=trial.seed,
        posterior=trial.posterior,
        key=key,
        **{name: value for name, value in (trial.get("features") or {}).items() if name in _HOW and value is not None},
    )
    device = device_of("cpu" if trial.trainer.get("accelerator") == "cpu" else "auto")
    reader.to(device)
    batches = [batch.to(device) for batch in data.batches("train")]
    try:
        results = measure_content_shift(reader, batches, {_MEASURE: measure}, data.labels, candidates.left_out)
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nChoose another measure (auto=laplacian needs no masks, auto=probe does)"
        ) from error
    strides = {layer: one.stride for name in results.candidates for layer, one in reader.layers(name).items()}
    return results, strides


def _options(
    results: ShiftResults, found: Mapping[Key, Statistic], strides: Mapping[str, int], one_by_one: bool
) -> Iterator[_Option]:
    """Options of the choice; candidates together where they are not to be chosen among.

    Args:
        results, found: what was measured.
        strides: of layers, of which the best one of every stride is taken; {} to take all.
        one_by_one: whether there is a choice among the candidates.
    """
    rows = [name for name, one in results.candidates.items() if one.kind in ("plain", "candidate")]
    rows = [name for name in rows if any(key[0] == name for key in found)]
    if not one_by_one:
        rows = [name for name in rows if results.candidates[name].kind == "candidate"] or rows
    groups = [[name] for name in rows] if one_by_one else [rows]
    for names in groups:
        for timestep in results.timesteps:
            own = {key: one for key, one in found.items() if key[0] in names and key[1] == timestep}
            if not own:
                continue
            layers: dict[str, list[Statistic]] = {}
            for (_, _, layer), one in own.items():
                layers.setdefault(str(layer), []).append(one)
            yield _Option(", ".join(names), timestep, *_read(layers, strides))


def _read(
    layers: Mapping[str, list[Statistic]], strides: Mapping[str, int]
) -> tuple[tuple[str, ...], tuple[Statistic, ...]]:
    """Layers and their statistics; of every stride the best one, where strides are given."""

    def value(layer: str) -> float:
        figures = layers[layer]
        sign = 1 if figures[0].higher_is_better else -1
        return sign * sum(one.value for one in figures) / len(figures)

    names = list(layers)
    if strides:
        names = [
            max((one for one in layers if strides[one] == stride), key=value)
            for stride in dict.fromkeys(strides[one] for one in layers)
        ]
    return tuple(names), tuple(one for name in names for one in layers[name])


def _name(auto: Mapping[str, Any]) -> str:
    return str(auto["measure"]["_target_"]).rsplit(".", 1)[-1]
