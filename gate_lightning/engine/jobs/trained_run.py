"""A trained run in Python: load it, predict images."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image as PILImage

from gate_lightning.callbacks.state.ema import averaged_weights
from gate_lightning.data.core.required_inputs import check_control_size
from gate_lightning.data.files.images import pixels_of, read_image
from gate_lightning.data.samples import Sample
from gate_lightning.engine.checks.saved_config import of_saved
from gate_lightning.engine.folder import run_folder as runs
from gate_lightning.engine.folder.checkpoints import require_sound
from gate_lightning.engine.parts.components import Components
from gate_lightning.errors import ConfigError, DataError
from gate_lightning.features.config.required_inputs import control_images_of
from gate_lightning.structures import Conditions
from gate_lightning.utils.checks import a_path, check_type

__all__ = ["TrainedRun", "load_run"]

#: a file, a PIL image, or uint8 (H, W, 3) RGB
Image = str | Path | PILImage.Image | np.ndarray


class TrainedRun:
    """A trained run: its configuration, its components, and its weights.

    Args:
        folder: run folder written by ``train.py``.
        config: resolved configuration, possibly patched.
        checkpoint: ``best``, ``last`` or a path.
        allow_changes: go on, with a warning, where the features are not those it was trained on.
        control_folders: name of control images → folder, where each is at its image's own path; instead of those of
            training.

    Raises:
        ConfigError: control images that the run does not read.
    """

    def __init__(
        self,
        folder: Path,
        config: DictConfig,
        checkpoint: str = "best",
        allow_changes: bool = False,
        control_folders: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        if checkpoint == "best" and not (config.get("trainer") or {}).get("limit_val_batches", 1.0):
            checkpoint = "last"  # without validation there is no best one
        self.components = Components(config, str(folder), control_folders=control_folders)
        #: None where nothing was trained
        self.checkpoint: Path | None = None
        if config.get("optimizer") is not None or not self.components.task_class.training_free:
            self.checkpoint = require_sound(runs.checkpoint_of(folder, checkpoint))
            if OmegaConf.select(config, "amalgamation.released"):
                config.amalgamation.released = None  # what training began from
        with of_saved(folder):
            self._needed_besides(self.components.control_folders)
            self.task = self.components.task
        self.task.allowed_changes = frozenset({"frozen"} if allow_changes else ())
        if self.checkpoint is not None:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.task.on_load_checkpoint(state)
            # the last state has the average of the weights, if there is one, beside them; the best one has it in place
            self.task.load_state_dict({**state["state_dict"], **averaged_weights(state)}, strict=False)
        self.task.eval()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a prediction's values index them."""
        return self.components.labels.classes

    def predict(
        self, image: Image, caption: str | None = None, control_images: Mapping[str, Image] | None = None
    ) -> np.ndarray:
        """Label map of one image.

        Args:
            image: a path, a PIL image, or an array (H, W, 3) uint8 RGB.
            caption: description for the ``prompt`` technique; None for the data set's fine prompt.
            control_images: name → control image of the image's size, for ControlNets whose images came from a
                folder in training. Canny edges need not be given.

        Returns:
            (H, W) uint8 class indices at the image's own size.

        Raises:
            ConfigError: an argument of another type, or control images that the run does not read.
            DataError: a broken file, a control image that is missing, or one of another size.
        """
        check_type(caption, "caption", str | None, "a text")
        check_type(
            control_images, "control_images", Mapping | None, "names and images, such as {'depth': 'a_depth.png'}"
        )
        # the noise is keyed by the name: the same as for this file in a folder given to eval.py
        name = Path(image).name if isinstance(image, str | Path) else "image"
        image = _pixels("image", image)
        controls = {key: _pixels(f"control image {key!r}", given) for key, given in (control_images or {}).items()}
        missing = self._needed_besides(controls)
        if missing:
            raise DataError(
                f"the ControlNets of this run need control images {', '.join(missing)} of {name!r}; give them: "
                f"control_images={{{missing[0]!r}: <file or array>}}"
            )
        for key, control in controls.items():
            check_control_size(key, "given", control.shape[:2], name, image.shape[:2])
        batch = self.components.datamodule.prepare(Sample(name, image, caption, controls))
        return self.label(batch.images, batch.conditions, image.shape[:2])

    def _needed_besides(self, given: Collection[str]) -> list[str]:
        """Names of control images that the run cannot do without; those given must be some that it reads."""
        read = control_images_of(self.components.branches_read)
        for name in given:
            if name not in read:
                there = f"reads {', '.join(read)}" if read else "reads none"
                raise ConfigError(f"control_images has {name!r}, but this run {there}; rename it or leave it out")
        return [name for name, needed in read.items() if needed and name not in given]

    @torch.no_grad()
    def shares(self, images: torch.Tensor, conditions: Conditions) -> np.ndarray:
        """Shares of the classes (K,) of one prepared image, of a run that classifies whole images; see `label`."""
        device = self.task.device
        found: np.ndarray = self.task.class_shares(images.to(device), conditions.to(device))[0].float().cpu().numpy()
        return found

    @torch.no_grad()
    def label(self, images: torch.Tensor, conditions: Conditions, size: tuple[int, ...]) -> np.ndarray:
        """Label map of one prepared image.

        Args:
            images: (1, 3, h, w) in [-1, 1], as the data module prepares them.
            conditions: of that image.
            size: (H, W) of the result.

        Returns:
            (H, W) uint8 class indices.

        Raises:
            ConfigError: the task makes no label maps.
        """
        device = self.task.device
        found = self.task.label_maps(images.to(device), conditions.to(device), (int(size[0]), int(size[1])))
        labels: np.ndarray = found[0].to(torch.uint8).cpu().numpy()
        return labels


def _pixels(what: str, image: Image) -> np.ndarray:
    """uint8 (H, W, 3) RGB."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    array = pixels_of(image, what) if isinstance(image, PILImage.Image) else image
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ConfigError(f"{what} is {found}; expected a file, a PIL image, or uint8 (height, width, 3) RGB")
    return array


def load_run(
    folder: str | Path, checkpoint: str = "best", allow_changes: bool = False, trust: bool = False
) -> TrainedRun:
    """A trained run, ready to predict.

    Args:
        folder: run folder.
        checkpoint: ``best``, ``last`` or a path.
        allow_changes: see `TrainedRun`; for a caption file that has grown, say.
        trust: build parts that the folder names although they are not of this package, and write where it says. They
            can be any program: for folders that are your own, or of somebody you trust.

    Raises:
        ConfigError: if the folder is no run folder, or needs ``trust``.
        ResumeError: if it has no such checkpoint, or one made with other frozen weights.
    """
    folder = a_path(folder, "folder")
    config = runs.load_config(folder, trust)
    runs.check_patched(config, folder, None, trust=trust)
    return TrainedRun(folder, config, checkpoint, allow_changes)
