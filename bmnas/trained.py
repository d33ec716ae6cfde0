"""A trained network as one file: weights as safetensors, the description as JSON inside."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bmnas.backbones import backbone_from_spec
from bmnas.errors import UserError
from bmnas.files import atomic_path
from bmnas.genotype import Genotype
from bmnas.network import FusionNetwork, MultimodalNetwork

FORMAT = "bmnas.network/1"
_KEY = "bmnas"


@dataclass(frozen=True)
class TaskInfo:
    """What a trained network knows of its task.

    ``source`` is what ``load_task`` takes to find the data again; ``threshold`` turns the
    probabilities of a multilabel task into labels and is None for a multiclass one.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    threshold: float | None
    source: dict[str, Any]


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with the genotype and the task that it was trained for."""

    network: MultimodalNetwork
    genotype: Genotype
    task: TaskInfo
    dropout: float

    def save(self, path: Path) -> None:
        """Write the network's file, whole or not at all."""
        description = {
            "format": FORMAT,
            "genotype": self.genotype.to_dict(),
            "backbones": {
                name: self.network.backbone(name).spec() for name in self.network.modalities
            },
            "task": {
                "name": self.task.name,
                "kind": self.task.kind,
                "class_names": list(self.task.class_names),
                "threshold": self.task.threshold,
                "source": self.task.source,
            },
            "dropout": self.dropout,
        }
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        with atomic_path(path) as aside:
            save_file(tensors, aside, metadata={_KEY: json.dumps(description, allow_nan=False)})


def load_network(path: Path) -> TrainedNetwork:
    """Read a network's file and build the network, in evaluation mode on the CPU.

    Raises UserError, one line naming the file, when it is missing, damaged or of another format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; `bmnas train` writes it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: damaged, not a safetensors file: {error}") from error
    if _KEY not in metadata:
        raise UserError(f"{path}: received plain weights, expected a network from `bmnas train`")
    try:
        trained = _build(json.loads(metadata[_KEY]), path)
        trained.network.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: its description does not fit its weights: {reason}") from error
    return trained


def _build(description: dict[str, Any], path: Path) -> TrainedNetwork:
    if description["format"] != FORMAT:
        raise UserError(f"{path}: received format {description['format']!r}, expected {FORMAT!r}")
    genotype = Genotype.from_dict(description["genotype"], str(path))
    task = description["task"]
    info = TaskInfo(
        name=task["name"],
        kind=task["kind"],
        class_names=tuple(task["class_names"]),
        threshold=task["threshold"],
        source=task["source"],
    )
    backbones = {name: backbone_from_spec(spec) for name, spec in description["backbones"].items()}
    channels_raw = {
        f"{name}.{feature}": channels
        for name, backbone in backbones.items()
        for feature, channels in zip(backbone.feature_names, backbone.feature_channels, strict=True)
    }
    dropout = float(description["dropout"])
    fusion = FusionNetwork(genotype, channels_raw, classes=len(info.class_names), dropout=dropout)
    network = MultimodalNetwork(backbones, fusion)
    return TrainedNetwork(network.eval(), genotype, info, dropout)
