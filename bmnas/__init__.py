"""bmnas: multimodal architecture search, from pretrained unimodal networks to a served model.

The stages as functions: ``load_task``, ``search``, ``train``, ``train_fusion``, and
``bmnas_export.export_bundle``. Names are resolved when they are first used, so that
``import bmnas`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmnas.machine.errors import UserError
    from bmnas.machine.runtime import Runtime
    from bmnas.pipeline.config import Config, load_preset
    from bmnas.pipeline.search import SearchResult, search
    from bmnas.pipeline.train import TrainResult, train, train_fusion
    from bmnas.pipeline.trained import TrainedNetwork, load_network
    from bmnas.spaces.cells.genotype import Genotype
    from bmnas.tasks import Modality, Task, load_task

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Genotype",
    "Modality",
    "Runtime",
    "SearchResult",
    "Task",
    "TrainResult",
    "TrainedNetwork",
    "UserError",
    "__version__",
    "load_network",
    "load_preset",
    "load_task",
    "search",
    "train",
    "train_fusion",
]

_HOMES = {
    "Config": "bmnas.pipeline.config",
    "Genotype": "bmnas.spaces.cells.genotype",
    "Modality": "bmnas.tasks",
    "Runtime": "bmnas.machine.runtime",
    "SearchResult": "bmnas.pipeline.search",
    "Task": "bmnas.tasks",
    "TrainResult": "bmnas.pipeline.train",
    "TrainedNetwork": "bmnas.pipeline.trained",
    "UserError": "bmnas.machine.errors",
    "load_network": "bmnas.pipeline.trained",
    "load_preset": "bmnas.pipeline.config",
    "load_task": "bmnas.tasks",
    "search": "bmnas.pipeline.search",
    "train": "bmnas.pipeline.train",
    "train_fusion": "bmnas.pipeline.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bmnas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
