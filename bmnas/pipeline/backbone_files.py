"""Where a backbone is kept, and the fingerprint of everything that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bmnas.features.cache import absent_key, rows_hash, weights_hash
from bmnas.features.samples import label_tensor
from bmnas.machine.files import sha256_file, sha256_json
from bmnas.pipeline.context import RunContext
from bmnas.tasks.hub import PREFIX, model_folder
from bmnas.tasks.task import Modality
from bmnas.training.settings import UnimodalConfig

#: Of a pretrained model: configuration, weights, vocabulary.
_MODEL_FILES = (".json", ".safetensors", ".bin", ".txt", ".model")


def backbone_path(context: RunContext, modality: Modality) -> Path:
    """Return where the backbone of ``modality`` is kept."""
    return context.kept / f"{modality.name}.safetensors"


def checkpoint_path(backbone: Path) -> Path:
    """Return the checkpoint of the training of the backbone in a file."""
    return backbone.with_name(f"{backbone.stem}-checkpoint.pt")


def backbone_fingerprint(context: RunContext, modality: Modality) -> str:
    """Return a digest of everything that a trained backbone depends on."""
    task = context.task
    samples = task.samples("train", "validation")
    rows = modality.rows_of(samples)
    used, position = np.unique(rows, return_inverse=True)
    depends: Mapping[str, object] = {
        "kind": task.kind,
        "class_names": task.class_names,
        "config": _config(context.config.unimodal, modality),
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
        **({} if modality.length is None else {"length": modality.length}),
        **absent_key(modality, used),
        **({} if task.class_weights is None else {"class_weights": task.loss_weights}),
    }
    return sha256_json(depends)


def _config(unimodal: UnimodalConfig, modality: Modality) -> dict[str, Any]:
    settings = dataclasses.asdict(unimodal)
    del settings["words"]  # the labels tell
    if not unimodal.linear or modality.type not in ("text", "tokens"):
        del settings["linear"]  # it changes nothing
    return settings


def _identity(modality: Modality) -> object:
    """Return what tells the modality's backbone from others, the weights in it included."""
    backbone = modality.backbone
    if isinstance(backbone, nn.Module) and modality.weights is None:
        return [type(backbone).__name__, weights_hash(backbone)]
    if isinstance(backbone, str) and backbone.startswith(PREFIX):
        files = model_folder(backbone).glob("*")
        read = sorted(file for file in files if file.suffix in _MODEL_FILES)
        return [backbone, {file.name: sha256_file(file) for file in read}]
    if isinstance(backbone, str):
        return backbone
    return getattr(backbone, "__qualname__", type(backbone).__name__)
