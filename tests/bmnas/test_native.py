from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from bmnas.features.layers import drop_threshold
from bmnas.spaces.cells import native
from bmnas.spaces.cells.native import build
from bmnas.spaces.cells.native.calls import Drop, NormStruct
from bmnas.spaces.cells.native.masks import kept
from bmnas.spaces.cells.native.passes import Gradients, Output, Reshape, Step
from bmnas.spaces.cells.primitives import CellOutput
from bmnas.spaces.cells.supernet import RelaxedStep

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


def mask(seed: int, rows: int, p: float, byte: int = 0) -> Tensor:
    """The mask of ``rows`` rows, its factor included, computed without the kernels."""
    threshold, factor = drop_threshold(p)
    return kept(seed, torch.arange(rows), CHANNELS, byte, threshold).double() * factor


#: What a pass gives for inputs and a gradient: its result, its inputs' gradients, its parameters'.
Found = tuple[Tensor, list[Tensor], Gradients]


def compare(
    actual: Callable[..., Found],
    expected: Callable[..., Tensor],
    module: nn.Module,
    *inputs: Tensor,
) -> None:
    """Both must give the same, forward and in every gradient; ``expected`` in float64."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    module.double()
    doubles = [x.double().requires_grad_() for x in inputs]
    torch.manual_seed(1)
    z = expected(*doubles)
    g = torch.randn_like(z)
    z.backward(g)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    wanted = {name: p.grad for name, p in module.named_parameters()}

    module.float()
    module.load_state_dict(state)
    torch.manual_seed(1)
    found, of_inputs, of_parameters = actual(g.float(), *inputs)
    close(found, z)
    for x, gradient in zip(doubles, of_inputs, strict=True):
        close(gradient, x.grad)
    for name, parameter in module.named_parameters():
        if id(parameter) in of_parameters:
            close(of_parameters[id(parameter)], wanted[name])
        else:  # a bias in front of a BatchNorm
            assert name.endswith("bias")
            assert wanted[name].abs().max() < 1e-12
    for name, value in module.state_dict().items():
        if "running" in name:
            close(value, after[name])


def close(actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None
    assert expected is not None
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0.0, atol=1e-5 * scale)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_reshape_and_edges_equal_their_formula(p: float) -> None:
    norm = batch_norm(2 * CHANNELS)
    features = [torch.randn(BATCH, LENGTH, raw) for raw in (4, 9)]
    weights = [torch.randn(4, CHANNELS), torch.randn(9, CHANNELS)]
    leaves = [w.double().requires_grad_() for w in weights]

    def actual(g: Tensor, edges: Tensor) -> Found:
        biases = [torch.ones(CHANNELS), torch.zeros(CHANNELS)]
        reshape = Reshape(weights, biases, norm, p)
        z = reshape.forward(features, edges)
        gradients: Gradients = {}
        of_edges = reshape.backward(g, gradients)
        for weight, leaf in zip(weights, leaves, strict=True):
            close(gradients.pop(id(weight)), leaf.grad)
        return z, [of_edges], gradients

    def expected(edges: Tensor) -> Tensor:
        seed = Drop.of(p).seed
        a, b = (x.flatten(0, 1).double() for x in features)
        h = norm(torch.cat((a @ leaves[0] + 1, b @ leaves[1]), dim=-1)).relu()
        kept = torch.stack(h.chunk(2, dim=-1)) * mask(seed, 2 * ROWS, p).view(2, ROWS, CHANNELS)
        return torch.einsum("nf,frc->nrc", edges, kept)

    compare(actual, expected, norm, torch.randn(3, 2))


def relaxed_step(p: float) -> RelaxedStep:
    step = RelaxedStep(CHANNELS, LENGTH, p)
    step.attention_dropout.p = p / 2
    for norm in (step.norm, step.attention_norm):
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    return step


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_relaxed_step_equals_its_formula(p: float) -> None:
    module = relaxed_step(p)

    def actual(g: Tensor, t: Tensor, gamma: Tensor) -> Found:
        step = Step(module)
        z = step.forward(t, gamma)
        gradients: Gradients = {}
        return z, list(step.backward(g, gradients)), gradients

    def expected(t: Tensor, gamma: Tensor) -> Tensor:
        seed = Drop.of(p).seed ^ Drop.of(p / 2).seed
        masks = [mask(seed, ROWS, q, byte).view_as(t) for byte, q in enumerate((p, p, p / 2))]
        products = torch.cat((module.glu(t), module.concat(torch.cat((t, t), -1))), -1)
        normalised = module.norm(products.flatten(0, 1)).view(BATCH, LENGTH, -1)
        value, gate, joint = normalised.chunk(3, -1)
        weights = (t @ t.transpose(1, 2) / math.sqrt(CHANNELS)).softmax(-1)
        return (
            gamma[1] * 2 * t
            + gamma[2] * module.attention_norm(weights @ t * masks[2])
            + gamma[3] * value * gate.sigmoid() * masks[0]
            + gamma[4] * joint.relu() * masks[1]
        )

    gamma = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3])
    compare(actual, expected, module, torch.randn(BATCH, LENGTH, CHANNELS), gamma)


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_the_output_of_a_cell_equals_its_formula(p: float) -> None:
    module = CellOutput(2, CHANNELS, LENGTH, p, merge=True)
    assert module.merge is not None
    linear, norm = module.merge.linear, module.merge.norm
    for parameter in (*norm.parameters(), *module.norm.parameters()):
        nn.init.normal_(parameter)

    def actual(g: Tensor, s: Tensor, *steps: Tensor) -> Found:
        output = Output(module)
        z = output.forward(s, steps)
        gradients: Gradients = {}
        ds, d_steps = output.backward(g, gradients)
        return z, [ds, *d_steps], gradients

    def expected(s: Tensor, *steps: Tensor) -> Tensor:
        seed = Drop.of(p).seed
        joined = norm(linear(torch.cat(steps, -1)).flatten(0, 1))
        return module.norm(s + (joined.relu() * mask(seed, ROWS, p)).view_as(s))

    compare(actual, expected, module, *(torch.randn(BATCH, LENGTH, CHANNELS) for _ in range(3)))


def test_the_number_of_threads_changes_no_bit() -> None:
    module, t = relaxed_step(0.3), torch.randn(BATCH, LENGTH, CHANNELS)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        step, gradients = Step(module), Gradients()
        z = step.forward(t, torch.full((5,), 0.2))
        step.backward(z, gradients)
        results.append((z, *gradients.values()))
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
    broken = torch.randn(BATCH, LENGTH, CHANNELS)
    broken[0, 0, 0] = math.nan
    gamma = torch.full((5,), 0.2)
    assert Step(relaxed_step(0.0)).forward(broken, gamma).isnan().all()
    output = Output(CellOutput(1, CHANNELS, LENGTH, 0.0, merge=True))
    assert output.forward(torch.zeros_like(broken), [broken]).isnan().all()


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
    code = (
        "import bmnas.spaces.cells.supernet, bmnas.spaces.cells.native.build as b; "
        "assert not b._built.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
