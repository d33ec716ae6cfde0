"""What metrics.json says of a search: what was found, and what it took, stage by stage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch

from bmnas.features.cache import FeatureCache
from bmnas.machine.cost_meter import COMPILE
from bmnas.machine.distributed import world_size
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.unimodal import Unimodal
from bmnas.report.metrics import (
    MemoryPeak,
    RunMetrics,
    SearchMetrics,
    SeedsMetrics,
    UnimodalMetrics,
)
from bmnas.spaces.architecture import Architecture
from bmnas.strategies.problem import Outcome


def search_metrics(
    context: RunContext,
    strategy: str,
    networks: Mapping[str, Unimodal],
    cache: FeatureCache,
    outcome: Outcome[Architecture],
    memory: Mapping[str, int],
) -> RunMetrics:
    """Return what a search adds; ``memory`` is its peak, in bytes.

    Backbones and features that were there already count what making them took.
    """
    return RunMetrics(
        metric=context.head.metric,
        unimodal={
            name: UnimodalMetrics(found.validation, parameters=found.parameters)
            for name, found in networks.items()
        },
        search=SearchMetrics(
            validation=outcome.validation,
            strategy=strategy,
            best_epoch=outcome.best_epoch,
            best_candidate=outcome.best_candidate,
            candidates=outcome.candidates,
            samples_seen=outcome.samples_seen,
            threshold=outcome.threshold,
            seeds=_over_seeds(outcome) if outcome.members else None,
        ),
        seconds=_seconds(networks, cache, outcome, context.runtime.device),
        processor_seconds={"search": outcome.processor_seconds},
        samples_per_second=_speeds(cache, outcome),
        peak_memory={"search": MemoryPeak(**memory)},
    )


def _over_seeds(outcome: Outcome[Architecture]) -> SeedsMetrics:
    """Return what the members of a search of several seeds reached, before any short training."""
    assert outcome.seed is not None
    scores = [member.validation for member in outcome.members]
    return SeedsMetrics(
        best=outcome.seed,
        mean=statistics.fmean(scores),
        deviation=statistics.stdev(scores),
        validation={str(member.seed): member.validation for member in outcome.members},
        best_epoch={str(member.seed): member.best_epoch for member in outcome.members},
    )


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
