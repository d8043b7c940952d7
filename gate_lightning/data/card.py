"""Facts about a data set: its card (name, prompts, branches, citation), and its class labels where it has masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gate_lightning.errors import ConfigError

__all__ = ["IGNORE_INDEX", "RGB", "ClassLabels", "DatasetCard", "check_classes", "gate_branches"]

#: ignored value of every mask that leaves this package, whatever the files hold
IGNORE_INDEX = 255
#: 8-bit red, green, blue
RGB = tuple[int, int, int]


def gate_branches() -> tuple[dict[str, Any], ...]:
    """Branches of ``techniques=all`` in semantic segmentation (GATE, appendix on ADE20K and Cityscapes).

    One branch with the fine prompt only, two with ControlNet and a LoRA besides: one moderately trained, one slightly
    over-trained.
    """
    return (
        {"name": "prompt", "techniques": ["prompt"]},
        {"name": "moderate", "techniques": ["prompt", "controlnet", "lora"], "lora": {"role": "moderate"}},
        {"name": "overtrained", "techniques": ["prompt", "controlnet", "lora"], "lora": {"role": "overtrained"}},
    )


@dataclass(frozen=True)
class DatasetCard:
    """Facts about a data set, with or without masks.

    Attributes:
        name: name of the data set.
        prompt_simple: prompt of the plain branch; fits every image. {category} in it stands for the image's category.
        prompt_fine: fine-grained prompt for images without a caption of their own.
        branches: branches of ``techniques=all``, as plain mappings.
        citation, licence: for reports; empty where unknown.
    """

    name: str
    prompt_simple: str = "a photo"
    prompt_fine: str = "a photo"
    branches: tuple[Mapping[str, Any], ...] = ()
    citation: str = ""
    licence: str = ""


@dataclass(frozen=True)
class ClassLabels:
    """Classes of a segmented data set.

    Attributes:
        classes: K class names; the position is the value in masks.
        palette: K colours for showing masks.
        ignore_index: ignored value in masks, neither counted nor trained; always 255 inside the program.
        submission: values 0 … 255 of the K classes in the PNGs that the benchmark's server takes; () where there is no
            server.

    Raises:
        ConfigError: no classes, more than 255, a name twice, or a palette that does not fit.
    """

    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    ignore_index: int = IGNORE_INDEX
    submission: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", check_classes(self.classes, "class labels"))
        colours = tuple(tuple(int(value) for value in colour) for colour in self.palette)
        if len(colours) != len(self.classes):
            raise ConfigError(f"palette has {len(colours)} colours for {len(self.classes)} classes")
        if any(len(colour) != 3 or not all(0 <= value <= 255 for value in colour) for colour in colours):
            raise ConfigError(f"palette must hold (red, green, blue) from 0 to 255, got {colours}")
        object.__setattr__(self, "palette", colours)
        values = self.submission
        if values and (len(set(values)) != len(self.classes) or not all(0 <= value <= 255 for value in values)):
            raise ConfigError(f"submission must hold a value from 0 to 255 of its own per class: {values}")
        if 0 <= self.ignore_index < len(self.classes):
            raise ConfigError(
                f"ignore_index {self.ignore_index} is also class {self.classes[self.ignore_index]!r}; "
                f"expected a value outside 0 … {len(self.classes) - 1}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.classes)


def check_classes(classes: Iterable[str], source: object) -> tuple[str, ...]:
    """The names without surrounding blanks.

    Args:
        classes: class names in the order of their values.
        source: file or data set they come from, for the message.

    Raises:
        ConfigError: none, more than 255 (masks are 8 bit and 255 is ignored), an empty one, or one twice.
    """
    names = tuple(str(name).strip() for name in classes)
    if not 1 <= len(names) < IGNORE_INDEX + 1:
        raise ConfigError(f"{source}: {len(names)} classes; expected 1 to {IGNORE_INDEX}")
    for number, name in enumerate(names):
        if not name:
            raise ConfigError(f"{source}: class {number} has an empty name")
        if name in names[:number]:
            raise ConfigError(f"{source}: class {name!r} is there twice, as {names.index(name)} and {number}")
    return names
