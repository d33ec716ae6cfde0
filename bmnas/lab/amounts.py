"""How much each stage of a search has to do: what a short one took is multiplied by it."""

from __future__ import annotations

import math

import numpy as np

from bmnas.features.samples import samples_per_epoch
from bmnas.machine.costs import COMPILE
from bmnas.pipeline.config import Config
from bmnas.pipeline.search import PAIRS
from bmnas.pipeline.unimodal import fold_epochs, tried_epochs
from bmnas.spaces.cells.one_shot import SAMPLES
from bmnas.strategies import gates
from bmnas.strategies.bmnas import BMNAS
from bmnas.strategies.strategy import Strategy
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Part, Task
from bmnas.training.settings import UnimodalConfig

#: The stage of what trains no more of a backbone than its head, a part of ``backbones`` elsewhere.
HEADS = "heads"
_GATES = 3  # steps of the weights that one of alpha takes as long as


def stage_amounts(
    task: Task, config: Config, seeds: int = 1, method: type[Strategy] = BMNAS
) -> dict[str, float]:
    """Return how much each stage of a search has to do; its seconds grow in proportion.

    Several seeds are counted one after another.
    """
    if method is not BMNAS:
        return _mmnas_amounts(task, config)
    search, unimodal = config.search, config.unimodal
    train, validation = len(task.samples("train")), len(task.samples("validation"))
    weights = samples_per_epoch(train, search.batch_size)
    # Where there are more seeds, what they found is all that is compared.
    screened = search.rerank >= seeds
    trainings = search.rerank + 1 if search.rerank else 0
    return {
        **_before(task, unimodal),
        "search_weights": seeds * search.epochs * weights,
        "search_architecture": (
            seeds * search.epochs * samples_per_epoch(validation, search.batch_size)
        ),
        "validation": seeds * search.epochs * validation,
        "single_path": screened * search.candidate_epochs * weights,
        "rerank": trainings * search.first_rung.epochs * weights,
        "screening": screened * min(SAMPLES, validation),
        # Building and saving, mostly once: with many short epochs a part of each would be hours.
        "other": seeds,
    }


def _before(task: Task, unimodal: UnimodalConfig) -> dict[str, float]:
    """Return the amounts of what is done before any search."""
    train, validation = len(task.samples("train")), len(task.samples("validation"))
    trained = _unimodal_epochs(unimodal) * samples_per_epoch(train, unimodal.batch_size)
    # A step of training costs about three forward passes.
    rows = sum(rows_used(task).values())
    judged = len(tried_epochs(unimodal.epochs)) if unimodal.early_stopping else 0
    return {
        "backbones": 3 * trained + validation,
        # A network whose head alone learns computes train once.
        HEADS: train + (judged + 1) * validation,
        "extraction": rows,
        COMPILE: 1,
    }


def _mmnas_amounts(task: Task, config: Config) -> dict[str, float]:
    """Return the amounts of a search with gates, see ``stage_amounts``."""
    search, own, train = config.search, config.strategies["mmnas"], len(task.samples("train"))
    first = samples_per_epoch(round((1 - own.held_out) * train), search.batch_size)
    learning = search.epochs - round(own.warm_up * search.epochs)
    judged = len(task.samples("validation"))
    if task_kind(task.kind).PAIRS:
        judged = min(PAIRS, math.prod(rows_used(task, "validation").values()))
    trainings = search.rerank + 1 if search.rerank else 0
    whole = samples_per_epoch(train, search.batch_size)
    return {
        **_before(task, config.unimodal),
        # In a step of alpha all operations are computed.
        "search_weights": first * (search.epochs + _GATES * learning / own.alpha_every),
        "validation": search.epochs * judged,
        "screening": min(gates.SAMPLES, judged) if search.rerank else 0,
        "rerank": trainings * search.candidate_epochs * whole,
        "other": search.epochs,
    }


def _unimodal_epochs(unimodal: UnimodalConfig) -> float:
    """Return how many epochs on all of train a backbone takes, at most."""
    most, folds = unimodal.epochs, unimodal.folds
    epochs: float = sum(tried_epochs(most)) if unimodal.early_stopping else 0
    if folds < 2:
        return epochs + most
    common, apart, last = fold_epochs(most)
    return epochs + common + (folds - 1) * apart + last


def rows_used(task: Task, *parts: Part) -> dict[str, int]:
    """Return how many rows of each modality ``parts`` use, by default train and validation."""
    used = task.samples(*(parts or ("train", "validation")))
    return {m.name: len(np.unique(m.rows_of(used))) for m in task.modalities}
