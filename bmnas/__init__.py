"""bmnas: multimodal architecture search, from pretrained unimodal networks to a served model.

The stages as functions: ``load_task``, ``search``, ``train``, ``train_fusion``, and
``bmnas_export.export_bundle``. Names are resolved when they are first used, so that
``import bmnas`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmnas.config import Config, load_preset
    from bmnas.errors import UserError
    from bmnas.genotype import Genotype
    from bmnas.runtime import Runtime
    from bmnas.stages.fusion import train_fusion
    from bmnas.stages.search import SearchResult, search
    from bmnas.stages.train import train
    from bmnas.stages.training import TrainResult
    from bmnas.tasks import Modality, Task, load_task
    from bmnas.trained import TrainedNetwork, load_network

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
    "Config": "bmnas.config",
    "Genotype": "bmnas.genotype",
    "Modality": "bmnas.tasks",
    "Runtime": "bmnas.runtime",
    "SearchResult": "bmnas.stages.search",
    "Task": "bmnas.tasks",
    "TrainResult": "bmnas.stages.training",
    "TrainedNetwork": "bmnas.trained",
    "UserError": "bmnas.errors",
    "load_network": "bmnas.trained",
    "load_preset": "bmnas.config",
    "load_task": "bmnas.tasks",
    "search": "bmnas.stages.search",
    "train": "bmnas.stages.train",
    "train_fusion": "bmnas.stages.fusion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bmnas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
