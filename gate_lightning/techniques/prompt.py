"""Prompts: text about the image, one for all images, one per category or one per image."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import AdapterKind
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.data.files.captions import CaptionFile
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Card, Conditioning, Technique
from gate_lightning.utils.checks import check_choice, check_type

__all__ = ["Prompt"]

DEFAULT_TEMPLATE = "a photo of a {category}"


#: where prompts come from if neither ``text`` nor ``file`` nor ``embedding`` is given
SOURCES = ("caption", "fine", "simple", "category", "classes")


@dataclass(frozen=True)
class Prompt(Technique):
    """Fine-grained prompt (GATE §5.1): one text for all images, one per category (DIFT), or one per image.

    At most one of ``text``, ``file``, ``embedding`` and ``source`` is given; the default is each image's caption.

    Args:
        text: prompt of all images.
        fallback: prompt of images without caption, entry or category; None makes them an error (with a data set, its
            fine prompt replaces missing captions).
        file: file of captions by image, see ``data.files.captions``; read by the constructor.
        template: prompt with the image's entry of ``Conditions.categories``; None for "a photo of a {category}".
        embedding: file of a learned prompt embedding, in place of any text.
        tokens: files of learned tokens for use in prompts (textual inversion).
        source: "caption", "category" (the default with a template), or of the data set's card "fine", "simple" and
            "classes" (names of its classes, joined by commas), which `bound` fills in.

    Raises:
        ConfigError: several of them, or a template that does not hold {category} or holds something else.
        DataError: the file is missing or broken.
    """

    text: str | None = None
    fallback: str | None = None
    file: str | None = None
    template: str | None = None
    embedding: str | None = None
    tokens: tuple[str, ...] = ()
    source: str | None = None
    _captions: CaptionFile | None = field(init=False, default=None, repr=False, compare=False)

    kind = "prompt"
    order = 10
    short = "text"
    decides = "prompt"
    exclusive = ("source", "text", "file", "embedding")

    def __post_init__(self) -> None:
        for key in ("text", "fallback", "file", "template", "embedding"):
            check_type(
                getattr(self, key), f"prompt.{key}", str | int | float | PathLike | None, "one text for all images"
            )
        check_type(self.tokens, "prompt.tokens", str | PathLike | Sequence | None, "files of learned tokens")
        given = {
            key: _plain(getattr(self, key)) for key in ("text", "file", "embedding") if getattr(self, key) is not None
        }
        if self.source is not None:
            check_choice(self.source, "prompt.source", SOURCES)
        if len(given) > 1 or (given and self.source not in (None, "caption")):
            named = [f"{key}={value!r}" for key, value in given.items()] + (
                [f"source={self.source}"] if self.source else []
            )
            raise ConfigError(f"the prompt technique has {' and '.join(named)}; leave out all but one")
        source = None if given else self.source or ("category" if self.template is not None else "caption")
        tokens: Any = self.tokens or ()
        tokens = (tokens,) if isinstance(tokens, str | PathLike) else tokens
        # settings without effect are dropped, so that techniques with equal prompts are equal
        template = str(self.template or DEFAULT_TEMPLATE) if source == "category" else None
        fallback = self.fallback if source in ("caption", "category") or "file" in given else None
        fallback = None if fallback is None else str(fallback)
        settled = {**given, "source": source, "tokens": tuple(map(_plain, tokens)), "template": template}
        for key, value in {**settled, "fallback": fallback}.items():
            object.__setattr__(self, key, value)
        if template is not None:
            _check_template(template)
        if self.file is not None:
            object.__setattr__(self, "_captions", CaptionFile(self.file))

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able; the caption file by its content."""
        described: dict[str, object] = {"technique": self.kind, "text": self.text, "fallback": self.fallback}
        if self.template is not None:
            described["template"] = self.template
        if self._captions is not None:
            described["captions"] = self._captions.digest
        if self._learned:
            described["learned"] = [
                name for name, _, _ in self._learned
            ]  # their content is in the backbone's description
        return described

    def bound(self, card: Card, seed: int) -> Prompt:
        """With the data set's prompts or class names, according to ``source``."""
        if self.source == "caption":
            return replace(self, fallback=self.fallback or card.prompt_fine or None)
        if self.source in ("fine", "simple"):
            text = card.prompt_fine if self.source == "fine" else card.prompt_simple
            by_category = "{category}" in text
            return (
                replace(self, source="category", template=text)
                if by_category
                else replace(self, source=None, text=text)
            )
        if self.source == "classes":
            classes = getattr(card, "classes", None)
            if not classes:
                raise ConfigError(
                    f"prompt.source=classes, but {card.name} has no list of classes here; give the prompt as text: "
                    f"Prompt(<text>) (technique.prompt.text=<text>)"
                )
            return replace(self, source=None, text=", ".join(classes))
        return self

    def required_inputs(self) -> RequiredInputs:
        """Check that all images have an entry in the caption file."""
        return RequiredInputs(checks=(self.check_images,) if self._captions is not None else ())

    def without_effect(self) -> tuple[str, ...]:
        """The template, if the prompt has no category."""
        return () if self.source == "category" else ("template",)

    @property
    def _learned(self) -> list[tuple[str, str, AdapterKind]]:
        """Name in the backbone, file and kind of each learned embedding."""
        files: list[tuple[str, AdapterKind]] = [(file, "tokens") for file in self.tokens]
        files += [(self.embedding, "prompt")] if self.embedding is not None else []
        return [(f"{kind}_{Path(file).stem.replace('.', '_')}", file, kind) for file, kind in files]

    def prepare(self, backbone: Backbone) -> None:
        """Load learned tokens and prompts into the backbone."""
        self.check_supported(backbone)
        self._check_bound()
        for name, file, kind in self._learned:
            backbone.require_adapter(name, file, kind)

    def prompt_length(self, backbone: Backbone) -> int:
        """Number of tokens of a prompt common to all images; else 0."""
        text = "" if self.embedding is not None else self.text
        return 0 if text is None else backbone.text_length(text, tuple((name, 1.0) for name, _, _ in self._learned))

    def check_images(self, sample_ids: Sequence[str]) -> None:
        """Raise DataError unless all these images have an entry in the caption file, where one is needed."""
        if self._captions is not None and self.fallback is None:
            self._captions.table.check(sample_ids)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Replace the prompts of all images."""
        self._check_bound()
        if self.embedding is not None:
            prompts = ("",) * len(images)
        elif self.text is not None:
            prompts = (self.text,) * len(images)
        elif self._captions is not None:
            prompts = self._from_file(self._captions, conditions)
        elif self.template is not None and conditions.categories is not None:
            prompts = tuple(self.template.format(category=name) for name in conditions.categories)
        elif self.template is None and conditions.captions is not None:
            prompts = tuple(conditions.captions)
        else:
            prompts = (self._without_own(),) * len(images)
        learned = tuple((name, 1.0) for name, _, _ in self._learned)
        return replace(conditioning, prompts=prompts, adapters=(*conditioning.adapters, *learned))

    def _from_file(self, captions: CaptionFile, conditions: Conditions) -> tuple[str, ...]:
        found = [captions.table.get(sample_id) for sample_id in conditions.sample_ids]
        texts = [self.fallback if text is None else text for text in found]
        missing = [name for name, text in zip(conditions.sample_ids, texts, strict=True) if text is None]
        if missing:
            raise captions.table.missing(missing, len(texts))
        return tuple(text for text in texts if text is not None)

    def _without_own(self) -> str:
        if self.fallback is not None:
            return self.fallback
        if self.template is not None:
            raise DataError(
                f"the prompt {self.template!r} names the category, but these images have none; give the prompt "
                f"technique one text for all, or a fallback"
            )
        raise DataError(
            "the prompt technique reads captions, but the images have none; add captions to the images, or give the "
            "technique one text for all, a file of captions, or a fallback"
        )

    def _check_bound(self) -> None:
        if self.source in ("fine", "simple", "classes"):
            raise ConfigError(f"prompt.source={self.source}: a data set's own, and there is none here; give a text")


def _plain(value: Any) -> str:
    """A text as such; a path or an entry of a folder as its path; a number as text."""
    return str(fspath(value) if isinstance(value, PathLike) else value)


def _check_template(template: str) -> None:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"prompt template {template!r}: {error}; expected e.g. 'a photo of a {{category}}'"
        ) from error
    if set(names) != {"category"}:
        found = f"names {', '.join(map(repr, names))}" if names else "names nothing"
        raise ConfigError(f"prompt template {template!r} {found}; expected {{category}} and nothing else in braces")
