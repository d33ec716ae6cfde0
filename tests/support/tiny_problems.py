"""Search problems over made-up pooled features, searched in a fraction of a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_tasks import CONFIG

from bmnas.features.samples import FeatureSamples
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime
from bmnas.strategies.problem import SearchProblem
from bmnas.training.heads import head_for

CPU = Runtime(torch.device("cpu"), compile=False)
CHANNELS = {"m0.1": 3, "m0.2": 5, "m1.1": 4}
LENGTH = CONFIG.search.length


def tiny_samples(count: int, *, kind: str = "multiclass", seed: int = 0) -> FeatureSamples:
    """Features whose sign says the label, one bit a modality; four classes or two labels."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, 2), generator=generator)
    arrays = {
        name: torch.randn(count, LENGTH, channels, generator=generator)
        + 2.0 * bits[:, int(name[1]), None, None]
        for name, channels in CHANNELS.items()
    }
    rows = {"m0": torch.arange(count), "m1": torch.arange(count)}
    labels = bits.float() if kind == "multilabel" else bits[:, 0] + 2 * bits[:, 1]
    return FeatureSamples(tuple(CHANNELS), arrays, rows, labels)


def tiny_problem(
    folder: Path,
    *,
    kind: str = "multiclass",
    strategy: str = "bmnas",
    own: Mapping[str, Any] | None = None,
    space: str | None = None,
    seed: int = 0,
    **changes: Any,
) -> SearchProblem:
    """A problem of 40 train and 24 validation samples; ``changes`` are fields of SearchConfig.

    ``own`` changes the settings that ``strategy`` has of its own.
    """
    settings = CONFIG.strategies.get(strategy)
    return SearchProblem(
        train=tiny_samples(40, kind=kind),
        validation=tiny_samples(24, kind=kind, seed=1),
        classes=2 if kind == "multilabel" else 4,
        head=head_for(kind),
        config=CONFIG.override("search", **changes).search,
        seed=seed,
        runtime=CPU,
        checkpoint=Checkpoint(folder / "checkpoint.pt", "fingerprint", folder / "history.jsonl"),
        candidates=lambda: Checkpoint(folder / "rerank.pt", "fingerprint", folder / "rerank.jsonl"),
        progress=Progress(),
        own=None if settings is None else dataclasses.replace(settings, **(own or {})),
        space=space,
    )
