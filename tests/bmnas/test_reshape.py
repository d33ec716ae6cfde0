from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bmnas.features.reshape import Pool, Projection


def windows(size: int, count: int) -> list[slice]:
    """Adaptive pooling: window i of ``count`` over ``size`` positions."""
    return [
        slice(math.floor(i * size / count), math.ceil((i + 1) * size / count)) for i in range(count)
    ]


def pooled_sequence(x: Tensor, length: int) -> Tensor:
    """(B, C, T) to (B, L, C), window after window."""
    return torch.stack([x[:, :, w].amax(-1) for w in windows(x.shape[-1], length)], dim=1)


@pytest.mark.parametrize("length", [1, 4, 6])
def test_a_vector_is_repeated(length: int) -> None:
    x = torch.randn(3, 5)
    pooled = Pool(length)(x)
    assert pooled.shape == (3, length, 5)
    for position in range(length):
        assert torch.equal(pooled[:, position], x)


@pytest.mark.parametrize("length", [1, 4, 6, 9])
@pytest.mark.parametrize("time", [1, 4, 7, 13])
def test_a_sequence_is_pooled_in_windows(length: int, time: int) -> None:
    x = torch.randn(2, 3, time)
    assert torch.equal(Pool(length)(x), pooled_sequence(x, length))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (1, 3), (9, 2)])
def test_a_map_is_pooled_in_a_square_grid_where_the_length_is_one(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width)
    expected = torch.stack(
        [x[:, :, r, c].amax((-2, -1)) for r in windows(height, 3) for c in windows(width, 3)], dim=1
    )
    assert torch.equal(Pool(9)(x), expected)


@pytest.mark.parametrize("length", [2, 6, 8])
def test_a_map_is_pooled_as_a_row_where_the_length_is_no_square(length: int) -> None:
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(Pool(length)(x), pooled_sequence(x.reshape(2, 3, 20), length))


@pytest.mark.parametrize("length", [1, 4, 5])
def test_a_clip_is_pooled_over_space_then_time(length: int) -> None:
    x = torch.randn(2, 3, 7, 4, 5)
    assert torch.equal(Pool(length)(x), pooled_sequence(x.amax((-2, -1)), length))


def test_a_feature_of_another_rank_is_refused() -> None:
    with pytest.raises(ValueError, match=r"received a feature of shape \(2, 3, 4, 4, 4, 4\)"):
        Pool(4)(torch.zeros(2, 3, 4, 4, 4, 4))


def test_pooling_has_no_weights() -> None:
    assert list(Pool(4).parameters()) == []


def test_a_projection_is_linear_norm_relu() -> None:
    torch.manual_seed(0)
    projection = Projection(5, 3, 0.0).double()
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    linear, norm = projection.project.linear, projection.project.norm
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    rows = x.reshape(8, 5) @ linear.weight.T + linear.bias
    normal = (rows - rows.mean(0)) / (rows.var(0, correction=0) + norm.eps).sqrt()
    expected = (normal * norm.weight + norm.bias).clamp_min(0).view(4, 2, 3)
    torch.testing.assert_close(projection(x), expected)


def test_a_projection_drops_in_training_only() -> None:
    torch.manual_seed(0)
    projection = Projection(5, 16, 0.5)
    x = torch.randn(32, 4, 5)
    assert (projection(x) == 0).double().mean() > 0.65
    projection.eval()
    assert torch.equal(projection(x), projection(x))
