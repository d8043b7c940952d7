"""``dataset=images``: one's own images, without masks or classes, for what needs none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gate_lightning.data.card import DatasetCard, gate_branches
from gate_lightning.data.core.datamodule import ImageDataModule
from gate_lightning.data.core.prediction import ImageSource
from gate_lightning.data.files.checks import check_images
from gate_lightning.data.files.report import DataReport
from gate_lightning.data.samples import SampleSource
from gate_lightning.data.transforms.basic import Resize

__all__ = ["UnlabelledImages"]


class UnlabelledImages(ImageDataModule):
    """Images in a folder; all of them are the split ``test``.

    Args:
        root: a folder, searched with its subfolders, an image, or a pattern. A ``captions.txt`` in the folder gives
            captions (``path<TAB>caption``).
        resize_short: length of the shorter side; 0 keeps images as they are.
        prompt_simple, prompt_fine: prompts of the card; None for the simple one.
        loading: `ImageDataModule`'s arguments.

    Raises:
        DataError: there is no image.
        ConfigError: a setting out of range.
    """

    def __init__(
        self,
        root: str,
        resize_short: int = 0,
        prompt_simple: str = "a photo",
        prompt_fine: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.root, self.eval_resize = Path(root).expanduser(), Resize(resize_short)
        self.card = DatasetCard(self.root.resolve().name, prompt_simple, prompt_fine or prompt_simple, gate_branches())

    @property
    def splits(self) -> tuple[str, ...]:
        """The only split there is: ``test``, all images."""
        return ("test",)

    def make_source(self, split: str) -> SampleSource:
        """All images, whatever the split."""
        return ImageSource(self.root)

    def check(self, level: str = "full") -> DataReport:
        """Check the images without a run; errors are in the report, not raised.

        Args:
            level: ``quick`` or ``full``.
        """
        paths, unfit = ImageSource(self.root).paths, self.eval_resize.too_long
        return DataReport(str(self.root), (), (check_images("test", paths, level, unfit),))
