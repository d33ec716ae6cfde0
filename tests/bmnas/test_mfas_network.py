"""The networks of MFAS against literal NumPy, and candidates in a stack against each alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from tiny_problems import CHANNELS as RAW
from tiny_problems import LENGTH
from torch import Tensor

from bmnas.machine.costs import count_parameters
from bmnas.spaces.mfas.genotype import Layer, Layers, MFASGenotype
from bmnas.spaces.mfas.network import MFASNetwork, shares
from bmnas.spaces.registry import build_fusion
from bmnas.tasks.kinds import LabelScale
from bmnas.training.heads import head_for

CLASSES = 4
FEATURES = tuple(RAW)
CHAIN = (
    Layer(("m0.2", "m1.1"), "relu"),
    Layer(("m0.1", "m1.1"), "sigmoid"),
    Layer(("m0.2", "m1.1"), "relu"),
)


def network(
    layers: Layers = CHAIN, *, scalars: bool = False, heads: bool = True, classes: int = CLASSES
) -> MFASNetwork:
    genotype = MFASGenotype(FEATURES, LENGTH, 6, layers, scalars)
    return MFASNetwork(genotype, RAW, classes=classes, dropout=0.0, heads=heads)


def literal(net: MFASNetwork, x: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the logits of the fusion layers and of each head, as the formulas say."""
    w = {name: p.detach().numpy() for name, p in net.named_parameters()}
    vectors = {name: feature.mean(1) for name, feature in x.items()}
    h = np.zeros((len(next(iter(x.values()))), 0))
    for n, names in enumerate(net.inputs):
        first, second = (vectors[name] for name in names)
        if f"layers.{n}.scalars" in w:
            a = 1 / (1 + np.exp(-w[f"layers.{n}.scalars"]))
            first, second = a * first, (1 - a) * second
        joined = np.concatenate((first, second, h), axis=1)
        h = joined @ w[f"layers.{n}.linear.weight"].T + w[f"layers.{n}.linear.bias"]
        relu = net.layers[n].activation == "relu"
        h = np.maximum(h, 0) if relu else 1 / (1 + np.exp(-h))
    decided = [h, *(vectors[name] for name in net.heads)]
    return [
        v @ w[f"classifiers.{n}.weight"].T + w[f"classifiers.{n}.bias"]
        for n, v in enumerate(decided)
    ]


def inputs(names: Sequence[str], rows: int = 7) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(rows, LENGTH, RAW[name])) for name in names}


@pytest.mark.parametrize("scalars", [False, True])
def test_it_computes_its_formula(scalars: bool) -> None:
    torch.manual_seed(0)
    net = network(scalars=scalars).double().eval()
    x = inputs(net.features)
    given = [torch.from_numpy(f) for f in x.values()]
    expected = literal(net, x)
    assert len(expected) == 3
    total = net(given)
    assert isinstance(total, Tensor)
    np.testing.assert_allclose(total.detach().numpy(), np.sum(expected, axis=0), rtol=1e-9)
    summed, *heads = net.train()(given)
    np.testing.assert_allclose(summed.detach().numpy(), np.sum(expected, axis=0), rtol=1e-9)
    for found, wanted in zip(heads, expected, strict=True):
        np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-9)


def test_a_layer_by_hand() -> None:
    """One unit: x = 2, y = 3, W = (0.5, -1), b = 1.5: ReLU(1 - 3 + 1.5) = 0, sigmoid = 0.3775."""
    raw = {"a.1": 1, "b.1": 1}
    for activation, expected in (("relu", 0.0), ("sigmoid", 0.37754067)):
        genotype = MFASGenotype(("a.1", "b.1"), 2, 1, (Layer(("a.1", "b.1"), activation),))
        net = MFASNetwork(genotype, raw, classes=1, dropout=0.0, heads=False).eval()
        with torch.no_grad():
            net.layers[0].linear.weight.copy_(torch.tensor([[0.5, -1.0]]))
            net.layers[0].linear.bias.fill_(1.5)
            net.classifiers[0].weight.fill_(1.0)
            net.classifiers[0].bias.zero_()
            # The means over two positions.
            z = net([torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[2.0], [4.0]]])])
        assert z.item() == pytest.approx(expected)


def test_the_scalars_of_two_modalities_are_a_and_one_minus_a() -> None:
    first, second = shares(torch.tensor([0.7])).tolist()
    assert first == pytest.approx(1 / (1 + np.exp(-0.7)))
    assert first + second == pytest.approx(1)
    assert shares(torch.zeros(2)).tolist() == pytest.approx([1 / 3] * 3)


def test_a_candidate_reads_what_its_layers_read() -> None:
    alone = network(CHAIN[1:2], heads=False)
    assert alone.features == ("m0.1", "m1.1")
    head, logits, labels = (
        head_for("multiclass"),
        torch.randn(4, CLASSES),
        torch.arange(4) % CLASSES,
    )
    assert torch.equal(alone.loss(head, logits, labels), head.loss(logits, labels))
    assert network(CHAIN[1:2]).features == FEATURES


def test_parameters_are_those_of_layers_and_heads() -> None:
    net = network()
    fusion = 6 * (5 + 4 + 1) + 6 * (3 + 4 + 6 + 1) + 6 * (5 + 4 + 6 + 1)
    heads = CLASSES * ((6 + 1) + (5 + 1) + (4 + 1))
    assert count_parameters(net.classifier) == heads
    assert count_parameters(net) == fusion + heads


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_every_head_has_a_loss(kind: str) -> None:
    scale = LabelScale((0.0,) * CLASSES, (1.0,) * CLASSES)
    fusion, head = network(), head_for(kind, scale=scale)
    logits = torch.zeros(5, CLASSES)
    labels = torch.arange(5) % CLASSES if kind == "multiclass" else torch.ones(5, CLASSES)
    one = {"multiclass": np.log(CLASSES), "multilabel": np.log(2), "regression": 0.5}[kind]
    assert fusion.loss(head, (logits + 9, logits, logits, logits), labels).item() == pytest.approx(
        3 * one
    )
    assert fusion.loss(head, logits, labels).item() == pytest.approx(one)


def test_three_modalities() -> None:
    raw = {"a.1": 2, "a.2": 3, "b.1": 4, "c.1": 5}
    layers = (Layer(("a.1", "b.1", "c.1"), "relu"), Layer(("a.2", "b.1", "c.1"), "sigmoid"))
    genotype = MFASGenotype(tuple(raw), 2, 6, layers, scalars=True)
    fusion = build_fusion(genotype, raw, classes=3, dropout=0.0)
    assert isinstance(fusion, MFASNetwork)
    output = fusion([torch.randn(4, 2, width) for width in raw.values()])
    assert [tuple(logits.shape) for logits in output] == [(4, 3)] * 5
    fusion.loss(head_for("multiclass"), output, torch.arange(4) % 3).backward()
    assert all(p.grad is not None and p.grad.any() for p in fusion.parameters())
