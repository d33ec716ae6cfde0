"""Networks computed and trained together against each alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from tiny_problems import CHANNELS, CPU, LENGTH, tiny_samples
from torch import Tensor, nn

import bmnas.training.together as module
from bmnas.features.layers import Dropout
from bmnas.machine.errors import UserError
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.features import Sizes
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.spaces.mfas.genotype import Layer, MFASGenotype
from bmnas.spaces.mfas.network import MFASNetwork
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.network import TreeFusion
from bmnas.spaces.trees.tree import random_tree
from bmnas.training.heads import TaskHead, head_for
from bmnas.training.metrics import Evaluation, Output, evaluate, logits_of
from bmnas.training.settings import ShortTraining
from bmnas.training.together import Together, Trained, evaluate_together, fit_together

CLASSES = 4
FEATURES = tuple(CHANNELS)
RECIPE = ShortTraining(3, 16, 0.02, 1e-6, 1e-2, first_cycle=1, best=True)


def cells(count: int, dropout: float = 0.0) -> list[Fusion]:
    """Fusion networks of as many different genotypes, the pool's operations mixed."""
    every = list(CellSpace(FEATURES, 1, 2, 8, LENGTH).distinct().values())
    chosen = Random(2).sample(every, count)
    return [FusionNetwork(g, CHANNELS, classes=CLASSES, dropout=dropout) for g in chosen]


def chains(count: int, dropout: float = 0.0, **options: bool) -> list[Fusion]:
    """Networks of MFAS with one to three layers."""
    draw = Random(3)
    found: list[Fusion] = []
    for number in range(count):
        layers = tuple(
            Layer((draw.choice(("m0.1", "m0.2")), "m1.1"), draw.choice(("relu", "sigmoid")))
            for _ in range(1 + number % 3)
        )
        genotype = MFASGenotype(FEATURES, LENGTH, 6, layers, options.get("scalars", False))
        heads = options.get("heads", False)
        found.append(MFASNetwork(genotype, CHANNELS, classes=CLASSES, dropout=dropout, heads=heads))
    return found


def trees(count: int, dropout: float = 0.0) -> list[Fusion]:
    draw = Random(1)
    return [
        TreeFusion(
            FusionTree(FEATURES, 6, LENGTH, random_tree(FEATURES, draw)),
            CHANNELS,
            classes=CLASSES,
            dropout=dropout,
        )
        for _ in range(count)
    ]


class Reversed(torch.autograd.Function):
    """A backward pass of its own: the gradient's sign is turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return -g


class Own(Fusion):
    """A user's network: convolution, a recurrent layer, chunks, and what cannot be merged."""

    seen: Tensor

    def __init__(self, width: int = 6, twist: str = "") -> None:
        super().__init__(("m0.2", "m1.1"), LENGTH)
        self.twist = twist
        self.first = nn.Conv1d(CHANNELS["m0.2"], width, 3, padding=1)
        self.second = nn.GRU(CHANNELS["m1.1"], width, batch_first=True)
        self.norm = nn.BatchNorm1d(width)
        self.gate = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, CLASSES)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("seen", torch.tensor(0.0))

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        x = self.norm(self.first(pooled[0].transpose(1, 2))).mean(-1)
        y, _ = self.second(pooled[1])
        x = x + y[:, -1] * self.scale
        if self.twist == "in place":
            x += 1
        a, b = self.gate(x).chunk(2, dim=-1)
        h = a * b.relu()
        if self.twist == "value" and float(h.detach().abs().sum()) < 0:
            h = -h
        if self.twist == "backward":
            h = Reversed.apply(h)  # type: ignore[no-untyped-call]
        if self.twist == "no_grad":
            with torch.no_grad():
                self.seen.add_(1.0)
        logits: Tensor = self.head(h)
        return logits


def fusions() -> list[Fusion]:
    """Two of every hand-made fusion; some have losses of their own."""
    sizes = Sizes(channels=8, length=LENGTH, classes=CLASSES, dropout=0.0)
    return [build(CHANNELS, sizes) for build in FUSIONS.values() for _ in range(2)]


def own(count: int, dropout: float = 0.0) -> list[Fusion]:
    return [Own() for _ in range(count)]


def mixed(dropout: float = 0.0) -> list[Fusion]:
    made = [*cells(3, dropout), *chains(3, dropout), *trees(3, dropout), *own(2)]
    return made[::2] + made[1::2]


def scrambled(networks: Sequence[Fusion]) -> list[Fusion]:
    """The networks in double precision, without dropout, with other weights than at first."""
    torch.manual_seed(5)
    for network in networks:
        network.double()
        for layer in network.modules():
            if isinstance(layer, Dropout):
                layer.p = 0.0  # attention has its own
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                if tensor.is_floating_point():
                    tensor.add_(torch.rand_like(tensor) / 5)
    return list(networks)


def batch(rows: int = 8) -> dict[str, Tensor]:
    return {n: torch.randn(rows, LENGTH, w, dtype=torch.float64) for n, w in CHANNELS.items()}


def read(network: Fusion, x: dict[str, Tensor]) -> list[Tensor]:
    return [x[name] for name in network.features]


@pytest.mark.parametrize(
    "networks",
    [
        lambda: cells(24),
        lambda: chains(6),
        lambda: chains(6, scalars=True),
        lambda: trees(12),
        fusions,
        lambda: own(3),
        lambda: [*chains(3, heads=True), Own(twist="value"), Own(twist="in place")],
        mixed,
    ],
    ids=["cells", "mfas", "mfas-scalars", "trees", "fusions", "own", "alone", "mixed"],
)
def test_together_computes_what_each_computes(networks: Any) -> None:
    """Logits, gradients and statistics, to the rounding of double precision."""
    made = scrambled(networks())
    x, labels = batch(), torch.arange(8) % CLASSES
    together = Together(copy.deepcopy(made), x)
    head = head_for("multiclass")
    for _ in range(2):
        output = together([x[name] for name in together.features])
        assert logits_of(output).shape == (8, len(made), CLASSES)
        loss = together.loss(head, output, labels)
        alone = [network.train()(read(network, x)) for network in made]
        for n, expected in enumerate(map(logits_of, alone)):
            torch.testing.assert_close(logits_of(output)[:, n], expected, rtol=1e-7, atol=1e-9)
        losses = [n.loss(head, own, labels) for n, own in zip(made, alone, strict=True)]
        total = torch.stack(losses).sum()
        torch.testing.assert_close(loss, total)
        # A step by hand, so that gradients are seen in the weights.
        for tensors, of in (
            (together.parameters(), loss),
            ([p for n in made for p in n.parameters()], total),
        ):
            parameters = list(tensors)
            gradients = torch.autograd.grad(of, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient / 10)
    together.unstack()
    for network, trained in zip(made, together._networks, strict=True):
        for (name, wanted), found in zip(
            network.state_dict().items(), trained.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8, msg=name)
    together.eval()
    x = batch(5)
    logits = together([x[name] for name in together.features])
    for n, network in enumerate(made):
        expected = network.eval()(read(network, x))
        torch.testing.assert_close(logits[:, n], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("twist", ["value", "backward", "no_grad", "in place"])
def test_where_one_cannot_be_merged_all_are_computed_one_by_one(twist: str) -> None:
    made = scrambled([Own(), Own(twist=twist), Own()])
    assert len(Together(made, batch()).alone) == 3
    assert len(Together(made[:1], batch()).alone) == 1
    assert not Together([made[0], made[2]], batch()).alone


def test_unstack_gives_back_everything() -> None:
    made = scrambled(mixed())
    before = [copy.deepcopy(network.state_dict()) for network in made]
    Together(made, batch()).unstack()
    for network, state in zip(made, before, strict=True):
        for (name, x), wanted in zip(network.state_dict().items(), state.values(), strict=True):
            assert torch.equal(x, wanted), name


def test_losses_of_their_own_are_added() -> None:
    """Networks with heads and without, among them one with an own loss of nothing but logits."""

    class Doubled(Own):
        def loss(self, head: TaskHead, output: Output, labels: Tensor) -> Tensor:
            return 2 * super().loss(head, output, labels)

    made = scrambled([*chains(3, heads=True), *chains(2), Doubled(), Own(twist="value")])
    x, labels, head = batch(), torch.arange(8) % CLASSES, head_for("multiclass")
    together = Together(made, x)
    found = together.loss(head, together([x[name] for name in together.features]), labels)
    alone = [n.loss(head, n.train()(read(n, x)), labels) for n in made]
    torch.testing.assert_close(found, torch.stack(alone).sum())


def trained(networks: list[Fusion], recipe: ShortTraining = RECIPE) -> list[Trained]:
    torch.manual_seed(7)
    return fit_together(
        networks,
        tiny_samples(60),
        tiny_samples(40, seed=1),
        head_for("multiclass"),
        recipe,
        device=CPU.device,
        stage="test",
    )


def test_training_twice_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    made = mixed(dropout=0.3)
    first, second = trained(copy.deepcopy(made)), trained(copy.deepcopy(made))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.best.logits, other.best.logits)


def test_a_result_does_not_depend_on_the_networks_beside_it() -> None:
    """Not beyond rounding, which three epochs of steps carry on."""
    torch.manual_seed(0)
    made = [*cells(3, 0.3), *chains(3, 0.3), *trees(3, 0.3)]
    beside = trained(copy.deepcopy(made))
    for n, other in ((0, 5), (4, 2), (8, 1)):
        pair, _ = trained([copy.deepcopy(made[n]), copy.deepcopy(made[other])])
        torch.testing.assert_close(pair.best.logits, beside[n].best.logits, rtol=1e-2, atol=1e-3)
        assert pair.epochs == beside[n].epochs == RECIPE.epochs


def test_networks_end_with_the_weights_of_the_last_epoch() -> None:
    torch.manual_seed(0)
    made = mixed()
    last = trained(made, dataclasses.replace(RECIPE, best=False))
    samples, head = tiny_samples(40, seed=1), head_for("multiclass")
    again = evaluate_together(made, samples, head, CPU.device)
    for network, one, other in zip(made, last, again, strict=True):
        alone = evaluate(network, network, samples.select(network.features), head, CPU.device)
        torch.testing.assert_close(one.best.logits, other.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.logits, other.logits, rtol=1e-4, atol=1e-5)
        assert one.epochs == RECIPE.epochs


def scored(score: float) -> Evaluation:
    return Evaluation(0.0, score, torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("first", "second", "epochs", "best"),
    [
        # Two epochs in which nothing rises end a network; what comes later does not count.
        ([0.5, 0.6, 0.6, 0.4, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5], [4, 5], [0.6, 0.5]),
        ([0.3, 0.3, 0.3, 0.9, 0.9], [0.2, 0.1, 0.1, 0.9, 0.9], [3, 3], [0.3, 0.2]),
        ([0.5, 0.4, 0.6, 0.5, 0.7], [0.2, 0.1, 0.1, 0.9, 0.9], [5, 3], [0.7, 0.2]),
    ],
)
def test_every_network_has_its_own_patience(
    monkeypatch: pytest.MonkeyPatch,
    first: list[float],
    second: list[float],
    epochs: list[int],
    best: list[float],
) -> None:
    scores = iter(zip(first, second, strict=True))
    monkeypatch.setattr(module, "evaluate_together", lambda *_: [scored(s) for s in next(scores)])
    torch.manual_seed(0)
    found = fit_together(
        trees(2),
        tiny_samples(40),
        tiny_samples(24),
        head_for("multiclass"),
        ShortTraining(5, 16, 1e-3, 1e-3, best=True, patience=2),
        device=CPU.device,
        stage="test",
    )
    assert [each.epochs for each in found] == epochs
    assert [each.best.score for each in found] == best


def test_divergence_is_told() -> None:
    with pytest.raises(UserError, match=r"test: the loss is (nan|inf) in epoch 1"):
        fit_together(
            trees(2),
            tiny_samples(40),
            tiny_samples(24),
            head_for("multiclass"),
            ShortTraining(2, 16, 1e30, 1e-3),
            device=CPU.device,
            stage="test",
        )
