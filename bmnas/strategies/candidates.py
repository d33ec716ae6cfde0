"""Candidates: genotypes drawn at random, and the short training that judges one."""

from __future__ import annotations

from typing import TypeVar

from bmnas.machine.checkpoint import Record
from bmnas.machine.progress import Silent
from bmnas.machine.runtime import seed_stage
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.strategies.problem import SearchProblem
from bmnas.strategies.settings import SearchConfig
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.metrics import evaluate

_Choice = TypeVar("_Choice")


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
