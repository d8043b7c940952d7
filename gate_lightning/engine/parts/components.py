"""From a resolved configuration to live objects: the composition root.

Every part is built on demand, and a task is given the components that its constructor names. So a task that needs no
amalgamation (training an autoencoder, say) never builds one, and a new part is one property here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

from hydra.utils import get_class
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gate_lightning.backbones.base import Backbone
from gate_lightning.backbones.weights.checkpoints import read_tensors
from gate_lightning.data.card import ClassLabels, DatasetCard, gate_branches
from gate_lightning.data.core.required_inputs import RequiredInputs
from gate_lightning.engine.checks.saved_paths import located
from gate_lightning.engine.command.used_keys import ONLY_TRAINING, READS, takes_dataset
from gate_lightning.engine.parts.building import built, built_group, call_with, called, check_kinds, check_values
from gate_lightning.engine.parts.extraction import MAIN, branches_of, candidates_of, edge_channels, extractor_of
from gate_lightning.engine.parts.trainers import trainer_of
from gate_lightning.engine.parts.views import stored_views, view_count
from gate_lightning.errors import ConfigError
from gate_lightning.features.branch import Branch
from gate_lightning.features.config.required_inputs import required_inputs_of
from gate_lightning.losses.cross_entropy import CrossEntropyLoss
from gate_lightning.pixel_classifiers.store import group_widths
from gate_lightning.structures import Extractor
from gate_lightning.tasks.base import BaseTask
from gate_lightning.tasks.content_shift.candidates import Candidates
from gate_lightning.utils.precision import allow_tf32

__all__ = ["Components", "card_and_classes", "task_class_of"]


class Components:
    """The components of one run.

    Args:
        config: resolved configuration (see ``engine.runs.resolve``).
        run_folder: where callbacks and loggers write.
        training: whether the components are to train. Only then ``cache.augmented_views`` counts.
        control_folders: name of control images → folder to take them from, instead of that of the configuration.
    """

    def __init__(
        self,
        config: DictConfig,
        run_folder: str,
        training: bool = False,
        control_folders: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.run_folder = run_folder
        self.training = training
        self.control_folders = dict(control_folders or {})
        if "tf32" in config:
            allow_tf32(config.tf32)

    @cached_property
    def datamodule(self) -> Any:
        """The data module of ``dataset``; that of ``task.data`` where the task reads data sets in its own way.

        The latter is given the former if its constructor names it (``dataset``).
        """
        own, dataset = OmegaConf.select(self.config, "task.data"), self.config.get("dataset")
        if own is None or dataset is None or own.get("_target_") in (None, dataset._target_):
            return built_group(self.config, "dataset")
        given = {"dataset": dataset} if takes_dataset(own) else {}
        return built(OmegaConf.create({**_plain(own), **given}), "task.data")

    @property
    def card(self) -> DatasetCard:
        """Card of the data set."""
        card: DatasetCard = self.datamodule.card
        return card

    @property
    def labels(self) -> ClassLabels:
        """Classes of the data set.

        Raises:
            ConfigError: it has none.
        """
        labels: ClassLabels | None = getattr(self.datamodule, "labels", None)
        if labels is None:
            raise ConfigError(
                f"task, head or loss needs classes, and {self.card.name} ({type(self.datamodule).__name__}) has none; "
                "choose a data set with masks: dataset=folder, ade20k, cityscapes, scenes …"
            )
        return labels

    @property
    def trained_on(self) -> Any:
        """Card and classes of the data set that the run was trained on, which the branches are built from.

        Evaluation on another data set reads the trained branches. A tool without data set has plain prompts.
        """
        saved = self.config.get("trained_on")
        if saved is not None:
            return SimpleNamespace(**_plain(saved))
        if self.config.get("dataset") is None:
            return DatasetCard("images", branches=gate_branches())
        return SimpleNamespace(**card_and_classes(self.datamodule))

    def record_card(self) -> DictConfig:
        """The configuration with card and classes of the data set, so that evaluation on another one reads the trained
        branches."""
        if "techniques" in self.config:  # else no branches are built
            plain = {**_plain(self.config), "trained_on": card_and_classes(self.datamodule)}
            self.config = OmegaConf.create(plain)
        return self.config

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen diffusion model of ``backbone``."""
        return built_group(self.config, "backbone")

    @cached_property
    def backbones(self) -> dict[str, Backbone]:
        """All backbones by the names that branches give; the one of ``backbone`` is the first."""
        nodes = self.config.backbones
        if not nodes:
            return {"": self.backbone}
        for name, key in ((name, key) for name, node in nodes.items() for key in ("scale", "size") if key in node):
            raise ConfigError(
                f"backbones.{name}.{key}: the size at which backbones see images is one key for all of them: "
                f"backbone_scale={{{MAIN}: {self.config.backbone_scale}, {name}: <factor on the sides>}}"
            )
        return {MAIN: self.backbone, **{name: built(node, f"backbones.{name}") for name, node in nodes.items()}}

    @cached_property
    def branches(self) -> list[Branch]:
        """Branches that are read, as ``techniques technique timestep layers separate_noises ensemble`` say."""
        return branches_of(_plain(self.config), self.trained_on, partial(built, where="technique"))

    @cached_property
    def candidates(self) -> Candidates:
        """Candidates that are compared: the branches, without those whose weights are missing."""
        return candidates_of(_plain(self.config), self.trained_on, partial(built, where="technique"))

    @property
    def branches_read(self) -> Sequence[Branch]:
        """The branches that the task reads: its candidates, where it compares some."""
        compared = "candidates" in inspect.signature(self.task_class).parameters
        return self.candidates.branches if compared else self.branches

    @cached_property
    def required_inputs(self) -> RequiredInputs:
        """Inputs that the branches need with the images, and the number of views of each training image."""
        found = required_inputs_of(self.branches_read)
        views = view_count(self.config) if self.training else 0
        folders = {**found.control_folders, **self.control_folders}
        own = edge_channels(self.config)
        edges = dict.fromkeys([*found.edges, *([] if own is None else [own])])
        return replace(found, control_folders=folders, view_cycle=views or None, edges=tuple(edges))

    @cached_property
    def connected_datamodule(self) -> Any:
        """The data module of the task, told what the task's techniques need with its images, before it is set up.

        Raises:
            ConfigError: its batches are of another kind than those of the task.
        """
        self._check_batch_types()
        if {"extractor", "candidates"} & set(inspect.signature(self.task_class).parameters):
            self.datamodule.attach_inputs(self.required_inputs)
        return self.datamodule

    def _check_batch_types(self) -> None:
        task, data = self.task_class, type(self.datamodule)
        wanted, given = task.batch_type, getattr(data, "batch_type", None)
        if given is None or issubclass(given, wanted):
            return
        raise ConfigError(
            f"{task.__name__} (task=) takes batches of {wanted.__name__}: {_first_line(wanted)} "
            f"{data.__name__} (dataset=) gives batches of {given.__name__}: {_first_line(given)} "
            f"Choose a data set whose batch_type is {wanted.__name__}, or the task for {given.__name__}"
        )

    @cached_property
    def extractor(self) -> Extractor:
        """Backbones × branches, behind wrappers and caches."""
        views = stored_views(self.config, self.connected_datamodule) if self.training else 0
        config = OmegaConf.merge(
            self.config, {"cache": {"folder": located(OmegaConf.select(self.config, "cache.folder"), self.run_folder)}}
        )
        return extractor_of(config, self.branches, self.backbones, views)  # type: ignore[arg-type]

    @cached_property
    def amalgamation(self) -> nn.Module:
        """Fuses the branches; its channel numbers come from the extractor."""
        made = built_group(self.config, "amalgamation")
        info = self.extractor.feature_info
        if isinstance(made, partial) and "backbone_groups" in inspect.signature(made.func).parameters:
            return call_with(made, backbone_groups=group_widths(info, self.backbone_groups))
        fused: nn.Module = call_with(
            made, feature_info=info, concatenated=self.extractor.concatenated, read_weights=read_tensors
        )
        if self.config.amalgamation.get("released") and not self.training:
            fused.requires_grad_(False)  # measured as it was released
        return fused

    @cached_property
    def backbone_groups(self) -> dict[str, tuple[str, ...]]:
        """Group → branches that an amalgamation of pixels stacks: those of one backbone.

        Those that are to be concatenated are alone, all of them where the amalgamation does nothing else.
        """
        made = built_group(self.config, "amalgamation")
        separate = getattr(getattr(made, "func", made), "separate_branches", False)
        of_branch = {branch.name: branch.backbone or MAIN for branch in self.branches}
        found: dict[str, list[str]] = {}
        for branch in self.extractor.feature_info:
            alone = separate or branch in self.extractor.concatenated or branch not in of_branch
            found.setdefault(f"branch {branch}" if alone else of_branch[branch], []).append(branch)
        return {group: tuple(branches) for group, branches in found.items()}

    @cached_property
    def head(self) -> nn.Module:
        """Decode head: pyramid → logits."""
        return self._head(self.config.head.decode, "head.decode")

    @cached_property
    def auxiliary_head(self) -> nn.Module | None:
        """Second head with its own, smaller loss, or None."""
        node = self.config.head.get("auxiliary")
        return None if node is None else self._head(node, "head.auxiliary")

    def _head(self, node: DictConfig, where: str) -> nn.Module:
        made = built(node, where)
        return call_with(
            made,
            in_channels=self.amalgamation.out_channels,
            strides=getattr(self.amalgamation, "strides", ()),  # pixels have none
            **self._about_classes(made, "num_classes"),
        )

    @cached_property
    def loss(self) -> nn.Module:
        """Logits and masks → scalar."""
        return self._loss(built_group(self.config, "loss"))

    @cached_property
    def auxiliary_loss(self) -> nn.Module:
        """Loss of the auxiliary head: plain cross-entropy, as in GATE's runs and mmsegmentation's recipes."""
        return self._loss(partial(CrossEntropyLoss))

    def _loss(self, made: Callable[..., nn.Module]) -> nn.Module:
        return call_with(made, **self._about_classes(made, "ignore_index", "num_classes"))

    def _about_classes(self, made: Any, *names: str) -> dict[str, Any]:
        """Facts about the classes that a partial wants; data sets without classes are asked for none."""
        parameters = inspect.signature(made.func).parameters if isinstance(made, partial) else ()
        wanted = [name for name in names if name in parameters and name not in made.keywords]
        return {name: getattr(self.labels, name) for name in wanted}

    @property
    def optimizer(self) -> Callable[..., Any]:
        """Partial that takes the parameters."""
        return partial(called, built_group(self.config, "optimizer"), Optimizer)

    @property
    def scheduler(self) -> Callable[..., Any] | None:
        """Partial that takes the optimiser and the number of optimiser steps, or None."""
        if self.config.get("scheduler") is None:
            return None
        return partial(called, built_group(self.config, "scheduler"), LRScheduler)

    @property
    def task_class(self) -> type[BaseTask]:
        """Class that the key ``task`` names."""
        return task_class_of(self.config)

    @cached_property
    def task(self) -> BaseTask:
        """The task of ``task``, given the components it names."""
        node, target = self.config.task, self.task_class
        _ = self.connected_datamodule
        own = {key: value for key, value in node.items() if key not in ("_target_", "_convert_", "data")}
        wanted = inspect.signature(target).parameters
        injected = {
            name: getattr(self, name)
            for name in READS
            if name in wanted and name not in own and not self._left_out(name, wanted[name])
        }
        check_kinds(target, injected)
        check_values({"_target_": node._target_, **_plain(OmegaConf.create(own))}, "task")
        return target(**injected, **built(OmegaConf.create(own), "task"))

    def _left_out(self, name: str, parameter: inspect.Parameter) -> bool:
        """True if the configuration has nothing to make an optional component of: what is only measured trains none."""
        return parameter.default is None and name in ONLY_TRAINING and self.config.get(name) is None

    @cached_property
    def trainer(self) -> Trainer:
        """The Lightning trainer with its callbacks and loggers."""
        return trainer_of(self.config, self.run_folder)


def task_class_of(config: DictConfig) -> type[BaseTask]:
    """Class that the key ``task`` names.

    Raises:
        ConfigError: it is not derived from `BaseTask`.
    """
    found = get_class(config.task._target_)
    if not issubclass(found, BaseTask):
        raise ConfigError(f"task._target_={config.task._target_}: expected a class derived from BaseTask")
    return found


def card_and_classes(datamodule: Any) -> dict[str, Any]:
    """Plain data that branches are built from: name, prompts and branches of the card, names of the classes."""
    card: DatasetCard = datamodule.card
    labels: ClassLabels | None = getattr(datamodule, "labels", None)
    return {
        "name": card.name,
        "prompt_simple": card.prompt_simple,
        "prompt_fine": card.prompt_fine,
        "branches": [dict(branch) for branch in card.branches],
        "classes": [] if labels is None else list(labels.classes),
    }


def _first_line(documented: type) -> str:
    return (documented.__doc__ or "").strip().partition("\n")[0]


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
