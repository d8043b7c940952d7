"""Content of a browser tab and what it is shown: the page without its widgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gate_lightning.errors import DataError
from gate_lightning.ops.correspondence.read_outs import ReadOut
from gate_lightning.tools.app.features import ImageFeatures
from gate_lightning.tools.app.figures import Figure, figures
from gate_lightning.tools.app.kept_images import EXAMPLE_POINT, KeptImage, KeptImages
from gate_lightning.tools.app.settings import AS_GIVEN, Settings, command, words
from gate_lightning.tools.app.views import colours_of, match_of, shown, to_file, with_mark
from gate_lightning.tools.matching import Describer, PartsOf
from gate_lightning.utils.checks import check_choice

__all__ = ["VIEWS", "Screen", "Session", "Workbench"]

#: views of the images, with their titles
VIEWS = {"heat": "Match and heat map", "match": "Match alone", "colours": "Features as colours (PCA)"}
LEGENDS = {
    "heat": "Each image under its similarity to the point: black is its smallest value, yellow its largest.",
    "match": "The place in each image whose features are most similar to those of the point.",
    "colours": "Three principal components of the features, one basis for all images: equal colours, equal features.",
}


@dataclass(frozen=True)
class Session:
    """Content of one browser tab.

    Attributes:
        source: image that is clicked.
        targets: images that are searched.
        point: x, y in pixels of the source's file.
        settings: how images are read.
        view: of `VIEWS`.
    """

    source: KeptImage
    targets: tuple[KeptImage, ...]
    point: tuple[float, float]
    settings: Settings
    view: str = "heat"


@dataclass(frozen=True, eq=False)
class Screen:
    """Content of a tab's screen.

    Attributes:
        source: (h, w, 3) uint8, the source with a mark.
        figures: HTML of the other images.
        command: lines for a terminal, one for each target.
    """

    source: NDArray[np.uint8]
    figures: str
    command: str


class Workbench:
    """Backbone, features and images, shared by all tabs. A change of a session is a new session.

    Args:
        parts_of: makes extractor and amalgamation of a command line.
        read_out: rule by which matches are read off.
        resize, size, device: see `Describer`.
        images: keeps copies of what is dropped.
        limit: bytes of features that are kept.
        given: source and targets of the command line; without a source, examples.

    Raises:
        GateError: what the command line names cannot be loaded or read.
    """

    def __init__(
        self,
        parts_of: PartsOf,
        read_out: ReadOut,
        resize: str,
        size: int | None,
        device: str,
        images: KeptImages,
        limit: int,
        given: Sequence[str | Path] = (),
    ) -> None:
        self.images, self.read_out, self._parts_of = images, read_out, parts_of
        kept = [images.keep(path) for path in given] or images.examples()
        self.backbones = [name for name, _ in parts_of.choices("backbone")]
        self.initial = Settings.of_command(parts_of)
        given_branches = [AS_GIVEN] if AS_GIVEN in self.initial.techniques else []
        self.techniques = [*given_branches, "all", *parts_of.value("technique")]
        self.features = ImageFeatures(
            lambda words: Describer(partial(parts_of, ["tool=app", *words]), resize, size, device), limit
        )
        point = kept[0].middle if given else EXAMPLE_POINT
        self.first = Session(kept[0], tuple(kept[1:]), point, self.initial)
        self.screen(self.first)

    def layers(self, session: Session) -> list[str]:
        """Presets and layers of a session's backbone."""
        return self.features.layers(self.words(session.settings))

    def words(self, settings: Settings) -> tuple[str, ...]:
        """Words of the command line that settings stand for."""
        return words(self._parts_of.overrides, self.initial, settings)

    def screen(self, session: Session) -> Screen:
        """Screen of a session.

        Raises:
            GateError: settings or images cannot be read.
        """
        line = self.words(session.settings)
        source = self.features(line, session.source)
        targets = [self.features(line, image) for image in session.targets]
        if session.view == "colours":
            names = [image.path.name for image in (session.source, *session.targets)]
            made = [
                Figure(colours, name, "", aspect=one.image.shape[1] / one.image.shape[0], blocks=True)
                for colours, name, one in zip(colours_of([source, *targets]), names, (source, *targets), strict=True)
            ]
        else:
            found = [
                match_of(self.read_out, source, target, session.point, session.view == "heat") for target in targets
            ]
            made = [
                Figure(one.image, image.path.name, _told(one.point, one.similarity))
                for one, image in zip(found, session.targets, strict=True)
            ]
        commands = [command(line, session.source.path, image.path, session.point) for image in session.targets]
        return Screen(
            with_mark(shown(source.image), session.point, session.source.size),
            figures(made, LEGENDS[session.view]),
            "\n".join(commands),
        )

    def clicked(self, session: Session, x: float, y: float) -> Session:
        """The point at a pixel of the source as it is shown."""
        return replace(session, point=to_file(x, y, session.source.size))

    def with_source(self, session: Session, path: str | Path) -> Session:
        """Another source, whose middle is the point."""
        image = self.images.keep(path)
        return replace(session, source=image, point=image.middle)

    def with_targets(self, session: Session, paths: Sequence[str | Path]) -> Session:
        """Further targets; the examples make room for the first of one's own."""
        kept = [self.images.keep(path) for path in paths]
        before = () if session.targets == self.first.targets else session.targets
        return replace(session, targets=(*before, *(one for one in kept if one not in before)))

    def without_targets(self, session: Session) -> Session:
        """The session without any image to search in."""
        return replace(session, targets=())

    def turned(self, session: Session) -> Session:
        """The first target is the source, and the source the last target.

        Raises:
            DataError: there is no target.
        """
        if not session.targets:
            raise DataError("there is no other image; add one")
        source, *targets = session.targets
        return replace(session, source=source, targets=(*targets, session.source), point=source.middle)

    def with_view(self, session: Session, view: str) -> Session:
        """Another view of the images."""
        check_choice(view, "view", list(VIEWS))
        return replace(session, view=view)

    def with_settings(self, session: Session, settings: Callable[[], Settings]) -> Session:
        """The session with other settings.

        Raises:
            ConfigError: a value of another form, or a name that there is not.
        """
        made = settings()
        made.check(self.backbones, self.techniques)
        return replace(session, settings=made)


def _told(point: tuple[float, float] | None, similarity: float) -> str:
    return "no match" if point is None else f"({point[0]:.1f}, {point[1]:.1f}), similarity {similarity:.3f}"
