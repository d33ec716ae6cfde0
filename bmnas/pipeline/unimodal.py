"""The unimodal stage: a trained backbone for every modality, and its own score.

A backbone without weights is trained on the train part. One that comes with weights stays as it
is; where its head is new (the weights know other classes), the head alone is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bmnas.backbones import (
    Backbone,
    build_backbone,
    load_backbone,
    load_weights,
    save_backbone,
)
from bmnas.features.cache import rows_hash, weights_hash
from bmnas.features.samples import RawInput, RawSamples, label_tensor
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import count_parameters
from bmnas.machine.distributed import broadcast, on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.files import sha256_file, sha256_json
from bmnas.machine.runtime import seed_stage
from bmnas.machine.schema import read
from bmnas.pipeline.context import RunContext
from bmnas.tasks.task import Array, Modality, Part, Task
from bmnas.training.fit import fit
from bmnas.training.metrics import Evaluation, Forward, evaluate

_SAMPLED_NUMBERS = 2_000_000


@dataclass(frozen=True)
class Unimodal:
    """A modality's backbone with its validation score as a fraction.

    ``pretrained`` tells that its weights were given; ``seconds`` is what training it took.
    """

    backbone: Backbone
    validation: float
    pretrained: bool
    seconds: float

    @property
    def parameters(self) -> int:
        """The number of weights of the whole unimodal network."""
        return count_parameters(self.backbone)


@dataclass(frozen=True)
class _Extra:
    """What a backbone's file says of it; ``threshold`` is what its score was measured with."""

    owner: str
    validation: float
    pretrained: bool
    seconds: float
    threshold: float | None = None


def unimodal_networks(context: RunContext) -> dict[str, Unimodal]:
    """Return the backbone of every modality, from the folder for them or trained and kept there.

    Raises UserError when that folder holds a backbone of another task, other data or settings, and
    when torch does not allow a modality's name.
    """
    found = {}
    for modality in context.task.modalities:
        name = modality.name
        if hasattr(nn.ModuleDict, name):
            # The final network holds its backbones in one; refused now, not after the search.
            raise UserError(
                f"received the modality name {name!r}, which torch keeps for itself, "
                "expected another: rename the modality"
            )
        path, fingerprint = _path(context, modality), _fingerprint(context, modality)
        if broadcast(not path.exists()):
            _make(context, modality, path, fingerprint)
        # Read back even when just made, so that a resumed run goes on from the very same state.
        backbone, extra = _read(path, modality, fingerprint)
        validation = extra.validation
        if extra.threshold != context.head.threshold:
            # The weights do not depend on it, so they stay; the score does.
            validation = evaluate_unimodal(context, name, backbone, "validation").score
        found[name] = Unimodal(backbone.cpu(), validation, extra.pretrained, extra.seconds)
    return found


def remove_stale(context: RunContext) -> None:
    """Delete backbones that ``unimodal_networks`` would refuse, and unfinished trainings."""
    for modality in context.task.modalities:
        path = _path(context, modality)
        _checkpoint_path(path).unlink(missing_ok=True)
        if path.exists():
            try:
                _read(path, modality, _fingerprint(context, modality))
            except UserError:
                path.unlink()


def evaluate_unimodal(context: RunContext, name: str, backbone: Backbone, part: Part) -> Evaluation:
    """Return how the backbone ``name`` with its own head does on a part of the task."""
    task, device = context.task, context.runtime.device
    samples = _samples(task, task.modality(name), backbone, part)
    return evaluate(backbone.to(device), _call(backbone), samples, context.head, device)


def feature_names(task: Task) -> list[str]:
    """Return the names of all features of ``task``, ``<modality>.<feature>``, in order."""
    return [
        f"{modality.name}.{feature}"
        for modality in task.modalities
        for feature in _new_backbone(task, modality)[0].feature_names
    ]


def _new_backbone(task: Task, modality: Modality) -> tuple[Backbone, nn.Module | None]:
    """Return a modality's backbone before its training, and what of it is to be trained.

    That is the whole backbone, its new head (the rest is then frozen), or None where all weights
    were given.
    """
    backbone = build_backbone(modality, classes=task.outputs, rows=_train_rows(task, modality))
    if modality.weights is not None:
        load_weights(backbone, modality.weights)
    wanted, head = modality.backbone, backbone.head
    backbone.eval()
    if isinstance(wanted, Backbone):
        return backbone, None
    hub = isinstance(wanted, str) and wanted.startswith("hf:")
    if modality.weights is None and not hub and not isinstance(wanted, nn.Module):
        return backbone, backbone
    whole = modality.weights is not None and backbone.weights_module() is backbone
    if whole or head is None or count_parameters(head) == 0:
        return backbone, None
    backbone.requires_grad_(False)
    head.requires_grad_(True)
    return backbone, head


def _make(context: RunContext, modality: Modality, path: Path, fingerprint: str) -> None:
    """Train the backbone of ``modality``, where needed, and write its file."""
    task, started = context.task, time.perf_counter()
    checkpoint = Checkpoint(_checkpoint_path(path), fingerprint)
    seed_stage(context.backbone_seed, f"backbone {modality.name}")
    backbone, trained = _new_backbone(task, modality)
    backbone.to(context.runtime.device)
    if trained is not None:
        fit(
            trained,
            _call(backbone),
            _samples(task, modality, backbone, "train"),
            context.head,
            context.config.unimodal.recipe,
            checkpoint=checkpoint,
            progress=context.progress,
            stage=f"backbone {modality.name}",
        )
        backbone.requires_grad_(True)
        started = time.perf_counter() - checkpoint.seconds
    score = evaluate_unimodal(context, modality.name, backbone, "validation").score
    seconds = time.perf_counter() - started
    extra = _Extra(fingerprint, score, trained is not backbone, seconds, context.head.threshold)
    on_rank_zero(lambda: save_backbone(path, backbone.cpu(), dataclasses.asdict(extra)))
    checkpoint.remove()


def _train_rows(task: Task, modality: Modality) -> Array:
    """Return the train rows: all of texts and tokens, of others an evenly spaced sample."""
    used = np.unique(modality.rows_of(task.samples("train")))
    if modality.type not in ("text", "tokens"):
        size = max(1, math.prod(modality.data.shape[1:]))
        count = min(len(used), 4096, max(16, _SAMPLED_NUMBERS // size))
        used = used[np.linspace(0, len(used) - 1, count).astype(np.int64)]
    return np.asarray(modality.data[used])


def _samples(task: Task, modality: Modality, backbone: Backbone, part: Part) -> RawSamples:
    samples = task.samples(part)
    return RawSamples([RawInput(modality, backbone, samples)], label_tensor(task, samples))


def _call(backbone: Backbone) -> Forward:
    return lambda inputs: backbone(inputs[0])


def _read(path: Path, modality: Modality, fingerprint: str) -> tuple[Backbone, _Extra]:
    backbone, found = load_backbone(path, module=modality.backbone)
    if found.get("owner") != fingerprint:
        raise UserError(
            f"{path}: was trained for another task, other data, settings or seed; choose another "
            "folder with --backbones, or delete it to train it again"
        )
    return backbone, read(_Extra, found, str(path), ignore_unknown=True)


def _path(context: RunContext, modality: Modality) -> Path:
    return context.kept / f"{modality.name}.safetensors"


def _checkpoint_path(backbone: Path) -> Path:
    return backbone.with_name(f"{backbone.stem}-checkpoint.pt")


def _fingerprint(context: RunContext, modality: Modality) -> str:
    """Return a digest of everything that a trained backbone depends on."""
    task = context.task
    samples = task.samples("train", "validation")
    rows = modality.rows_of(samples)
    used, position = np.unique(rows, return_inverse=True)
    depends: Mapping[str, object] = {
        "kind": task.kind,
        "class_names": task.class_names,
        "config": dataclasses.asdict(context.config.unimodal),
        "seed": context.backbone_seed,
        "type": modality.type,
        "backbone": _identity(modality),
        "features": modality.features,
        "sample_rate": modality.sample_rate,
        "weights": None if modality.weights is None else sha256_file(modality.weights),
        "data": rows_hash(modality.data, used),
        "rows": hashlib.sha256(position.astype("<i8").tobytes()).hexdigest(),
        "parts": len(task.samples("train")),
        "labels": hashlib.sha256(label_tensor(task, samples).numpy().tobytes()).hexdigest(),
        "torch": str(torch.__version__),
    }
    return sha256_json(depends)


def _identity(modality: Modality) -> object:
    """Return what tells the modality's backbone from others, the weights in it included."""
    backbone = modality.backbone
    if isinstance(backbone, nn.Module) and modality.weights is None:
        return [type(backbone).__name__, weights_hash(backbone)]
    if isinstance(backbone, str) and backbone.startswith("hf:"):
        files = Path(backbone.removeprefix("hf:")).expanduser().glob("*")
        read = sorted(file for file in files if file.suffix in (".json", ".safetensors"))
        return [backbone, {file.name: sha256_file(file) for file in read}]
    if isinstance(backbone, str):
        return backbone
    return getattr(backbone, "__qualname__", type(backbone).__name__)
