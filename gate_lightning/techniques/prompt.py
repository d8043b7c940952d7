"""The prompt technique: telling the denoiser what the image shows."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.specs import AdapterKind
from gate_lightning.data.files.caption_files import CaptionFile
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.structures import Conditions
from gate_lightning.techniques.base import Conditioning

__all__ = ["Prompt"]


@dataclass(frozen=True)
class Prompt:
    """A fine-grained prompt (GATE §5.1): one text for all images, one per category (DIFT), or one per image.

    One of ``text``, ``file``, ``template`` and ``embedding`` is used; without them each image's own caption is.

    Args:
        text: the prompt of all images.
        fallback: the prompt of images without caption, entry or category; None makes them an error.
        file: captions by image, see ``data.caption_files``; read when the technique is made.
        template: prompt of an image of ``Conditions.categories``, e.g. "a photo of a {category}".
        embedding: file of a prompt that was learned as a whole, in place of any text.
        tokens: files of learned tokens that the prompts may use (textual inversion).

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
    _captions: CaptionFile | None = field(init=False, default=None, repr=False, compare=False)

    name = "prompt"
    order = 10

    def __post_init__(self) -> None:
        given = [name for name in ("text", "file", "template", "embedding") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"the prompt technique has {' and '.join(given)}; give one of them")
        if self.template is not None:
            _check_template(self.template)
        if self.file is not None:
            object.__setattr__(self, "_captions", CaptionFile(self.file))

    @property
    def description(self) -> dict[str, object]:
        """Settings, JSON-able; the caption file by its content."""
        described: dict[str, object] = {"name": self.name, "text": self.text, "fallback": self.fallback}
        if self.template is not None:
            described["template"] = self.template
        if self._captions is not None:
            described["captions"] = self._captions.digest
        if self._learned:
            described["learned"] = [name for name, _, _ in self._learned]  # their content is the backbone's to tell
        return described

    @property
    def _learned(self) -> list[tuple[str, str, AdapterKind]]:
        """Name in the backbone, file and kind of what was learned."""
        files: list[tuple[str, AdapterKind]] = [(file, "tokens") for file in self.tokens]
        files += [(self.embedding, "prompt")] if self.embedding is not None else []
        return [(f"{kind}_{Path(file).stem.replace('.', '_')}", file, kind) for file, kind in files]

    def prepare(self, backbone: Backbone) -> None:
        """Check that the backbone reads prompts, and load what was learned."""
        if self.name not in backbone.supports:
            raise ConfigError(f"{backbone.identity.name} reads no prompts; use techniques=none with it")
        for name, file, kind in self._learned:
            backbone.require_adapter(name, file, kind)

    def length(self, backbone: Backbone) -> int:
        """Tokens of the prompt, where all images have one; else 0. After ``prepare``."""
        text = "" if self.embedding is not None else self.text
        return 0 if text is None else backbone.text_length(text, tuple((name, 1.0) for name, _, _ in self._learned))

    def check_images(self, sample_ids: Sequence[str]) -> None:
        """Raise DataError unless all these images have an entry in the caption file, where one is needed."""
        if self._captions is not None and self.fallback is None:
            self._captions.table.check(sample_ids)

    def apply(
        self, conditioning: Conditioning, images: Tensor, conditions: Conditions, backbone: Backbone
    ) -> Conditioning:
        """Replace the prompts."""
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
                f"the prompt {self.template!r} names the category (technique.prompt.source=category), but these "
                f"images have none; set technique.prompt.text=<one prompt>, or technique.prompt.fallback"
            )
        raise DataError(
            "the prompt technique reads captions (technique.prompt.source=caption), but the images have none; "
            "add captions to the data set, name a file of them (technique.prompt.file=<file>), or set "
            "technique.prompt.source=fine (the data set's own prompt)"
        )


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
