"""bmnas: multimodal architecture search, from pretrained unimodal networks to a served model.

The stages as functions: ``load_task``, ``search``, ``train``, ``train_fusion``, and
``bmnas_export.export_bundle``. Names are resolved when they are first used, so that
``import bmnas`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bmnas.machine.errors import UserError as UserError
    from bmnas.machine.runtime import Runtime as Runtime
    from bmnas.pipeline.config import Config as Config
    from bmnas.pipeline.config import config_for as config_for
    from bmnas.pipeline.config import load_preset as load_preset
    from bmnas.pipeline.search import SearchResult as SearchResult
    from bmnas.pipeline.search import search as search
    from bmnas.pipeline.train import TrainResult as TrainResult
    from bmnas.pipeline.train import train as train
    from bmnas.pipeline.train import train_fusion as train_fusion
    from bmnas.pipeline.trained import TrainedNetwork as TrainedNetwork
    from bmnas.pipeline.trained import load_network as load_network
    from bmnas.spaces.cells.genotype import Genotype as Genotype
    from bmnas.tasks import Modality as Modality
    from bmnas.tasks import Task as Task
    from bmnas.tasks import load_task as load_task

__version__ = "0.1.0"

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
    "config_for": "bmnas.pipeline.config",
    "load_preset": "bmnas.pipeline.config",
    "load_task": "bmnas.tasks",
    "search": "bmnas.pipeline.search",
    "train": "bmnas.pipeline.train",
    "train_fusion": "bmnas.pipeline.train",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bmnas' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
