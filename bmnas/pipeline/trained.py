"""A trained network as one file: weights as safetensors, the description as JSON inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from bmnas.backbones import backbone_from_spec
from bmnas.machine.errors import UserError, at, one_line
from bmnas.machine.schema import Range, plain, read
from bmnas.machine.tensor_file import read_tensors, write_tensors
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork, channels_of
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.fusions.space import NO_FUSION, NamedFusion
from bmnas.spaces.registry import architecture_from_dict, build_fusion
from bmnas.tasks.kinds import LabelScale, task_kind
from bmnas.tasks.task import Task
from bmnas.training.heads import TaskHead, head_for
from bmnas.training.settings import Weighing

FORMAT = "bmnas.network/1"


@dataclass(frozen=True)
class TaskInfo:
    """What a trained network knows of its task.

    ``source`` is what ``load_task`` takes to find the data again; ``threshold`` turns the
    probabilities into labels and is None for a kind of task that needs none, as is ``scale`` where
    labels are no numbers. ``sources`` say how rows of each modality are made of a table, by what
    was fitted to train; None for a task of no table, and in files of earlier versions.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    threshold: float | None
    source: dict[str, Any]
    scale: LabelScale | None = None
    sources: Mapping[str, Any] | None = None

    @property
    def head(self) -> TaskHead:
        """The head of its kind; raises UserError for a kind that is not registered."""
        return head_for(self.kind, self.threshold, names=self.class_names, scale=self.scale)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the architecture and the task that it was trained for."""

    network: MultimodalNetwork
    architecture: Architecture
    task: TaskInfo
    dropout: float

    @property
    def genotype(self) -> Architecture | None:
        """What a search found; None for a hand-made fusion."""
        return self.architecture if self.architecture.SEARCHED else None

    def save(self, path: Path) -> None:
        """Write the network's file, whole or not at all."""
        network = self.network
        description = Description(
            FORMAT,
            {name: network.backbone(name).spec() for name in network.modalities},
            self.task,
            self.dropout,
            genotype=self.architecture.to_dict(),
            weighing=network.weighing,
            modalities=network.modalities,
        )
        content = {k: v for k, v in plain(description).items() if v is not None}
        write_tensors(path, network.state_dict(), content)


@dataclass(frozen=True)
class Description:
    """What a network's file says beside the weights.

    ``modalities`` are in their order, which ``backbones``, an object of JSON, do not keep: a
    hand-made fusion takes its features in it. Files of earlier versions have a hand-made fusion as
    ``fusion`` instead of ``genotype``, and ``unimodal_logits`` for a sum in which every weight is
    one.
    """

    format: str
    backbones: Mapping[str, Any]
    task: TaskInfo
    dropout: Annotated[float, Range(0, below=1)]
    unimodal_logits: bool = False
    genotype: Any = None
    fusion: Any = None
    weighing: Weighing | None = None
    modalities: tuple[str, ...] = ()

    def architecture(self, path: Path) -> Architecture:
        """Return the architecture; raises UserError that names ``path``."""
        if self.fusion is not None:
            return NamedFusion.from_dict(self.fusion, str(path))
        return architecture_from_dict(self.genotype, str(path))


def read_description(path: Path) -> tuple[Architecture, TaskInfo]:
    """Return the architecture and the task that a network's file was written for.

    Raises UserError as ``load_network`` does.
    """
    description, _ = _read(path, tensors=False)
    return description.architecture(path), description.task


def load_network(path: Path, task: Task | None = None) -> TrainedNetwork:
    """Read a network's file and build the network, in evaluation mode on the CPU.

    ``task`` is needed where a backbone is a user's own module: the task names it, since a file must
    not choose which code is imported. Raises UserError, one line naming the file, when it is
    missing, damaged or of another format.
    """
    description, tensors = _read(path, tensors=True)
    architecture, info = description.architecture(path), description.task
    try:
        backbones = {}
        for name in description.modalities or _earlier_order(description, architecture, task):
            spec = description.backbones[name]
            with at(f"modality {name}"):
                backbones[name] = backbone_from_spec(spec, task and task.modality(name).backbone)
        fusion = build_fusion(
            architecture,
            channels_of(backbones),
            classes=task_kind(info.kind).outputs(len(info.class_names)),
            dropout=description.dropout,
        )
        weighing = description.weighing
        if description.unimodal_logits:
            weighing = Weighing(dict.fromkeys((FUSION, *backbones), 1.0))
        network = MultimodalNetwork(backbones, fusion, weighing)
        network.load_state_dict(tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path}: its description does not fit its weights: {one_line(error, 200)}"
        ) from error
    return TrainedNetwork(network.eval(), architecture, info, description.dropout)


def _earlier_order(
    description: Description, architecture: Architecture, task: Task | None
) -> list[str]:
    """Return the modalities in the order of ``task``: files of earlier versions lack theirs.

    Raises UserError where the order counts and there is no task.
    """
    names = list(description.backbones)
    if task is not None:
        return [modality.name for modality in task.modalities if modality.name in names]
    ordered = isinstance(architecture, NamedFusion) and architecture.name != NO_FUSION
    # The earliest files, with ``fusion``, have the backbones in order.
    if ordered and description.fusion is None and len(names) > 1:
        raise UserError(
            "was written by an earlier version, without the order of its modalities: give its task"
        )
    return names


def _read(path: Path, *, tensors: bool) -> tuple[Description, dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; `bmnas train` writes it")
    description, found = read_tensors(path, described=FORMAT, tensors=tensors)
    return read(Description, description, str(path)), found
