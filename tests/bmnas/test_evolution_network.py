"""The network of a tree against its formula in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_networks import roughen

from bmnas.spaces.registry import build_fusion
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.spaces.trees.network import TreeFusion, l2_normalised, signed_sqrt

CHANNELS = {"a.1": 3, "a.2": 5, "b.1": 4, "c.1": 2, "c.2": 6, "c.3": 3}
LENGTH, WIDTH, CLASSES = 4, 7, 3

Array = NDArray[Any]

# Every operation once, leaves in another order than features.
TOKENS = (
    *("c.1", "a.1", "mul", "b.1", "max"),
    *("a.2", "c.3", "concat_dense", "average", "c.2", "add"),
)


def built(tokens: tuple[str, ...] = TOKENS, seed: int = 0) -> TreeFusion:
    """Return the network as after some training, in evaluation mode and float64."""
    torch.manual_seed(seed)
    tree = FusionTree(tuple(CHANNELS), WIDTH, LENGTH, tokens)
    fusion = build_fusion(tree, CHANNELS, classes=CLASSES, dropout=0.1)
    assert isinstance(fusion, TreeFusion)
    roughen(fusion)
    return fusion.double().eval()


def pooled(fusion: TreeFusion, rows: int = 6) -> list[Array]:
    draw = np.random.default_rng(1)
    return [draw.normal(size=(rows, LENGTH, CHANNELS[name])) for name in fusion.features]


def test_the_network_is_its_formula() -> None:
    fusion = built()
    assert fusion.features == tuple(CHANNELS)
    weights = {name: value.numpy() for name, value in fusion.state_dict().items()}

    def linear(x: Array, name: str) -> Array:
        y: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        return y

    def norm(x: Array, name: str) -> Array:
        centred = x - weights[f"{name}.running_mean"]
        y: Array = centred / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
        return y * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    features = pooled(fusion)
    leaf = {}
    for n, (name, feature) in enumerate(zip(CHANNELS, features, strict=True)):
        vector = norm(feature.mean(axis=1), f"leaves.{n}.norm")
        leaf[name] = np.maximum(linear(vector, f"leaves.{n}.dense"), 0)
    higher = np.maximum(leaf["c.1"] * leaf["a.1"], leaf["b.1"])
    dense = linear(np.concatenate([leaf["a.2"], leaf["c.3"]], axis=1), "merges.0")
    root = norm((higher + dense) / 2 + leaf["c.2"], "norm")
    rooted = np.sign(root) * np.sqrt(np.abs(root) + 1e-10)
    unit = rooted / np.sqrt((rooted**2).sum(axis=1, keepdims=True))
    expected = linear(unit, "output")

    with torch.inference_mode():
        found = fusion([torch.from_numpy(feature) for feature in features]).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_operands_of_concat_keep_their_order() -> None:
    fusion, turned = built(("a.1", "b.1", "concat_dense")), built(("b.1", "a.1", "concat_dense"))
    assert turned.features == fusion.features == ("a.1", "b.1")
    state = fusion.state_dict()
    # The other order is the same network with the rows of the weights exchanged.
    weight = state["merges.0.weight"]
    state["merges.0.weight"] = torch.cat((weight[:, WIDTH:], weight[:, :WIDTH]), dim=1)
    given = [torch.from_numpy(feature) for feature in pooled(fusion)]
    before = turned(given)
    turned.load_state_dict(state)
    assert not torch.allclose(turned(given), before)
    torch.testing.assert_close(turned(given), fusion(given))


def test_only_what_the_tree_reads_is_built() -> None:
    fusion = built(("b.1", "a.2", "add"))
    assert fusion.features == ("a.2", "b.1")
    assert [leaf.dense.in_features for leaf in fusion.leaves] == [5, 4]  # type: ignore[union-attr]
    assert len(fusion.merges) == 0
    assert fusion.classifier.out_features == CLASSES


def test_averaged_features_give_the_same_logits() -> None:
    fusion = built()
    features = [torch.from_numpy(feature) for feature in pooled(fusion)]
    averaged = [feature.mean(1, keepdim=True) for feature in features]
    torch.testing.assert_close(fusion(averaged), fusion(features))


def test_signed_square_roots_by_hand() -> None:
    x = torch.tensor([4.0, -9.0, 0.0, 0.25], dtype=torch.float64, requires_grad=True)
    y = signed_sqrt(x)
    torch.testing.assert_close(y.detach(), torch.tensor([2.0, -3.0, 0.0, 0.5]).double())
    y.sum().backward()
    # 1 / (2 sqrt(|x|)), and nothing at 0, where it would be without bound.
    expected = torch.tensor([1 / 4, 1 / 6, 0.0, 1.0]).double()
    torch.testing.assert_close(x.grad, expected)


def test_unit_vectors_by_hand() -> None:
    x = torch.tensor([[3.0, -4.0], [0.0, 0.0]], requires_grad=True)
    y = l2_normalised(x)
    torch.testing.assert_close(y.detach(), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    y[:, 0].sum().backward()
    assert x.grad is not None
    # d (a / |x|) / d (a, b) at (3, -4) is (b², -ab) / |x|³.
    torch.testing.assert_close(x.grad[0], torch.tensor([16.0, 12.0]) / 125)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, -1e-12, 1e20])
def test_gradients_are_finite_however_small_the_root_is(scale: float) -> None:
    x = torch.full((2, WIDTH), scale, requires_grad=True)
    y = l2_normalised(signed_sqrt(x))
    assert torch.isfinite(y).all()
    (y * torch.arange(WIDTH)).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_it_trains_where_a_feature_says_nothing() -> None:
    fusion = built(("a.1", "b.1", "mul")).float().train()
    features = [torch.zeros(6, LENGTH, CHANNELS[name]) for name in fusion.features]
    fusion(features).square().sum().backward()
    for parameter in fusion.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_dropout_acts_on_the_leaves() -> None:
    fusion = built()
    features = [torch.from_numpy(feature) for feature in pooled(fusion)]
    torch.testing.assert_close(fusion(features), fusion(features), rtol=0, atol=0)
    assert [leaf.dropout.p for leaf in fusion.leaves] == [0.1] * 6  # type: ignore[union-attr]
