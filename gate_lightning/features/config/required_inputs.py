"""What branches need with the images of a data set."""

from __future__ import annotations

from collections.abc import Sequence

from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.techniques.controlnet import CannyEdges, ControlNet, GivenControl
from gate_lightning.techniques.prompt import Prompt

__all__ = ["control_images_of", "required_inputs_of"]


def required_inputs_of(branches: Sequence[Branch]) -> RequiredInputs:
    """Control folders and caption files of the branches, for whatever hands out images.

    Raises:
        ConfigError: two folders for control images of one name.
    """
    techniques = [technique for branch in branches for technique in branch.techniques]
    controls = _controls(branches)
    folders: dict[str, str] = {}
    for control in controls:
        if not control.folder:
            continue
        image = control.image or control.control
        if folders.setdefault(image, control.folder) != control.folder:
            raise ConfigError(
                f"control images {image!r} are to come from {folders[image]} and from {control.folder}; give one of "
                f"the ControlNets a name of its own for them (image: …)"
            )
    if "canny" in folders and any(isinstance(control.source(), CannyEdges) for control in controls):
        raise ConfigError(
            f"control images 'canny' come from {folders['canny']}, and another branch takes its own Canny edges, which "
            f"they would replace; give the first a name of its own for them (image: …)"
        )
    return RequiredInputs(
        control_folders=folders,
        checks=tuple(one.check_images for one in dict.fromkeys(techniques) if isinstance(one, Prompt) and one.file),
        random_views=any(control.dropout for control in controls),
    )


def control_images_of(branches: Sequence[Branch]) -> dict[str, bool]:
    """Names of ``Conditions.control_images`` that the branches read → whether they must be given.

    Canny edges need not: they are made of the image where nobody gives them.
    """
    sources = [control.source() for control in _controls(branches)]
    optional = {"canny": False} if any(isinstance(source, CannyEdges) for source in sources) else {}
    return {**optional, **{source.name: True for source in sources if isinstance(source, GivenControl)}}


def _controls(branches: Sequence[Branch]) -> list[ControlNet]:
    return [technique for branch in branches for technique in branch.techniques if isinstance(technique, ControlNet)]
