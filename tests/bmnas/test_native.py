from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bmnas import native
from bmnas.native import build
from bmnas.native.calls import NormStruct, draw_seed
from bmnas.primitives import drop_threshold

pytestmark = pytest.mark.skipif(native.kernels() is None, reason=native.describe())

BATCH, LENGTH, CHANNELS = 5, 3, 70  # channels: one block of columns and a part of another
ROWS = BATCH * LENGTH


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def batch_norm(channels: int) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(channels)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def scramble(x: np.ndarray) -> np.ndarray:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x85EBCA6B)
    x = x ^ (x >> np.uint32(13))
    x = x * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def mask(seed: int, rows: int, p: float, byte: int = 0) -> Tensor:
    """The mask of ``rows`` rows, its factor included, computed once more without the kernels."""
    mixed = (np.uint64(seed) ^ np.arange(rows, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    row = scramble((mixed >> np.uint64(32)).astype(np.uint32)) ^ np.uint32(seed & 0xFFFFFFFF)
    column = np.arange(CHANNELS, dtype=np.uint32) * np.uint32(0x9E3779B9)
    bits = scramble(row[:, None] + column) >> np.uint32(8 * byte) & np.uint32(255)
    threshold, factor = drop_threshold(p)
    return torch.from_numpy((bits >= threshold) * factor)


def compare(
    actual: Callable[..., Tensor],
    expected: Callable[..., Tensor],
    module: nn.Module,
    *inputs: Tensor,
) -> None:
    """Both must give the same, forward and in every gradient; ``expected`` in float64."""
    twin = nn.ModuleDict({"m": module}).double().requires_grad_()
    state = {name: value.clone() for name, value in twin.state_dict().items()}
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    z = expected(*doubles)
    g = torch.randn_like(z)
    z.backward(g)
    wanted = [x.grad for x in doubles], [p.grad for p in twin.parameters()]
    after = {name: value.clone() for name, value in twin.state_dict().items()}

    twin.load_state_dict(state)
    twin.float()
    twin.zero_grad()
    singles = [x.detach().clone().requires_grad_() for x in inputs]
    z_actual = actual(*singles)
    z_actual.backward(g.float())
    close(z_actual, z)
    for x, gradient in zip(singles, wanted[0], strict=True):
        close(x.grad, gradient)
    for parameter, gradient in zip(twin.parameters(), wanted[1], strict=True):
        close(parameter.grad, gradient)
    for name, value in twin.state_dict().items():
        if "running" in name:
            close(value, after[name])


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None
    assert expected is not None
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0.0, atol=1e-5 * scale)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_reshape_and_mix_equals_its_formula(p: float) -> None:
    norm = batch_norm(2 * CHANNELS)
    features = [torch.randn(BATCH, LENGTH, raw) for raw in (4, 9)]

    def actual(first: Tensor, second: Tensor, edges: Tensor) -> Tensor:
        torch.manual_seed(1)
        biases = [torch.ones(CHANNELS), torch.zeros(CHANNELS)]
        return native.reshape_and_mix(features, [first, second], biases, norm, p, edges)

    def expected(first: Tensor, second: Tensor, edges: Tensor) -> Tensor:
        torch.manual_seed(1)
        seed = draw_seed(drop_threshold(p)[0])
        a, b = (x.flatten(0, 1).double() for x in features)
        h = norm(torch.cat((a @ first + 1, b @ second), dim=-1)).relu()
        kept = torch.stack(h.chunk(2, dim=-1)) * mask(seed, 2 * ROWS, p).view(2, ROWS, CHANNELS)
        return torch.einsum("nf,frc->nrc", edges, kept)

    weights = torch.randn(4, CHANNELS), torch.randn(9, CHANNELS)
    compare(actual, expected, norm, *weights, torch.randn(3, 2))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_relaxed_step_equals_its_formula(p: float) -> None:
    layers = nn.ModuleDict(
        {
            "glu": nn.Linear(CHANNELS, 2 * CHANNELS),
            "concat": nn.Linear(2 * CHANNELS, CHANNELS),
            "norm": batch_norm(3 * CHANNELS),
            "layer": nn.LayerNorm([LENGTH, CHANNELS]),
        }
    )
    for parameter in layers["layer"].parameters():
        nn.init.normal_(parameter)
    glu, concat, norm, layer = layers.values()

    def actual(t: Tensor, logits: Tensor) -> Tensor:
        torch.manual_seed(1)
        gamma = logits.softmax(0)
        return native.relaxed_step(t, gamma, glu, concat, norm, layer, p, p / 2)

    def expected(t: Tensor, logits: Tensor) -> Tensor:
        torch.manual_seed(1)
        gamma = logits.softmax(0)
        seed = draw_seed(drop_threshold(p)[0])
        masks = [mask(seed, ROWS, q, byte).view_as(t) for byte, q in enumerate((p, p, p / 2))]
        products = torch.cat((glu(t), concat(torch.cat((t, t), -1))), -1)
        value, gate, joint = norm(products.flatten(0, 1)).view(BATCH, LENGTH, -1).chunk(3, -1)
        weights = (t @ t.transpose(1, 2) / math.sqrt(CHANNELS)).softmax(-1)
        return (
            gamma[1] * 2 * t
            + gamma[2] * layer(weights @ t * masks[2])
            + gamma[3] * value * gate.sigmoid() * masks[0]
            + gamma[4] * joint.relu() * masks[1]
        )

    compare(actual, expected, layers, torch.randn(BATCH, LENGTH, CHANNELS), torch.randn(5))


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_the_output_of_a_cell_equals_its_formula(p: float) -> None:
    layers = nn.ModuleDict(
        {
            "merge": nn.Linear(2 * CHANNELS, CHANNELS),
            "norm": batch_norm(CHANNELS),
            "layer": nn.LayerNorm([LENGTH, CHANNELS]),
        }
    )
    for parameter in layers["layer"].parameters():
        nn.init.normal_(parameter)
    merge, norm, layer = layers.values()

    def actual(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(1)
        return native.cell_output(s, [a, b], merge, norm, layer, p)

    def expected(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch.manual_seed(1)
        seed = draw_seed(drop_threshold(p)[0])
        joined = norm(merge(torch.cat((a, b), -1)).flatten(0, 1))
        return layer(s + (joined.relu() * mask(seed, ROWS, p)).view_as(s))

    compare(actual, expected, layers, *(torch.randn(BATCH, LENGTH, CHANNELS) for _ in range(3)))


def test_the_number_of_threads_changes_no_bit() -> None:
    glu, concat = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)
    norm, layer = batch_norm(3 * CHANNELS), nn.LayerNorm([LENGTH, CHANNELS])
    t = torch.randn(BATCH, LENGTH, CHANNELS, requires_grad=True)
    results = []
    for threads in (1, 2):
        torch.manual_seed(1)
        t.grad = norm.weight.grad = None
        torch.set_num_threads(threads)
        gamma = torch.full((5,), 0.2)
        z = native.relaxed_step(t, gamma, glu, concat, norm, layer, 0.3, 0.1)
        z.square().sum().backward()
        assert t.grad is not None
        assert norm.weight.grad is not None
        results.append((z.detach(), t.grad.clone(), norm.weight.grad.clone()))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_a_mask_keeps_the_right_share_and_differs_between_bytes_and_seeds() -> None:
    masks = [mask(seed, 4000, 0.25, byte) > 0 for seed in (1, 2) for byte in (0, 1, 2)]
    for one in masks:
        assert one.double().mean().item() == pytest.approx(0.75, abs=0.005)
        assert one.double().mean(0).sub(0.75).abs().max().item() < 0.05
    for i, one in enumerate(masks):
        for other in masks[:i]:
            both = (one & other).double().mean().item()
            assert both == pytest.approx(0.75**2, abs=0.005)


def test_a_nan_comes_through() -> None:
    merge, layer = nn.Linear(CHANNELS, CHANNELS), nn.LayerNorm([LENGTH, CHANNELS])
    s = torch.randn(BATCH, LENGTH, CHANNELS)
    broken = s.clone()
    broken[0, 0, 0] = math.nan
    z = native.cell_output(s, [broken], merge, batch_norm(CHANNELS), layer, 0.0)
    assert z.isnan().all()
    glu, concat = nn.Linear(CHANNELS, 2 * CHANNELS), nn.Linear(2 * CHANNELS, CHANNELS)
    gamma = torch.full((5,), 0.2)
    norm = batch_norm(3 * CHANNELS)
    assert native.relaxed_step(broken, gamma, glu, concat, norm, layer, 0.0, 0.0).isnan().all()


def test_a_norm_without_running_statistics_is_refused() -> None:
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="expected a BatchNorm with running statistics"):
        NormStruct.of(norm, torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("BMNAS_NATIVE", "0", "torch (BMNAS_NATIVE=0)"),
        ("CC", "no-such-compiler", "torch (no C compiler found)"),
        ("CC", "false", "torch (the C compiler failed: no message)"),
    ],
)
def test_without_a_compiler_pytorch_does_the_work_and_says_so(
    name: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    library, description = build._built.__wrapped__()
    assert library is None
    assert description == reason


def test_the_kernels_are_built_once_into_the_users_cache(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build._library("cc")
    stamp = first.stat().st_mtime_ns
    assert build._library("cc") == first
    assert first.stat().st_mtime_ns == stamp
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_importing_the_package_builds_nothing() -> None:
    code = "import bmnas.supernet, bmnas.native.build as b; assert not b._built.cache_info().misses"
    subprocess.run([sys.executable, "-c", code], check=True)
