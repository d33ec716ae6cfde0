from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck

from bmnas.features.layers import keep_mask
from bmnas.spaces.cells.fused import mix_features, mixture, step_products
from bmnas.spaces.cells.fused_norm import Norm, norm_relu_dropout

BATCH, LENGTH, CHANNELS = 3, 2, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def batch_norm_of(channels: int, *, training: bool) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    return norm.train(training)


class Host(nn.Module):
    """A function of tensors as the forward pass of a module, so that parameters can be swapped."""

    def __init__(self, function: Callable[..., Tensor], inner: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, inner

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def check_gradients(function: Callable[..., Tensor], module: nn.Module, *inputs: Tensor) -> None:
    """Check the gradients of ``inputs`` and of the parameters of ``module``."""
    host = Host(function, module)
    names, values = zip(*host.named_parameters(), strict=True)

    def call(*tensors: Tensor) -> Tensor:
        torch.manual_seed(1)  # every call draws the same masks
        parameters = dict(zip(names, tensors[len(inputs) :], strict=True))
        return torch.func.functional_call(host, parameters, tensors[: len(inputs)])

    copies = [v.detach().clone().requires_grad_() for v in values]
    assert gradcheck(call, (*inputs, *copies))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_norm_relu_dropout_has_the_right_gradients(training: bool, p: float) -> None:
    norm = batch_norm_of(5, training=training)
    check_gradients(lambda x: norm_relu_dropout(x, norm, p), norm, randn(7, 5))


def test_norm_relu_dropout_is_what_its_name_says() -> None:
    norm, twin = batch_norm_of(5, training=True), batch_norm_of(5, training=True)
    twin.load_state_dict(norm.state_dict())
    x = randn(7, 5)
    torch.manual_seed(1)
    z = norm_relu_dropout(x, norm, 0.4)
    torch.manual_seed(1)
    mask, factor = keep_mask(x, 0.4, training=True)
    assert mask is not None
    torch.testing.assert_close(z, F.relu(twin(x)) * mask * factor)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, twin.running_mean)
    torch.testing.assert_close(norm.running_var, twin.running_var)


def test_mix_features_is_a_weighted_sum_with_the_right_gradients() -> None:
    weights, h = randn(2, 3), randn(5, 3, 4)
    torch.testing.assert_close(mix_features(weights, h), torch.einsum("nf,rfc->nrc", weights, h))
    assert gradcheck(mix_features, (weights, h))
    # Weights as they come from a softmax over pairs: not dense.
    pairs = randn(2, 3, 2)
    assert gradcheck(lambda pairs, h: mix_features(pairs[..., 1], h), (pairs, h))


def test_step_products_are_those_of_two_layers_with_the_right_gradients() -> None:
    layers = nn.ModuleDict({"glu": nn.Linear(4, 8), "concat": nn.Linear(8, 4)}).double()
    t = randn(6, 4)
    expected = torch.cat((layers["glu"](t), layers["concat"](torch.cat((t, t), -1))), -1)
    torch.testing.assert_close(step_products(t, layers["glu"], layers["concat"]), expected)
    check_gradients(lambda x: step_products(x, layers["glu"], layers["concat"]), layers, t)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_the_mixture_has_the_right_gradients(training: bool, p: float) -> None:
    norms = nn.ModuleDict(
        {
            "batch": batch_norm_of(3 * CHANNELS, training=training),
            "layer": nn.LayerNorm([LENGTH, CHANNELS]).double(),
        }
    )
    for parameter in norms["layer"].parameters():
        nn.init.normal_(parameter)

    def call(t: Tensor, products: Tensor, logits: Tensor) -> Tensor:
        return mixture(t, products, logits.softmax(-1), norms["batch"], norms["layer"], p, p)

    t, products = randn(BATCH, LENGTH, CHANNELS), randn(BATCH * LENGTH, 3 * CHANNELS)
    check_gradients(call, norms, t, products, randn(5))


def test_the_mixture_with_dropout_is_the_sum_of_the_operations() -> None:
    norm = batch_norm_of(3 * CHANNELS, training=True)
    attention_norm = nn.LayerNorm([LENGTH, CHANNELS]).double()
    t, products = randn(BATCH, LENGTH, CHANNELS), randn(BATCH * LENGTH, 3 * CHANNELS)
    gamma = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64)
    torch.manual_seed(1)
    z = mixture(t, products, gamma, norm, attention_norm, 0.5, 0.25)

    torch.manual_seed(1)
    masks = [keep_mask(t, p, training=True) for p in (0.5, 0.5, 0.25)]
    glu, concat, attention = (mask * factor for mask, factor in masks if mask is not None)
    value, gate, joint = norm(products).view(BATCH, LENGTH, -1).chunk(3, -1)
    weights = (t @ t.transpose(1, 2) / math.sqrt(CHANNELS)).softmax(-1)
    expected = (
        gamma[1] * 2 * t
        + gamma[2] * attention_norm(weights @ t * attention)
        + gamma[3] * value * gate.sigmoid() * glu
        + gamma[4] * joint.relu() * concat
    )
    torch.testing.assert_close(z, expected)


def test_a_norm_without_running_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a BatchNorm with running statistics"):
        Norm.of(nn.BatchNorm1d(3, track_running_stats=False))
