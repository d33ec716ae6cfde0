"""What metrics.json says of a search: what was found, and what it took, stage by stage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from bmnas.features.cache import FeatureCache
from bmnas.machine.cost_meter import COMPILE
from bmnas.machine.distributed import world_size
from bmnas.pipeline.unimodal import Unimodal
from bmnas.spaces.architecture import Architecture
from bmnas.strategies.problem import Outcome


def search_metrics(
    strategy: str,
    networks: Mapping[str, Unimodal],
    cache: FeatureCache,
    outcome: Outcome[Architecture],
    device: torch.device,
) -> dict[str, Any]:
    """Return the sections that a search adds, from ``unimodal`` to ``samples_per_second``.

    Backbones and features that were there already count what making them took.
    """
    return {
        "unimodal": {
            name: {"validation": found.validation, "parameters": found.parameters}
            for name, found in networks.items()
        },
        "search": _facts(strategy, outcome),
        "seconds": _seconds(networks, cache, outcome, device),
        "processor_seconds": {"search": outcome.processor_seconds},
        "samples_per_second": _speeds(cache, outcome),
    }


def _facts(strategy: str, outcome: Outcome[Architecture]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "strategy": strategy,
        **({} if outcome.best_epoch is None else {"best_epoch": outcome.best_epoch}),
        **({} if outcome.best_candidate is None else {"best_candidate": outcome.best_candidate}),
        "validation": outcome.validation,
        "candidates": outcome.candidates,
        "samples_seen": outcome.samples_seen,
    }
    if outcome.threshold is not None:
        facts["threshold"] = outcome.threshold
    if outcome.members:
        facts["seeds"] = _over_seeds(outcome)
    return facts


def _over_seeds(outcome: Outcome[Architecture]) -> dict[str, Any]:
    """Return what the members of a search of several seeds reached, before any short training."""
    scores = [member.validation for member in outcome.members]
    return {
        "best": outcome.seed,
        "mean": statistics.fmean(scores),
        "deviation": statistics.stdev(scores),
        "validation": {str(member.seed): member.validation for member in outcome.members},
        "best_epoch": {str(member.seed): member.best_epoch for member in outcome.members},
    }


def _seconds(
    networks: Mapping[str, Unimodal],
    cache: FeatureCache,
    outcome: Outcome[Architecture],
    device: torch.device,
) -> dict[str, float]:
    """Return seconds by stage; those from ``compile`` to ``other`` make up ``search``."""
    trained = sum(found.seconds for found in networks.values())
    total = trained + cache.seconds + outcome.seconds
    stages = {COMPILE: 0.0, **{name: cost.seconds for name, cost in outcome.stages.items()}}
    return {
        "backbones": trained,
        "extraction": cache.seconds,
        **stages,
        "other": outcome.seconds - sum(stages.values()),
        "search": outcome.seconds,
        "total": total,
        "gpu_hours": world_size() * total / 3600 if device.type == "cuda" else 0.0,
    }


def _speeds(cache: FeatureCache, outcome: Outcome[Architecture]) -> dict[str, float]:
    counts = {name: (cost.samples, cost.seconds) for name, cost in outcome.stages.items()}
    counts["extraction"] = (len(cache.task.samples(*cache.parts)), cache.seconds)
    return {
        name: samples / seconds
        for name, (samples, seconds) in counts.items()
        if samples and seconds
    }
