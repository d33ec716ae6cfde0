"""Each hand-made fusion against its formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from fusion_formulas import (
    CHANNELS,
    CLASSES,
    FORMULAS,
    LENGTH,
    THREE,
    TWO,
    Array,
    Weights,
    built,
    centralnet,
    dot_product,
    flat,
    pooled,
)

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.fusions.attention import CrossAttention, NonLocalBlock
from bmnas.spaces.fusions.central_difference import TemporalDifference
from bmnas.spaces.fusions.features import Sizes, levels
from bmnas.spaces.fusions.mtut import correlation, focal_weight
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.fusions.table import FUSIONS, CentralNet, MTUTFusion
from bmnas.spaces.fusions.tensor_fusion import products
from bmnas.spaces.registry import build_fusion
from bmnas.training.heads import head_for


def test_every_fusion_has_its_formula_here() -> None:
    assert [formula.__name__ for formula in FORMULAS] == list(FUSIONS)


@pytest.mark.parametrize("channels_raw", [TWO, THREE], ids=["two", "three"])
@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_a_fusion_computes_its_formula(formula: Any, channels_raw: Mapping[str, int]) -> None:
    fusion = built(formula.__name__, channels_raw)
    x = pooled(fusion, channels_raw)
    with torch.inference_mode():
        found = fusion([torch.from_numpy(f) for f in x])
    assert found.shape == (7, CLASSES)
    np.testing.assert_allclose(found.numpy(), formula(Weights(fusion), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FUSIONS)
def test_every_weight_is_trained(name: str) -> None:
    fusion = built(name, THREE).train()
    x = [torch.from_numpy(f) for f in pooled(fusion, THREE, rows=16)]
    fusion.loss(head_for("multiclass"), fusion(x), torch.arange(16) % CLASSES).backward()
    without = [n for n, p in fusion.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("name", FUSIONS)
def test_the_classifier_is_a_part(name: str) -> None:
    fusion = built(name)
    own = {id(p) for p in fusion.parameters()}
    assert {id(p) for p in fusion.classifier.parameters()} <= own
    assert fusion.length == LENGTH
    assert set(fusion.features) <= set(TWO)


def test_a_dot_product_is_for_two_modalities_and_one_output() -> None:
    fusion = built("dot_product", classes=1)
    x = pooled(fusion)
    with torch.inference_mode():
        found = fusion([torch.from_numpy(f) for f in x])
    np.testing.assert_allclose(found.numpy(), dot_product(Weights(fusion), x), rtol=1e-9, atol=1e-9)
    for raw, classes in ((THREE, 1), (TWO, 3)):
        with pytest.raises(UserError, match=r"fusion dot_product: received .* of kind matching"):
            built("dot_product", raw, classes=classes)


def test_a_gate_by_hand() -> None:
    """Two modalities with one hidden unit: v = (0.5, -1), gate weights (2, 1)."""
    fusion = built("gmu", {"a.1": 1, "b.1": 1})
    with torch.no_grad():
        fusion.unit.gate.weight.zero_()
        fusion.unit.gate.weight[0, 0], fusion.unit.gate.weight[0, CHANNELS] = 2.0, 1.0
        v = torch.zeros(1, CHANNELS, dtype=torch.float64)
        h = fusion.unit([v.index_fill(1, torch.tensor([0]), 0.5), v - torch.eye(1, CHANNELS)])
    # z = sigmoid(2 * 0.5 - 1) = 0.5; h = 0.5 tanh(0.5) + 0.5 tanh(-1).
    assert h[0, 0].item() == pytest.approx(0.5 * 0.46211716 - 0.5 * 0.76159416)
    assert not h[0, 1:].any()


def test_a_difference_by_hand() -> None:
    layer = TemporalDifference(1, 1, theta=0.5).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[1.0, 2.0, 3.0]]]))
        y = layer(torch.tensor([[[1.0], [10.0], [100.0]]], dtype=torch.float64))
    # w0 - theta (w-1 + w1) = 2 - 0.5 * 4 = 0: only the neighbours are left.
    assert y.flatten().tolist() == [30.0, 301.0, 10.0]


def test_products_by_hand() -> None:
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 3.0, 5.0]])
    assert products(x, y).tolist() == [[1, 3, 5, 2, 6, 10]]


@pytest.mark.parametrize(("modalities", "units"), [(2, 31), (3, 9), (5, 3), (12, 1)])
def test_a_tensor_stays_small(modalities: int, units: int) -> None:
    raw = {f"m{n}.1": 2 for n in range(modalities)}
    fusion = build_fusion(NamedFusion("tensor", 64, 1), raw, classes=2, dropout=0.0)
    assert fusion.hidden.linear.in_features == (1 + units) ** modalities
    few = build_fusion(NamedFusion("tensor", 2, 1), raw, classes=2, dropout=0.0)
    assert few.hidden.linear.in_features == (1 + min(2, units)) ** modalities


def test_a_non_local_block_first_changes_nothing() -> None:
    x, y = torch.randn(3, 2, 4), torch.randn(3, 5, 4)
    assert torch.equal(NonLocalBlock(4)(x, y), x)


def test_a_position_gathers_by_hand() -> None:
    """Weights 1/4 and 3/4 of the doubled values 1 and 5."""
    attention = CrossAttention(1)
    with torch.no_grad():
        for layer, weight in zip(attention.children(), (1.0, np.log(3) / 4, 2.0), strict=True):
            layer.weight.fill_(weight)
        # The keys are ln(3) / 4 times 1 and 5: a difference of ln 3.
        gathered = attention(torch.ones(1, 1, 1), torch.tensor([[[1.0], [5.0]]]))
    assert gathered.item() == pytest.approx(2 * (1 / 4 + 5 * 3 / 4))


def test_levels_meet_at_the_last_features() -> None:
    assert levels(["a.1", "b.1", "b.2", "c.1", "c.2", "c.3"]) == [
        ("c.1",),
        ("b.1", "c.2"),
        ("a.1", "b.2", "c.3"),
    ]


def test_centralnet_adds_the_losses_of_the_modalities() -> None:
    fusion = built("centralnet").train()
    assert isinstance(fusion, CentralNet)
    for layer in fusion.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.eval()
        if hasattr(layer, "p"):
            layer.p = 0.0
    x, labels = pooled(fusion), torch.arange(7) % CLASSES
    output = fusion([torch.from_numpy(f) for f in x])
    w = Weights(fusion)
    expected = [centralnet(w, x)]
    # The modalities decide on their last features, numbers 1 and 3.
    for m, n in ((1, 1), (2, 3)):
        expected.append(w.linear(flat(w.projection(x[n], n)), f"classifiers.{m}"))
    for logits, wanted in zip(output, expected, strict=True):
        np.testing.assert_allclose(logits.detach().numpy(), wanted, rtol=1e-9, atol=1e-9)
    head = head_for("multiclass")
    total = sum(cross_entropy(logits, labels.numpy()) for logits in expected)
    assert fusion.loss(head, output, labels).item() == pytest.approx(total)
    assert fusion.loss(head, output[0], labels).item() == pytest.approx(
        cross_entropy(expected[0], labels.numpy())
    )


def cross_entropy(logits: Array, labels: Array) -> float:
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(-logs[np.arange(len(labels)), labels].mean())


def test_mtut_aligns_the_worse_modality_with_the_better_one() -> None:
    fusion = built("mtut", THREE).train()
    assert isinstance(fusion, MTUTFusion)
    draw = np.random.default_rng(2)
    logits = [torch.from_numpy(draw.normal(size=(5, CLASSES)) * s) for s in (0.1, 1, 3)]
    features = [draw.normal(size=(5, LENGTH, 2)) for _ in range(3)]
    labels = torch.arange(5) % CLASSES
    correlations = [correlation(torch.from_numpy(f)) for f in features]
    total = 0.0
    losses = [cross_entropy(own.numpy(), labels.numpy()) for own in logits]
    assert len({round(loss, 3) for loss in losses}) == 3
    for m in range(3):
        total += losses[m]
        for n in range(3):
            rho = max(0.0, np.exp(2 * (losses[m] - losses[n])) - 1)
            rows = [f / np.linalg.norm(f, axis=2, keepdims=True) for f in features]
            apart = rows[m] @ rows[m].swapaxes(1, 2) - rows[n] @ rows[n].swapaxes(1, 2)
            total += 0.05 * rho * (apart**2).sum((1, 2)).mean()
    head = head_for("multiclass")
    output = (torch.stack(logits).mean(0), *logits, *correlations)
    assert fusion.loss(head, output, labels).item() == pytest.approx(total)


def test_only_the_worse_modality_is_moved() -> None:
    own, other = torch.tensor(1.5), torch.tensor(1.0)
    assert focal_weight(own, other).item() == pytest.approx(np.e - 1)
    assert focal_weight(other, own).item() == 0
    fusion = MTUTFusion({"a.1": 1, "b.1": 1}, Sizes(1, 1, 2, 0.0))
    good, bad = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    first, second = (torch.rand(1, 2, 2, requires_grad=True) for _ in range(2))
    output = (good, good, bad, first, second)
    fusion.loss(head_for("multiclass"), output, torch.tensor([0])).backward()
    assert first.grad is None or not first.grad.any()
    assert second.grad is not None
    assert second.grad.any()


def test_multilabel_losses_are_those_of_the_task() -> None:
    fusion = built("centralnet")
    head = head_for("multilabel")
    logits, labels = torch.zeros(4, CLASSES), torch.ones(4, CLASSES)
    assert fusion.loss(head, (logits, logits), labels).item() == pytest.approx(2 * np.log(2))


@pytest.mark.parametrize("name", [n for n in FUSIONS if "two_stream" not in n])
def test_one_modality_is_nothing_to_fuse(name: str) -> None:
    what = NamedFusion(name, CHANNELS, LENGTH)
    with pytest.raises(UserError, match=f"fusion {name}: received the modalities a, expected two"):
        build_fusion(what, {"a.1": 2, "a.2": 2}, classes=2, dropout=0.0)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({"name": "gmv", "channels": 4, "length": 2}, "received fusion 'gmv'.*mean 'gmu'"),
        (
            {"name": ["gmu"], "channels": 4, "length": 2},
            r"name: received \['gmu'\], expected a str",
        ),
        ({"name": "gmu", "channels": 0, "length": 2}, "channels: received 0, expected"),
        ({"name": "gmu", "channels": 4, "length": 2.0}, r"length: received 2\.0, expected"),
        ({"name": "gmu", "channels": 4}, "expected the key 'length', which is missing"),
        (
            {"name": "gmu", "channels": 4, "length": 2, "x": 1},
            "received key 'x', expected only name, channels",
        ),
        ("gmu", "received 'gmu', expected an object"),
    ],
)
def test_a_malformed_fusion_is_refused(data: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        NamedFusion.from_dict(data)


def test_plain_data_and_back() -> None:
    what = NamedFusion("gmu", 8, 4)
    assert NamedFusion.from_dict(what.to_dict()) == what


def test_a_genotype_is_an_architecture_too() -> None:
    genotype = known_genotype("sum", ("image.1", "audio.1"), channels=8, length=4)
    assert isinstance(genotype, Genotype)
    fusion = build_fusion(genotype, TWO, classes=3, dropout=0.0)
    assert fusion.features == ("image.1", "audio.1")
