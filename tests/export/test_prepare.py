from __future__ import annotations

import copy

import pytest
import torch
from bmnas_export.prepare import (
    ExportLogMel,
    ExportNetwork,
    ExportPool,
    fold_norm,
    prepare,
    reference_network,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import roughen, tiny_network, tiny_task
from torch import Tensor, nn

from bmnas.backbones.waveform import LogMel
from bmnas.features.layers import LinearNorm
from bmnas.features.reshape import Pool
from bmnas.training.heads import head_for

SHAPES = st.one_of(
    st.just(()),
    st.tuples(st.integers(1, 25)),
    st.tuples(st.integers(1, 11), st.integers(1, 11)),
    st.tuples(st.integers(1, 11), st.integers(1, 5), st.integers(1, 5)),
)


@settings(deadline=None, max_examples=200)
@given(rest=SHAPES, length=st.integers(1, 17), seed=st.integers(0, 2**32), ties=st.booleans())
def test_pooling_without_adaptive_operators_is_the_same(
    rest: tuple[int, ...], length: int, seed: int, ties: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    feature = torch.randn(2, 3, *rest, generator=draw)
    if ties:
        feature = feature.round()
    expected = Pool(length)(feature)
    received = ExportPool(length)(feature)
    assert expected.shape == (2, length, 3)
    assert torch.equal(received, expected)


@pytest.mark.parametrize(("size", "length"), [(12, 4), (11, 4), (3, 8), (8, 8), (1, 5)])
def test_pooling_one_axis_is_torch_s(size: int, length: int) -> None:
    x = torch.randn(2, 3, size)
    expected = nn.functional.adaptive_max_pool1d(x, length)
    assert torch.equal(ExportPool(length).pool_1d(x), expected)


@pytest.mark.parametrize("sizes", [(9, 9), (9, 7), (2, 10), (6, 4), (1, 1)])
def test_pooling_two_axes_is_torch_s(sizes: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *sizes)
    expected = nn.functional.adaptive_max_pool2d(x, (3, 3))
    assert torch.equal(ExportPool(9).pool_2d(x, 3), expected)


def test_a_feature_of_five_axes_is_still_refused() -> None:
    with pytest.raises(ValueError, match=r"received a feature of shape \(1, 2, 3, 4, 5, 6\)"):
        ExportPool(4)(torch.zeros(1, 2, 3, 4, 5, 6))


@pytest.mark.parametrize("rate", [2000, 8000, 16000, 44100])
@pytest.mark.parametrize("samples", [1, 63, 64, 1000, 8001])
@pytest.mark.parametrize("whole", [True, False])
def test_spectrograms_of_half_the_products_are_the_same(
    rate: int, samples: int, whole: bool
) -> None:
    # As recordings are: a thousand times as loud at their end as at their start.
    torch.manual_seed(0)
    x = torch.randn(3, samples) * torch.logspace(0, 3, samples)
    x = x.to(torch.int16) if whole else x
    log_mel = LogMel(samples, rate)
    log_mel.fit(x.numpy())
    received = ExportLogMel(log_mel)(x)
    expected = log_mel.double()(x)
    torch.testing.assert_close(received, expected.float(), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_folding_is_exact_to_rounding() -> None:
    torch.manual_seed(0)
    layer = LinearNorm(24, 16)
    roughen(layer)
    assert layer.norm.running_mean is not None
    assert layer.norm.running_var is not None
    layer.norm.running_mean.mul_(20)
    layer.norm.running_var.copy_(torch.logspace(-4, 4, 16))
    layer.eval()
    folded = fold_norm(layer)
    assert isinstance(folded, nn.Linear)
    assert folded.weight.dtype == torch.float32
    precise = copy.deepcopy(layer).double()
    x = torch.randn(5, 3, 24, dtype=torch.float64)
    expected = precise(x)
    # In float64 nothing but the rounding of the folded weights themselves is left.
    error = (folded.double()(x) - expected).abs().amax((0, 1)) / expected.abs().amax((0, 1))
    assert error.max() < 2e-7
    assert not folded.weight.requires_grad


def test_a_prepared_network_computes_the_same_without_norms_to_fold() -> None:
    task = tiny_task(("image", "sequence"))
    network = reference_network(tiny_network(task).network)
    before = copy.deepcopy(network.state_dict())
    inputs = (
        torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8),
        torch.randn(3, 11, 3),
    )
    expected = network(*inputs)
    prepared = prepare(network, head_for("multiclass"))
    logits, probabilities = prepared(*inputs)
    scale = expected.abs().max()
    torch.testing.assert_close(logits / scale, expected / scale, atol=2e-6, rtol=0)
    torch.testing.assert_close(probabilities, logits.softmax(-1))
    assert not any(isinstance(module, LinearNorm) for module in prepared.modules())
    assert not any(type(module) is Pool for module in prepared.modules())
    # The given network is the one to compare with: it must not change.
    assert any(isinstance(module, LinearNorm) for module in network.modules())
    assert type(network.pool) is Pool
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_probabilities_of_labels_are_sigmoids() -> None:
    task = tiny_task(("vector", "vector"), kind="multilabel")
    network = reference_network(tiny_network(task).network)
    logits, probabilities = ExportNetwork(network, head_for("multilabel"))(
        torch.ones(2, 5), torch.ones(2, 5)
    )
    assert torch.equal(probabilities, logits.sigmoid())


def test_the_reference_is_a_plain_copy_in_evaluation_mode() -> None:
    trained = tiny_network(tiny_task(("vector", "vector")))
    network = trained.network.train()
    inputs = (torch.randn(4, 5), torch.randn(4, 5))
    expected = copy.deepcopy(network).eval()(*inputs)
    inner = copy.deepcopy(network)
    # One wrapper inside, one outside, as torch.compile leaves them; it compiles only when called.
    inner.fusion = torch.compile(inner.fusion, backend="eager")  # type: ignore[assignment]
    wrapped: nn.Module = torch.compile(inner, backend="eager")  # type: ignore[assignment]
    for source in (network, wrapped):
        plain = reference_network(source)
        assert type(plain) is type(network)
        assert type(plain.fusion) is type(network.fusion)
        assert not any(hasattr(module, "_orig_mod") for module in plain.modules())
        assert not any(module.training for module in plain.modules())
        assert not any(parameter.requires_grad for parameter in plain.parameters())
        received: Tensor = plain(*inputs)
        assert torch.equal(received, expected.detach())
        assert plain.fusion is not network.fusion
    assert network.training
    assert all(parameter.requires_grad for parameter in network.fusion.parameters())
