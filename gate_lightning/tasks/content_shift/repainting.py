"""Images that candidates make of the images of a batch, each made once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.errors import GateError
from gate_lightning.features.reading.img2img import ImageToImage, autoencoded, start_of
from gate_lightning.features.reading.recorded import PassKind
from gate_lightning.structures import Conditions
from gate_lightning.tasks.content_shift.candidates import Candidate

__all__ = ["CEILING", "RepaintedImages", "Repainter"]

#: row of the images that were encoded and decoded alone
CEILING = "autoencoder"

#: candidate → conditions of the images under which it is read
ConditionsOf = Callable[[str], Conditions]


class CandidateReader(Protocol):
    """Candidates and their backbones, as `ShiftReader` has them; see there."""

    seed: int
    max_samples: int | None
    passes: PassKind

    @property
    def candidates(self) -> Mapping[str, Candidate]: ...

    def plain(self, candidate: str) -> str: ...

    def backbone(self, candidate: str) -> Backbone: ...


class Repainter:
    """Image to image under every candidate's conditioning.

    Attributes:
        ceilings: rows of the autoencoders' own images, by name; they come up when they are asked for.
        left_out: candidate and strength → why no images can be made.
    """

    def __init__(self, reader: CandidateReader) -> None:
        self.reader = reader
        self.ceilings: dict[str, Candidate] = {}
        self.left_out: dict[str, str] = {}
        self._failed: set[tuple[str, float]] = set()
        self._made: dict[tuple[object, ...], ImageToImage] = {}

    def ceiling(self, candidate: str) -> str:
        """Name of the row of the autoencoder of a candidate's backbone."""
        plain = self.reader.candidates[self.reader.plain(candidate)]
        first = next(iter(self.reader.candidates.values())).branch.backbone
        backbone = plain.branch.backbone
        name = CEILING if backbone == first else f"{CEILING} {backbone}"
        self.ceilings.setdefault(name, Candidate(name, plain.branch, "ceiling"))
        return name

    def repainted(
        self, images: Tensor, conditions_of: ConditionsOf, candidate: str, strength: float, steps: int
    ) -> dict[str, Tensor]:
        """Images (B, 3, H, W) of a candidate, and of those that are made with it; of those that fail none."""
        wanted = self.reader.candidates[candidate]
        together = [
            name
            for name, one in self.reader.candidates.items()
            if one.branch.backbone == wanted.branch.backbone
            and (one.kind == "shuffled") == (wanted.kind == "shuffled")
            and one.kind != "noises"
            and not one.timesteps  # the images of its branch are those of another row
            and (name, strength) not in self._failed
        ]
        return self._of(images, conditions_of, together, strength, steps) if candidate in together else {}

    def _of(
        self, images: Tensor, conditions_of: ConditionsOf, names: list[str], strength: float, steps: int
    ) -> dict[str, Tensor]:
        try:
            return self._painter(names, strength, steps)(images, conditions_of(names[0]))
        except GateError as error:
            if len(names) > 1:
                one_by_one = [self._of(images, conditions_of, [name], strength, steps) for name in names]
                return {name: made for found in one_by_one for name, made in found.items()}
            if self.reader.candidates[names[0]].kind == "plain":
                raise
            self._failed.add((names[0], strength))
            self.left_out[f"{names[0]}, image to image at strength {strength:g}"] = str(error)
            return {}

    def _painter(self, names: list[str], strength: float, steps: int) -> ImageToImage:
        key = (tuple(names), strength, steps)
        if key not in self._made:
            backbone = self.reader.backbone(names[0])
            self._made[key] = ImageToImage(
                backbone,
                [replace(self.reader.candidates[name].branch, name=name) for name in names],
                start_of(backbone, strength),
                steps,
                self.reader.seed,
                self.reader.max_samples,
                passes=self.reader.passes,
            )
        return self._made[key]


class RepaintedImages:
    """Images that were made of those of one batch, (B, 3, H, W), kept until they are forgotten."""

    def __init__(self, repainter: Repainter, images: Tensor, conditions_of: ConditionsOf) -> None:
        self.repainter, self.images, self.conditions_of = repainter, images, conditions_of
        self._made: dict[tuple[str, float, int], Tensor] = {}
        self._ceilings: dict[str, Tensor] = {}

    def get(self, candidate: str, strength: float, steps: int) -> Tensor | None:
        """Images (B, 3, H, W) in [-1, 1]; None where they cannot be made."""
        key = (candidate, strength, steps)
        if key not in self._made:
            found = self.repainter.repainted(self.images, self.conditions_of, candidate, strength, steps)
            self._made |= {(name, strength, steps): images for name, images in found.items()}
        return self._made.get(key)

    def ceiling(self, candidate: str) -> Tensor:
        """Images (B, 3, H, W) encoded and decoded by a candidate's backbone."""
        name = self.repainter.ceiling(candidate)
        if name not in self._ceilings:
            self._ceilings[name] = autoencoded(self.repainter.reader.backbone(candidate), self.images)
        return self._ceilings[name]

    def forget(self) -> None:
        """Drop the images that were made."""
        self._made.clear()
        self._ceilings.clear()
