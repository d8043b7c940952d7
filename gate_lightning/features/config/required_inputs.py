"""Inputs that the techniques of branches need besides the images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.ops.edges import CannySettings
from gate_lightning.techniques.base import Technique

__all__ = ["control_images_of", "required_inputs_of"]


def required_inputs_of(branches: Sequence[Branch]) -> RequiredInputs:
    """Control folders and caption checks of all techniques, for ``ImageDataModule.attach_inputs``.

    Raises:
        ConfigError: two folders for control images of one name, or a folder that would replace images which another
            branch makes itself.
    """
    folders: dict[str, str] = {}
    checks: list[Callable[[Sequence[str]], None]] = []
    random_views = False
    edges: dict[CannySettings, None] = {}
    techniques = _techniques(branches)
    for technique in techniques:
        needed = technique.required_inputs()
        for name, folder in needed.control_folders.items():
            if folders.setdefault(name, folder) != folder:
                raise ConfigError(
                    f"control images {name!r} are to come from {folders[name]} and from {folder}; give one of the "
                    f"ControlNets a name of its own for them (image: …)"
                )
        checks += needed.checks
        random_views = random_views or needed.random_views
        edges |= dict.fromkeys(needed.edges)
    for name, folder in folders.items():
        if any(technique.control_images().get(name) is False for technique in techniques):
            raise ConfigError(
                f"control images {name!r} come from {folder}, and another branch makes its own, which they would "
                f"replace; give the first a name of its own for them (image: …)"
            )
    return RequiredInputs(folders, tuple(checks), random_views, edges=tuple(edges))


def control_images_of(branches: Sequence[Branch]) -> dict[str, bool]:
    """Names of the ``Conditions.control_images`` that the branches read → whether they are required."""
    read: dict[str, bool] = {}
    for technique in _techniques(branches):
        for name, needed in technique.control_images().items():
            read[name] = needed or read.get(name, False)
    return read


def _techniques(branches: Sequence[Branch]) -> list[Technique]:
    """Distinct techniques of all branches."""
    found: list[Technique] = []
    for technique in (technique for branch in branches for technique in branch.techniques):
        if technique not in found:
            found.append(technique)
    return found
