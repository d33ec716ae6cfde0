"""Candidates: genotypes drawn at random, and the short training that judges one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from random import Random
from typing import TypeVar

from bmnas.machine.checkpoint import Record
from bmnas.machine.progress import Silent
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.operations import OPERATIONS, operation_names
from bmnas.spaces.cells.supernet import ArchitectureWeights
from bmnas.strategies.problem import SearchProblem
from bmnas.strategies.settings import SearchConfig
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.metrics import evaluate

_Choice = TypeVar("_Choice")


def draw_genotype(
    weights: ArchitectureWeights, features: Sequence[str], config: SearchConfig, draw: Random
) -> Genotype:
    """Return a genotype over ``features`` drawn from relaxed weights.

    A pair of nodes comes up in proportion to the product of its Identity weights, which Eq. 3 and
    Eq. 11 maximise, an operation in proportion to its gamma; pairs that an earlier Cell used up
    (footnote 1) do not. A genotype whose network would read a single feature is drawn again.
    """
    while True:
        cells = _cells(weights, features, draw)
        genotype = Genotype(tuple(features), config.channels, config.length, cells)
        if len(genotype.live_features()) > 1:
            return genotype


def even_weights(features: int, config: SearchConfig) -> ArchitectureWeights:
    """Return weights from which every genotype is drawn with equal choices."""
    return ArchitectureWeights(
        alpha=[[1.0] * (features + k) for k in range(config.cells)],
        beta=[[[1.0] * (2 + m) for m in range(config.steps)] for _ in range(config.cells)],
        gamma=[[[1.0] * len(OPERATIONS)] * config.steps] * config.cells,
    )


def train_candidate(problem: SearchProblem, genotype: Genotype, number: int) -> Record:
    """Train the network of ``genotype`` briefly on train and return how it does on validation.

    The result depends on nothing but the problem, the genotype and the ``number``. Raises
    UserError when the loss is no longer finite.
    """
    config, device = problem.config, problem.runtime.device
    seed_stage(problem.seed, f"candidate {number}")
    network = FusionNetwork(
        genotype, problem.train.channels, classes=problem.classes, dropout=config.dropout
    ).to(device)
    train = problem.train.select(network.features)
    validation = problem.validation.select(network.features)
    losses = fit(
        network,
        network,
        [Group(list(network.parameters()), config.max_lr)],
        train,
        problem.head,
        candidate_recipe(config),
        device=device,
        checkpoint=None,
        progress=Silent(),
        stage=f"candidate {number}",
    )
    found = evaluate(network, network, validation, problem.head, device)
    record: Record = {
        "train_loss": losses[-1]["train_loss"],
        "validation_loss": found.loss,
        "validation_score": found.score,
        "cells": genotype.to_dict()["cells"],
    }
    return record | problem.threshold(found.logits)


def candidate_recipe(config: SearchConfig) -> Recipe:
    """Return how a candidate is trained, its peak learning rate apart."""
    return Recipe(config.candidate_epochs, config.batch_size, config.min_lr, config.weight_decay)


def _cells(weights: ArchitectureWeights, features: Sequence[str], draw: Random) -> tuple[Cell, ...]:
    nodes = list(features)
    taken: set[int] = set()
    cells = []
    for k, alpha in enumerate(weights.alpha):
        pairs = [p for p in combinations(range(len(nodes)), 2) if not taken.issuperset(p)]
        x, y = _weighted(draw, pairs, [alpha[i] * alpha[j] for i, j in pairs])
        steps = zip(weights.beta[k], weights.gamma[k], strict=True)
        cells.append(Cell((nodes[x], nodes[y]), tuple(_step(b, g, draw) for b, g in steps)))
        taken.update((x, y))
        nodes.append(f"cell{k + 1}")
    return tuple(cells)


def _step(beta: Sequence[float], gamma: Sequence[float], draw: Random) -> Step:
    nodes = ["x", "y", *(f"step{m + 1}" for m in range(len(beta) - 2))]
    pairs = list(permutations(range(len(nodes)), 2))
    first, second = _weighted(draw, pairs, [beta[i] * beta[j] for i, j in pairs])
    return Step(_weighted(draw, operation_names(), gamma), (nodes[first], nodes[second]))


def _weighted(draw: Random, choices: Sequence[_Choice], weights: Sequence[float]) -> _Choice:
    return draw.choices(choices, weights)[0]
