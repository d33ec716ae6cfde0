from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.features.layers import Dropout, LinearNorm, dropout, linear
from bmnas.spaces.cells.operations import OPERATIONS, PAPER
from bmnas.spaces.cells.primitives import (
    Attention,
    CellOutput,
    ConcatFC,
    Head,
    LinearGLU,
    Sum,
    scaled_attention,
)

EPS = 1e-5


def column(*values: float) -> Tensor:
    """One sample of one channel, (1, L, 1)."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1)


def set_linear(layer: LinearNorm, weight: list[list[float]], bias: list[float]) -> None:
    """Give a layer its numbers, and running statistics that make its norm the identity."""
    layer.linear.weight.data = torch.tensor(weight, dtype=torch.float64)
    layer.linear.bias.data = torch.tensor(bias, dtype=torch.float64)
    assert layer.norm.running_var is not None
    layer.norm.running_var.fill_(1.0 - EPS)


def sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value))


def test_every_operation_that_computes_can_be_built() -> None:
    x, y = torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    for name in PAPER[1:]:
        assert OPERATIONS[name].build(8, 4, 0.1)(x, y).shape == x.shape


def test_sum_by_hand() -> None:
    torch.testing.assert_close(Sum(1, 2, 0.0)(column(1, 2), column(10, -2)), column(11, 0))


def test_attention_weights_by_hand() -> None:
    # One channel: the scores are products. Softmax of (0, 0) and of (0, ln 2): 1/2, 1/3 and 2/3.
    z = scaled_attention(column(0.0, math.log(2.0)), column(0.0, 1.0), column(0.0, 1.0))
    torch.testing.assert_close(z, column(1 / 2, 2 / 3))


def test_attention_divides_by_the_root_of_the_channels() -> None:
    x = torch.ones(1, 1, 4, dtype=torch.float64)
    y = torch.tensor([[[0.0] * 4, [math.log(3.0) / 2] * 4]], dtype=torch.float64)
    # The score of the second token is 4 * ln(3)/2 / sqrt(4) = ln 3, its weight 3/4.
    expected = torch.full((1, 1, 4), 0.75 * math.log(3.0) / 2, dtype=torch.float64)
    torch.testing.assert_close(scaled_attention(x, y, y), expected)


def test_attention_is_normalised_over_channels_and_length() -> None:
    operation = Attention(1, 2, 0.0).double().eval()
    z = operation(column(0.0, math.log(2.0)), column(0.0, 1.0))
    half = (2 / 3 - 1 / 2) / 2  # the distance of both from their mean
    expected = half / math.sqrt(half**2 + EPS)
    torch.testing.assert_close(z, column(-expected, expected))
    assert operation.norm.normalized_shape == (2, 1)
    assert operation.dropout.p == 0.1


def test_linear_glu_by_hand() -> None:
    operation = LinearGLU(1, 1, 0.5).double().eval()
    set_linear(operation.value, [[3.0]], [1.0])
    set_linear(operation.gate, [[-1.0]], [2.0])
    z = operation(column(2.0, 0.0), column(5.0, 2.0))
    torch.testing.assert_close(z, column(7.0 * sigmoid(-3.0), 1.0 * sigmoid(0.0)))


def test_concat_fc_by_hand() -> None:
    operation = ConcatFC(1, 1, 0.5).double().eval()
    set_linear(operation.project, [[2.0, -1.0]], [0.5])
    z = operation(column(3.0, 1.0), column(4.0, 9.0))
    torch.testing.assert_close(z, column(2.5, 0.0))  # 6 - 4 + 0.5, and max(0, 2 - 9 + 0.5)


def test_batch_norm_takes_batch_and_length_together() -> None:
    layer = LinearNorm(1, 1).double()
    layer.linear.weight.data.fill_(2.0)
    x = torch.tensor([[[1.0], [2.0]], [[3.0], [6.0]]], dtype=torch.float64)
    # 2x has the mean 6 and the variance 14; the bias goes with the mean.
    expected = (2 * x - 6) / math.sqrt(14 + EPS)
    torch.testing.assert_close(layer(x), expected)
    assert layer.norm.running_var is not None
    torch.testing.assert_close(layer.norm.running_var.item(), 0.9 + 0.1 * 14 * 4 / 3)


@pytest.mark.parametrize("count", [0, 1])
def test_a_cell_without_merge_adds_its_only_output(count: int) -> None:
    output = CellOutput(count, 1, 2, 0.5, merge=False).double()
    z = output(column(1.0, 1.0), [column(0.0, 4.0)] * count)
    expected = 2 / math.sqrt(4 + EPS) if count else 0.0
    torch.testing.assert_close(z, column(-expected, expected))


def test_a_cell_merges_its_outputs_by_hand() -> None:
    output = CellOutput(2, 1, 2, 0.5, merge=True).double().eval()
    assert output.merge is not None
    set_linear(output.merge, [[1.0, -1.0]], [0.0])
    z = output(column(1.0, 2.0), [column(3.0, 0.0), column(1.0, 5.0)])
    # ReLU(3 - 1) + 1 and ReLU(0 - 5) + 2 are 3 and 2.
    expected = 0.5 / math.sqrt(0.25 + EPS)
    torch.testing.assert_close(z, column(expected, -expected))


def test_head_by_hand() -> None:
    head = Head(2, 1, 2, 1).double()
    head.classifier.weight.data = torch.tensor([[1.0, 10.0, 100.0, 1000.0]], dtype=torch.float64)
    head.classifier.bias.data.fill_(0.25)
    # Flattened in the order length, Cell, channel: 1, 5, 3, 7, of mean 4 and variance 5.
    logits = head([column(1.0, 3.0), column(5.0, 7.0)])
    root = math.sqrt(5 + EPS)
    expected = torch.tensor([[10 * 1 / root + 1000 * 3 / root + 0.25]], dtype=torch.float64)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_drops_at_its_rate(p: float) -> None:
    torch.manual_seed(0)
    size = 400_000
    z = dropout(torch.ones(size), p, training=True)
    rate = round(p * 256) / 256
    deviation = math.sqrt(rate * (1 - rate) / size)
    assert abs((z == 0).double().mean().item() - rate) < 5 * deviation
    assert abs(z.double().mean().item() - 1.0) < 5 * deviation / (1 - rate)
    values = z.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / (1 - rate)]))
    assert abs(rate - p) <= 1 / 512


def test_dropout_draws_each_element_for_itself() -> None:
    torch.manual_seed(0)
    kept = (dropout(torch.ones(50_000, 8), 0.5, training=True) > 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 0.02
    assert (kept.mean(0) - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("p", [1e-6, 1.0 - 1e-6])
def test_dropout_never_rounds_to_all_or_nothing(p: float) -> None:
    torch.manual_seed(0)
    z = dropout(torch.ones(100_000), p, training=True)
    assert 0 < (z == 0).sum().item() < 100_000


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5), (2, 3, 11), (0, 4)])
def test_dropout_takes_any_shape(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64) + 10
    z = dropout(x, 0.5, training=True)
    assert z.shape == x.shape
    assert z.dtype == x.dtype
    assert torch.all((z == 0) | torch.isclose(z, 2 * x))


def test_dropout_follows_the_seed_and_only_the_seed() -> None:
    x = torch.randn(1001)
    torch.manual_seed(3)
    first, second = dropout(x, 0.2, training=True), dropout(x, 0.2, training=True)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(x, 0.2, training=True))
    assert torch.equal(second, dropout(x, 0.2, training=True))
    assert not torch.equal(first, second)


def test_dropout_passes_the_gradient_of_what_it_kept() -> None:
    x = torch.ones(1000, requires_grad=True)
    z = dropout(x, 0.3, training=True)
    z.sum().backward()
    assert torch.equal(x.grad, z.detach())


def test_dropout_does_nothing_when_it_should_not() -> None:
    x = torch.randn(10)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    module = Dropout(0.5)
    assert module.eval()(x) is x
    assert torch.equal(state, torch.get_rng_state())
    assert repr(module) == "Dropout(p=0.5)"
    assert not torch.equal(module.train()(x), x)


@pytest.mark.parametrize("axes", [(), (3,), (3, 4)])
def test_linear_is_that_of_torch_with_its_gradients(axes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, requires_grad=True) for shape in ((*axes, 5), (6, 5), (6,))]
    ours, theirs = linear(*leaves), F.linear(*leaves)
    torch.testing.assert_close(ours, theirs)
    some = torch.randn_like(theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, leaves, some), torch.autograd.grad(theirs, leaves, some)
    )


def test_operations_are_modules_with_the_weights_of_the_table() -> None:
    sizes = {
        name: sum(p.numel() for p in OPERATIONS[name].build(8, 4, 0.1).parameters())
        for name in PAPER[1:]
    }
    norm = 2 * 8
    assert sizes == {
        "sum": 0,
        "attention": 2 * 4 * 8,
        "linear_glu": 2 * (8 * 8 + 8 + norm),
        "concat_fc": 16 * 8 + 8 + norm,
    }
    assert all(isinstance(OPERATIONS[name].build(8, 4, 0.1), nn.Module) for name in PAPER[1:])
