"""What every stage of a run works with: folders, task, settings, seeds, device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bmnas.backbones import Backbone
from bmnas.backbones.regions import WindowsBackbone
from bmnas.backbones.words import EmbeddingBackbone
from bmnas.features.cache import FeatureCache, Folds, open_features
from bmnas.features.reshape import Reading
from bmnas.machine.costs import hardware, versions
from bmnas.machine.distributed import (
    broadcast,
    is_rank_zero,
    lock_folders,
    on_rank_zero,
    world_size,
)
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, check_seed
from bmnas.pipeline.config import Config
from bmnas.pipeline.run_folder import Run
from bmnas.spaces.registry import SPACES
from bmnas.spaces.space import SearchSpace
from bmnas.strategies import strategy_named
from bmnas.tasks.kinds import REGIONWISE, task_kind
from bmnas.tasks.task import Modality, Part, Task
from bmnas.tasks.words import word_task
from bmnas.training.heads import TaskHead, head_for, head_of


def check_outputs(task: Task, space: type[SearchSpace[Any]]) -> None:
    """Raise UserError where networks of ``space`` cannot give what ``task`` is about."""
    if task.outputs == REGIONWISE and not space.FINDS_REGIONS:
        names = [name for name, known in SPACES.items() if known.FINDS_REGIONS]
        raise UserError(
            f"task {task.name}: is about regions of pictures, which networks of space {space.NAME} "
            f"do not tell apart, expected space {' or '.join(names)}: give --strategy {names[0]}"
        )


def check_negatives(task: Task, config: Config) -> None:
    """Raise UserError for hard pairs of a ``task`` that has none; a paper's are passed over."""
    paper = strategy_named("mmnas").PAPER
    settings = {"train": config.train, "mmnas": config.strategies["mmnas"]}
    for section, own in settings.items():
        if own.negatives in (0, paper[section]["negatives"]) or task_kind(task.kind).PAIRS:
            continue
        raise UserError(
            f"{section}.negatives: received {own.negatives} with task {task.name} of kind "
            f"{task.kind}, which has no pairs, expected 0"
        )


def worded(task: Task, space: type[SearchSpace[Any]], features: Sequence[str] = ()) -> Task:
    """Return ``task`` as networks of ``space`` read it, which may have some ``features`` already.

    To those that read tokens a text is the vectors of its words, unless the task says otherwise: in
    what a network knows of a whole question, questions that differ in a word are much the same.
    Where a region of a picture is meant, it is read by windows.
    """
    if not space.READS_TOKENS:
        return task
    # Earlier runs read a later feature, of a network that an embedding alone does not have.
    deeper = {name.partition(".")[0] for name in features if not name.endswith(".1")}

    def own(modality: Modality) -> Modality:
        if modality.backbone is not None or modality.weights is not None:
            return modality
        if modality.type == "text" and modality.name not in deeper:
            return replace(modality, backbone=EmbeddingBackbone.family)
        if modality.type == "image" and task.outputs == REGIONWISE:
            return replace(modality, backbone=WindowsBackbone.family)
        return modality

    return replace(task, modalities=tuple(map(own, task.modalities)))


class RunContext:
    """One run, with a default for whatever is None.

    ``folder`` is its own, ``kept`` that of trained ``backbones`` and feature cache, by default
    inside it. ``backbone_seed`` is the seed that these backbones are trained with, by default
    ``seed``; networks run on the device that suits them best, and no progress is shown. Raises
    UserError for a seed out of range.
    """

    def __init__(
        self,
        folder: Run,
        task: Task,
        config: Config,
        seed: int,
        *,
        backbones: str | Path | None = None,
        backbone_seed: int | None = None,
        runtime: Runtime | None = None,
        progress: Progress | None = None,
    ) -> None:
        check_seed(seed)
        check_negatives(task, config)
        self.folder, self.task, self.config, self.seed = folder, task, config, seed
        self.kept = folder.backbones if backbones is None else Path(backbones)
        self.backbone_seed = seed if backbone_seed is None else backbone_seed
        self.runtime = Runtime.choose() if runtime is None else runtime
        # Of several ranks one talks.
        self.progress = progress if progress is not None and is_rank_zero() else Progress()

    @property
    def head(self) -> TaskHead:
        """Loss and score of the task."""
        return head_of(self.task, self.config.train.threshold)

    @property
    def learns_words(self) -> bool:
        """Whether unimodal networks learn the words of texts in place of the task."""
        return self.config.unimodal.words or not task_kind(self.task.kind).ALONE

    @property
    def adds_logits(self) -> bool:
        """Whether logits of unimodal networks are added to those of what is found."""
        return self.config.train.unimodal_logits and not self.learns_words

    @property
    def adds_words(self) -> bool:
        """Whether the words that both heads predict are compared too, in a matching task."""
        pairs = task_kind(self.task.kind).PAIRS
        # Backbones that are trained along leave their heads behind.
        return pairs and self.config.train.unimodal_logits and self.config.train.freeze_backbones

    @property
    def own_metric(self) -> str | None:
        """In what unimodal networks are measured, if not as the task is."""
        return head_for("multilabel").metric if self.learns_words else None

    def alone(self, modality: Modality) -> RunContext:
        """Return the context of the network of ``modality``: with what it learns as the task."""
        if not self.learns_words:
            return self
        context = copy.copy(self)
        context.task = word_task(self.task, modality)
        # A linear model finds the words of a text in its input and learns nothing. That is what is
        # wanted only where words are compared.
        linear = self.config.unimodal.linear and task_kind(self.task.kind).PAIRS
        context.config = self.config.override(
            "unimodal", words=False, linear=linear and modality.type == "text"
        )
        return context

    @property
    def shares_backbones(self) -> bool:
        """Whether trained backbones and feature cache lie outside the run's folder."""
        return self.kept.resolve() != self.folder.backbones.resolve()

    def record(self) -> dict[str, Any]:
        """Return what config.json says of any run: task, seed, settings, versions, hardware."""
        return {
            "task": {"name": self.task.name, "source": self.task.source},
            "seed": self.seed,
            "preset": self.config.preset,
            **self.config.to_dict(),
            "backbones": {
                "folder": str(self.kept.resolve()) if self.shares_backbones else None,
                "seed": self.backbone_seed,
            },
            "versions": versions(),
            "hardware": {
                **hardware(self.runtime.device),
                "bfloat16": self.runtime.computes_bfloat16(),
                "processes": world_size(),
            },
        }

    def work(self, result: Path, prepare: Callable[[], None], work: Callable[[], None]) -> None:
        """Do ``work`` unless ``result`` is there, while nobody else writes to the folders.

        Before that, one rank alone calls ``prepare``, which makes the folder ready or raises.
        """
        with lock_folders(self.folder.path, self.kept):
            on_rank_zero(prepare)
            if not broadcast(result.is_file()):
                work()

    def features(
        self,
        backbones: Mapping[str, Backbone],
        parts: tuple[Part, ...],
        length: int | None,
        *,
        folds: Mapping[str, Folds] | None = None,
        dtype: str | None = None,
        folder: Path | None = None,
    ) -> FeatureCache:
        """Return the features of ``parts``, pooled to ``length``, from the cache in ``folder``.

        With a length of None they are tokens with masks.
        That is by default the one in ``kept``, with the number type of the settings.
        """
        return open_features(
            self.task,
            backbones,
            folds=folds,
            parts=parts,
            reading=Reading(length),
            folder=self.kept / "features" if folder is None else folder,
            device=self.runtime.device,
            progress=self.progress,
            dtype=self.config.search.cache_dtype if dtype is None else dtype,
        )
