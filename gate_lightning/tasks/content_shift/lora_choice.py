"""Choice among the files of one LoRA training, by score: GATE's moderate and slightly over-trained ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.weights.locate import file_digest
from gate_lightning.errors import ConfigError, WeightsError
from gate_lightning.metrics.content_shift.statistic import Bootstrap, Statistic
from gate_lightning.metrics.content_shift.table import ALL, Compared, Row, figures
from gate_lightning.tasks.content_shift.candidates import Candidates
from gate_lightning.tasks.content_shift.task import ContentShift
from gate_lightning.techniques.lora import LoRA
from gate_lightning.utils.commands import override

__all__ = ["LoraChoice", "LoraFiles", "choose", "trained_files"]

log = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class LoraFiles:
    """Choice among the files of one training, by name.

    Attributes:
        moderate: the one with the least shift.
        overtrained: the first one trained for longer whose shift is larger beyond chance, else the last one; None where
            the moderate one is the last.
        by_chance: whether the over-trained one's shift is larger by no more than chance.
    """

    moderate: str
    overtrained: str | None
    by_chance: bool = False


def trained_files(folder: str | Path) -> dict[str, Path]:
    """Name → LoRA file of one training, shortest first: those of ``step_<n>`` folders, then the last one, ``end``.

    Raises:
        WeightsError: fewer than two.
    """
    root = Path(folder).expanduser()
    files = [path for path in sorted(root.glob("**/*.safetensors")) if not path.name.endswith(".kohya.safetensors")]
    steps = {int(match[1]): path for path in files if (match := _STEP.fullmatch(path.parent.name))}
    found = {f"step_{step}": steps[step] for step in sorted(steps)}
    digests = {file_digest(path) for path in found.values()}
    ends = [path for path in files if path.parent == root and file_digest(path) not in digests]
    found |= {"end" if len(ends) == 1 else path.stem: path for path in ends}
    if len(found) < 2:
        raise WeightsError(
            f"{root} holds {len(found)} LoRA files of a training (step_<n>/<name>.safetensors); at least two are "
            "ranked. Train with callbacks.export.every_n_steps=<n> and name the model folder of the run: "
            "task.adapters=<folder>"
        )
    return found


def choose(
    statistics: Mapping[tuple[str, int | None, str | None], Statistic], names: Sequence[str], bootstrap: Bootstrap
) -> LoraFiles:
    """The moderate and the over-trained file.

    Args:
        statistics: of one measure.
        names: of the files, shortest training first.
        bootstrap: what tells a difference from chance: the images drawn anew.

    Raises:
        ConfigError: the measure has no figure of any file.
    """

    def of_all(compared_with: str) -> dict[str, Compared]:
        rows = {name: Row(compared_with) for name in names}
        lines = list(figures({"": statistics}, rows, bootstrap))
        return {line.candidate: line for line in lines if line.timestep == ALL or len(lines) == len(names)}

    found = {name: line for name, line in of_all(names[0]).items() if line.figure.value == line.figure.value}
    if not found:
        raise ConfigError("no LoRA file has a figure to choose by")
    sign = 1.0 if next(iter(found.values())).higher_is_better else -1.0
    moderate = max(found, key=lambda name: sign * found[name].figure.value)
    longer = [name for name in names[names.index(moderate) + 1 :] if name in found]
    if not longer:
        return LoraFiles(moderate, None)
    differences = {name: line.difference for name, line in of_all(moderate).items()}
    for name in longer:
        difference = differences[name]
        if difference is not None and (difference.high if sign > 0 else -difference.low) < 0:
            return LoraFiles(moderate, name)
    return LoraFiles(moderate, longer[-1], by_chance=True)


class LoraChoice(ContentShift):
    """Ranks the LoRA files of one training as `ContentShift` does, and names the keys of the two that it chooses.

    Args:
        candidates: the first one gives timestep and layers; plain features are what the files are compared with.
        backbones: see `ContentShift`.
        adapters: model folder of a training with ``callbacks.export.every_n_steps``.
        chosen_by: measure that decides.
        scale: of the adapters.
        settings: of `ContentShift`.

    Raises:
        WeightsError: fewer than two files.
        ConfigError: the deciding measure is not among ``measures``.
    """

    def __init__(
        self,
        candidates: Candidates,
        backbones: Mapping[str, Backbone],
        adapters: str | Path,
        chosen_by: str = "laplacian_own",
        scale: float = 1.0,
        **settings: Any,
    ) -> None:
        self._files = trained_files(adapters)
        if settings["measures"].get(chosen_by) is None:
            raise ConfigError(f"task.chosen_by={chosen_by} is none of task.measures: {', '.join(settings['measures'])}")
        self._chosen_by = chosen_by
        plain = replace(candidates.branches[0], name="none", techniques=())
        adapted = [
            replace(plain, name=name, techniques=(LoRA(name, str(path), scale),)) for name, path in self._files.items()
        ]
        super().__init__(Candidates((plain, *adapted)), backbones, **settings)
        self.choice: dict[str, LoraFiles] = {}

    def _rank(self, split: str) -> None:
        super()._rank(split)
        results = self.shift_results[split]
        if self._chosen_by not in results.statistics:
            raise ConfigError(f"{self._chosen_by} was not measured: {results.left_out.get(self._chosen_by)}")
        names = [name for name in self._files if name in results.candidates]
        chosen = choose(results.statistics[self._chosen_by], names, self._bootstrap(len(results.images)))
        self.choice[split] = chosen
        log.info("%s", self._words(chosen))

    def _words(self, chosen: LoraFiles) -> str:
        key = override("technique.lora.weights.moderate", self._files[chosen.moderate].resolve())
        if chosen.overtrained is None:
            return (
                f"by {self._chosen_by} the longest training, {chosen.moderate}, is the best: none is over-trained yet, "
                f"train for longer; moderate: {key}"
            )
        other = override("technique.lora.weights.overtrained", self._files[chosen.overtrained].resolve())
        doubt = " (its shift is larger by no more than chance)" if chosen.by_chance else ""
        return (
            f"by {self._chosen_by}: moderate {chosen.moderate}, over-trained {chosen.overtrained}{doubt}: {key} {other}"
        )
