"""Many trees at once against each alone."""

from __future__ import annotations

import copy
from random import Random

import pytest
import torch
from tiny_problems import CHANNELS, tiny_samples

import bmnas.spaces.trees.training as module
from bmnas.machine.errors import UserError
from bmnas.spaces.trees.forest import Forest, Level, arranged
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.network import TreeFusion
from bmnas.spaces.trees.operators import random_tree
from bmnas.spaces.trees.settings import EvolutionConfig
from bmnas.spaces.trees.training import Trial, train_trees
from bmnas.spaces.trees.tree import Tree
from bmnas.training.heads import head_for
from bmnas.training.metrics import Evaluation

WIDE = {"a.1": 3, "a.2": 5, "b.1": 4, "b.2": 2, "c.1": 6}
CLASSES, WIDTH, LENGTH = 4, 6, 2


def words(line: str) -> Tree:
    return tuple(line.split())


def networks(trees: list[Tree], channels: dict[str, int] = WIDE) -> list[TreeFusion]:
    torch.manual_seed(0)
    made = []
    for tree in trees:
        network = TreeFusion(
            FusionTree(tuple(channels), WIDTH, LENGTH, tree),
            channels,
            classes=CLASSES,
            dropout=0.0,
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) / 5)
        made.append(network)
    return made


def some_trees(count: int) -> list[Tree]:
    draw = Random(1)
    return [random_tree(tuple(WIDE), draw) for _ in range(count)]


def test_levels_by_hand() -> None:
    # add(mul(a, b), c) and mul(b, add(a, c)); leaves: a a b b c c.
    trees = [words("a.1 b.1 mul c.1 add"), words("b.1 a.1 c.1 add mul")]
    levels, roots = arranged(trees, ("a.1", "b.1", "c.1"))
    assert levels == [
        # add(a, c) of the second tree, then mul(a, b) of the first; b of the second and c wait.
        Level((("add", ((1, 3),)), ("mul", ((0, 2),))), (1, 5, 0, 2, 3, 4)),
        # Unread now: add, mul, b, c. add(mul, c) of the first, mul(b, add) of the second.
        Level((("add", ((0, 4),)), ("mul", ((1, 4),))), (1, 3, 2, 0)),
    ]
    assert roots == [0, 1]


def test_roots_that_are_done_early_wait() -> None:
    trees = [words("a.1 b.1 max"), words("a.1 b.1 add c.1 add")]
    levels, roots = arranged(trees, ("a.1", "b.1", "c.1"))
    assert len(levels) == 2
    assert roots == [1, 0]


@pytest.mark.parametrize("training", [True, False])
def test_a_forest_gives_what_its_trees_give(training: bool) -> None:
    alone = networks(some_trees(12))
    forest = Forest(alone, tuple(WIDE)).train(training)
    inputs = {name: torch.randn(8, LENGTH, width) for name, width in WIDE.items()}
    found = forest([inputs[name] for name in forest.features])
    if training:
        mean, found = found
        torch.testing.assert_close(mean, found.mean(1))
    assert found.shape == (8, 12, CLASSES)
    for number, network in enumerate(alone):
        expected = network.train(training)([inputs[name] for name in network.features])
        torch.testing.assert_close(found[:, number], expected, rtol=1e-5, atol=1e-6)


def test_it_reads_only_what_a_tree_reads() -> None:
    alone = networks([words("b.2 a.1 add"), words("a.1 b.1 mul")])
    assert Forest(alone, tuple(WIDE)).features == ("a.1", "b.1", "b.2")


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_trained_together_is_trained_alone(kind: str) -> None:
    alone = networks(some_trees(6))
    forest = Forest(copy.deepcopy(alone), tuple(WIDE)).double()
    head = head_for(kind)
    optimizers = [torch.optim.Adam(n.double().parameters(), lr=1e-2) for n in alone]
    optimizer = torch.optim.Adam(forest.parameters(), lr=1e-2)
    for _ in range(5):
        inputs = {n: torch.randn(8, LENGTH, width).double() for n, width in WIDE.items()}
        labels = (
            torch.randint(0, 2, (8, CLASSES)).double()
            if kind == "multilabel"
            else (torch.randint(0, CLASSES, (8,)))
        )
        losses = []
        for network, own in zip(alone, optimizers, strict=True):
            loss = head.loss(network([inputs[n] for n in network.features]), labels)
            own.zero_grad()
            loss.backward()
            own.step()
            losses.append(loss.detach())
        _, logits = forest([inputs[n] for n in forest.features])
        loss = head.network_losses(logits, labels).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(loss.detach(), torch.stack(losses).sum())
    forest.eval()
    found = forest([inputs[name] for name in forest.features])
    for number, network in enumerate(alone):
        expected = network.eval()([inputs[name] for name in network.features])
        torch.testing.assert_close(found[:, number], expected, rtol=1e-5, atol=1e-7)


def scored(score: float) -> Evaluation:
    return Evaluation(0.0, score, torch.zeros(1, 2))


def test_a_trial_waits_since_its_earliest_best() -> None:
    trial = Trial()
    for score, waited, best in ((0.5, 0, 0.5), (0.4, 1, 0.5), (0.5, 2, 0.5), (0.6, 0, 0.6)):
        trial.see(scored(score))
        assert trial.best is not None
        assert (trial.waited, trial.best.score) == (waited, best)
    assert trial.epochs == 4


@pytest.mark.parametrize(
    ("first", "second", "epochs", "best"),
    [
        # Two epochs in which nothing rises end a tree; what comes later does not count.
        ([0.5, 0.6, 0.6, 0.4, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5], [4, 5], [0.6, 0.5]),
        ([0.3, 0.3, 0.3, 0.9, 0.9], [0.2, 0.1, 0.1, 0.9, 0.9], [3, 3], [0.3, 0.2]),
        ([0.5, 0.4, 0.6, 0.5, 0.7], [0.2, 0.1, 0.1, 0.9, 0.9], [5, 3], [0.7, 0.2]),
    ],
)
def test_every_tree_has_its_own_patience(
    monkeypatch: pytest.MonkeyPatch,
    first: list[float],
    second: list[float],
    epochs: list[int],
    best: list[float],
) -> None:
    def plan(*args: object) -> list[Evaluation]:
        # What is said of a tree that has ended counts no more.
        return [scored(scores.pop(0) if scores else 1.0) for scores in left]

    left = [first.copy(), second.copy()]
    monkeypatch.setattr(module, "evaluate_several", plan)
    told: list[str] = []
    found = train_trees(
        networks([words("m0.1 m1.1 add"), words("m0.2 m1.1 mul")], CHANNELS),
        tiny_samples(40),
        tiny_samples(24, seed=1),
        head_for("multiclass"),
        EvolutionConfig(epochs=5, patience=2, batch_size=16, width=WIDTH),
        device=torch.device("cpu"),
        stage="test",
        tell=told.append,
    )
    assert [each for each, _ in found] == epochs
    assert [each.score for _, each in found] == best
    assert told[0] == "epoch 1, 2 in training"
    assert len(told) == max(epochs)


def test_divergence_is_told() -> None:
    with pytest.raises(UserError, match=r"test: the loss is (nan|inf) in epoch 1"):
        train_trees(
            networks([words("m0.1 m1.1 mul")], CHANNELS),
            tiny_samples(40),
            tiny_samples(24),
            head_for("multiclass"),
            EvolutionConfig(max_lr=1e30, batch_size=16, width=WIDTH),
            device=torch.device("cpu"),
            stage="test",
            tell=lambda text: None,
        )
