"""Each hand-made fusion against its formula, written out in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_networks import roughen

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.attention import CrossAttention, NonLocalBlock
from bmnas.spaces.fusions.central_difference import TemporalDifference
from bmnas.spaces.fusions.features import Sizes, levels
from bmnas.spaces.fusions.mtut import correlation, focal_weight
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.fusions.table import FUSIONS, CentralNet, MTUTFusion
from bmnas.spaces.fusions.tensor_fusion import products
from bmnas.spaces.registry import build_fusion
from bmnas.training.heads import head_for

TWO = {"image.1": 3, "image.2": 5, "audio.1": 4, "audio.2": 2}
THREE = {**TWO, "text.1": 6}
LENGTH, CHANNELS, CLASSES = 4, 6, 3

Array = NDArray[Any]


def built(
    name: str, channels_raw: Mapping[str, int] = TWO, seed: int = 0, classes: int = CLASSES
) -> Fusion:
    """Return the fusion as after some training, in evaluation mode and float64."""
    torch.manual_seed(seed)
    what = NamedFusion(name, CHANNELS, LENGTH)
    fusion = build_fusion(what, channels_raw, classes=classes, dropout=0.1)
    roughen(fusion)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    return fusion.double().eval()


def pooled(fusion: Fusion, channels_raw: Mapping[str, int] = TWO, rows: int = 7) -> list[Array]:
    draw = np.random.default_rng(1)
    return [draw.normal(size=(rows, LENGTH, channels_raw[name])) for name in fusion.features]


class Weights:
    """What a fusion holds, by name, as arrays; the layers as NumPy formulas."""

    def __init__(self, fusion: Fusion) -> None:
        self.arrays = {name: value.numpy() for name, value in fusion.state_dict().items()}

    def __getitem__(self, name: str) -> Array:
        return self.arrays[name]

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self[f"{name}.weight"].T
        return y + self[f"{name}.bias"] if f"{name}.bias" in self.arrays else y

    def norm(self, x: Array, name: str) -> Array:
        mean, variance = self[f"{name}.running_mean"], self[f"{name}.running_var"]
        y: Array = (x - mean) / np.sqrt(variance + 1e-5) * self[f"{name}.weight"]
        return y + self[f"{name}.bias"]

    def linear_norm(self, x: Array, name: str) -> Array:
        return self.norm(self.linear(x, f"{name}.linear"), f"{name}.norm")

    def projection(self, x: Array, n: int) -> Array:
        return relu(self.linear_norm(x, f"projections.{n}.project"))


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def two_stream(w: Weights, x: Sequence[Array]) -> Array:
    logits = [w.linear(flat(f), f"classifiers.{m}") for m, f in enumerate(x)]
    return np.mean(logits, axis=0)


def weighted_two_stream(w: Weights, x: Sequence[Array]) -> Array:
    share = np.exp(w["weights"]) / np.exp(w["weights"]).sum()
    logits = [w.linear(flat(f), f"classifiers.{m}") for m, f in enumerate(x)]
    return np.sum([a * own for a, own in zip(share, logits, strict=True)], axis=0)


def concat(w: Weights, x: Sequence[Array]) -> Array:
    joined = np.concatenate([flat(f) for f in x], axis=1)
    return w.linear(relu(w.linear_norm(joined, "hidden")), "output")


def gmu(w: Weights, x: Sequence[Array]) -> Array:
    values = [w.linear(w.norm(flat(f), f"norms.{m}"), f"values.{m}") for m, f in enumerate(x)]
    gates = sigmoid(np.concatenate(values, axis=1) @ w["unit.gate.weight"].T)
    if len(x) == 2:
        h = gates * np.tanh(values[0]) + (1 - gates) * np.tanh(values[1])
    else:
        parts = np.split(gates, len(x), axis=1)
        h = np.sum([z * np.tanh(v) for z, v in zip(parts, values, strict=True)], axis=0)
    for norm, maxout in ((0, 1), (2, 3)):
        pieces = w.linear(w.norm(h, f"decide.{norm}"), f"decide.{maxout}.pieces")
        h = np.maximum(pieces[:, :CHANNELS], pieces[:, CHANNELS:])
    return w.linear(w.norm(h, "decide.4"), "output")


def central(w: Weights, x: Sequence[Array], names: Sequence[Sequence[int]]) -> Array:
    """Return h_C after the last level; ``names`` are the numbers of the features at each."""
    before: list[Array] = []
    for level, numbers in enumerate(names):
        hidden = [*before, *(w.projection(x[n], n) for n in numbers)]
        a = w[f"layers.{level}.weights"]
        total = sum(a[i] * h for i, h in enumerate(hidden))
        before = [relu(w.linear_norm(np.asarray(total), f"layers.{level}.layer"))]
    return before[0]


def centralnet(w: Weights, x: Sequence[Array]) -> Array:
    numbers = [(0, 2), (1, 3)] if len(x) == 4 else [(0, 2), (1, 3, 4)]
    return w.linear(flat(central(w, x, numbers)), "classifiers.0")


def mmtm(w: Weights, x: Sequence[Array]) -> Array:
    squeezed = np.concatenate([f.mean(1) for f in x], axis=1)
    e = relu(w.linear(squeezed, "transfer.squeeze"))
    assert e.shape[1] == 2 * sum(f.shape[2] for f in x) // 4
    logits = []
    for m, f in enumerate(x):
        scale = 2 * sigmoid(w.linear(e, f"transfer.excite.{m}"))
        logits.append(w.linear(flat(f * scale[:, None]), f"classifiers.{m}"))
    return np.mean(logits, axis=0)


def mtut(w: Weights, x: Sequence[Array]) -> Array:
    hidden = [relu(w.linear_norm(f, f"projections.{m}")) for m, f in enumerate(x)]
    return np.mean([w.linear(flat(h), f"classifiers.{m}") for m, h in enumerate(hidden)], axis=0)


def difference(kernel: Array, x: Array, theta: float) -> Array:
    """Return the convolution, position by position, less theta of the difference."""
    y = np.zeros((*x.shape[:2], len(kernel)))
    for t in range(x.shape[1]):
        for k in (-1, 0, 1):
            if 0 <= t + k < x.shape[1]:
                y[:, t] += x[:, t + k] @ kernel[:, :, k + 1].T
        y[:, t] -= theta * x[:, t] @ (kernel[:, :, 0] + kernel[:, :, 2]).T
    return y


def cdc_t(w: Weights, x: Sequence[Array]) -> Array:
    fused: list[Array] = []
    for level, numbers in enumerate([(0, 2), (1, 3)] if len(x) == 4 else [(0, 2), (1, 3, 4)]):
        side = [*fused, *(w.projection(x[n], n) for n in numbers)]
        kernel = w[f"connections.{level}.difference.weight"]
        y = difference(kernel, np.concatenate(side, axis=2), 0.6)
        fused = [relu(w.norm(y, f"connections.{level}.norm"))]
    return w.linear(flat(fused[0]), "output")


def vectors(w: Weights, x: Sequence[Array]) -> list[Array]:
    return [relu(w.linear_norm(flat(f), f"vectors.{m}")) for m, f in enumerate(x)]


def tensor(w: Weights, x: Sequence[Array]) -> Array:
    extended = [np.insert(z, 0, 1, axis=1) for z in vectors(w, x)]
    letters = "ijk"[: len(x)]
    outer = np.einsum(f"{','.join('b' + i for i in letters)}->b{letters}", *extended)
    return w.linear(relu(w.linear_norm(flat(outer), "hidden")), "output")


def lmf(w: Weights, x: Sequence[Array]) -> Array:
    """Return what a linear layer gives on the tensor, whose weights are summed up first."""
    extended = [np.insert(z, 0, 1, axis=1) for z in vectors(w, x)]
    factors = [
        np.insert(w[f"factors.{m}.weight"].T, 0, w[f"factors.{m}.bias"], axis=0)
        for m in range(len(x))
    ]
    letters = "ijk"[: len(x)]
    weights = ",".join(i + "rc" for i in letters) + f"->{letters}c"
    whole = np.einsum(weights, *(f.reshape(len(f), 4, CHANNELS) for f in factors))
    h = np.einsum(
        f"{','.join('b' + i for i in letters)},{letters}c->bc", *extended, whole, optimize=True
    )
    return w.linear(w.norm(h, "norm"), "output")


def mi_matrix(w: Weights, x: Sequence[Array]) -> Array:
    z, weight, start = vectors(w, x), w["output.weight"], 0
    logits: Array = w["output.bias"]
    for m, n in [(0, 1)] if len(x) == 2 else [(0, 1), (0, 2), (1, 2)]:
        own = weight[:, start : start + CHANNELS**2].reshape(CLASSES, CHANNELS, CHANNELS)
        logits, start = logits + np.einsum("bi,kij,bj->bk", z[m], own, z[n]), start + CHANNELS**2
    for vector in z:
        logits, start = logits + vector @ weight[:, start : start + CHANNELS].T, start + CHANNELS
    assert start == weight.shape[1]
    return logits


def cross_attention(w: Weights, x: Array, y: Array, name: str) -> Array:
    query, key, value = (
        w.linear(of, f"{name}.{part}") for of, part in ((x, "query"), (y, "key"), (y, "value"))
    )
    scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[2]))
    attended: Array = scores / scores.sum(2, keepdims=True) @ value
    return attended


def non_local_gate(w: Weights, x: Sequence[Array]) -> Array:
    h = [w.projection(f, m) for m, f in enumerate(x)]
    logits = []
    for m, own in enumerate(h):
        others = np.concatenate(h[:m] + h[m + 1 :], axis=1)
        gathered = cross_attention(w, own, others, f"blocks.{m}.attention")
        changed = own + w.linear_norm(gathered, f"blocks.{m}.change")
        logits.append(w.linear(flat(changed), f"classifiers.{m}"))
    return np.mean(logits, axis=0)


def transformer_layer(w: Weights, x: Array, y: Array, name: str) -> Array:
    def norm(of: Array, n: int) -> Array:
        centred = of - of.mean(2, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(2, keepdims=True) + 1e-5)
        normed: Array = scaled * w[f"{name}.norms.{n}.weight"] + w[f"{name}.norms.{n}.bias"]
        return normed

    target = norm(x, 0)
    h = norm(target + cross_attention(w, target, norm(y, 1), f"{name}.attention"), 2)
    return h + w.linear(relu(w.linear(h, f"{name}.first")), f"{name}.second")


def mult(w: Weights, x: Sequence[Array]) -> Array:
    h = [w.projection(f, m) + w["positions"][m] for m, f in enumerate(x)]
    means, layer = [], 0
    for m in range(len(h)):
        gathered = []
        for n in range(len(h)):
            if n != m:
                gathered.append(transformer_layer(w, h[m], h[n], f"crossmodal.{layer}"))
                layer += 1
        z = np.concatenate(gathered, axis=2)
        means.append(transformer_layer(w, z, z, f"alone.{m}").mean(1))
    return w.linear(np.concatenate(means, axis=1), "output")


def dot_product(w: Weights, x: Sequence[Array]) -> Array:
    u = []
    for m, f in enumerate(x):
        hidden = relu(w.linear_norm(flat(f), f"encoders.{m}.0"))
        found = w.linear(hidden, f"encoders.{m}.3")
        u.append(found / np.linalg.norm(found, axis=1, keepdims=True))
    cosine = (u[0] * u[1]).sum(1, keepdims=True)
    return np.exp(w["output.scale"]) * cosine + w["output.bias"]


FORMULAS = (
    *(two_stream, weighted_two_stream, concat, gmu, centralnet, mmtm, mtut, cdc_t),
    *(tensor, lmf, mi_matrix, non_local_gate, mult),
)


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
