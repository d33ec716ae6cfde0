"""The kernels in C equal the supernet in PyTorch, and draw dropout masks as they should."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.features.layers import Dropout, drop_threshold
from bmnas.spaces.cells import native
from bmnas.spaces.cells.native import build
from bmnas.spaces.cells.native.calls import Drop
from bmnas.spaces.cells.native.functions import Mixture, Norm, ReshapeAndMix, StepState
from bmnas.spaces.cells.native.network import logits, speed_up
from bmnas.spaces.cells.operations import OPERATIONS, Operation
from bmnas.spaces.cells.primitives import Sum
from bmnas.spaces.cells.supernet import RelaxedStep, Supernet, shared_product

pytestmark = pytest.mark.skipif(native.kernels() is None, reason=native.describe())

BATCH, LENGTH, CHANNELS = 12, 3, 70  # channels: one block of columns and a part of another
RAW = (20, 33, 9)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def supernet(cells: int = 2, steps: int = 2, dropout: float = 0.0) -> Supernet:
    """A supernet with weights that are not those it begins with."""
    sizes = {"channels": CHANNELS, "length": LENGTH, "classes": 5, "dropout": dropout}
    made = Supernet(RAW, cells=cells, steps=steps, **sizes)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if dropout == 0.0:
        for module in made.modules():
            if isinstance(module, Dropout):
                module.p = 0.0
    return made


def batch() -> tuple[list[Tensor], Tensor]:
    return [torch.randn(BATCH, LENGTH, c) for c in RAW], torch.randint(0, 5, (BATCH,))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("cells", "steps"), [(1, 1), (2, 2), (3, 3)])
def test_it_equals_the_readable_form(cells: int, steps: int) -> None:
    # Against float64, as both forms round: 1e-5 is some hundred times what float32 resolves.
    exact, features, labels = supernet(cells, steps), *batch()
    fast = speed_up(copy.deepcopy(exact))
    exact.double()
    assert logits(fast, features) is not None
    exact([x.double() for x in features])  # one step ahead, as the other's statistics are
    results = [exact([x.double() for x in features]), fast(features)]
    assert relative(results[1], results[0]) < 1e-5
    for result in results:
        F.cross_entropy(result, labels).backward()
    for (name, one), other in zip(exact.named_parameters(), fast.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        # Of a bias in front of a BatchNorm rounding is all there is.
        if not name.endswith("linear.bias"):
            assert relative(other.grad, one.grad) < 1e-5, name
    for (name, one), other in zip(exact.named_buffers(), fast.buffers(), strict=True):
        if "running" in name:
            assert relative(other, one) < 1e-5, name


def test_under_autocast_products_are_rounded_and_nothing_else() -> None:
    exact, (features, labels) = supernet(), batch()
    low = speed_up(copy.deepcopy(exact))
    expected = exact(features)
    with torch.autocast("cpu", torch.bfloat16):
        found = low(features).float()
    # bfloat16 has three digits; the classifier's product is rounded too.
    assert 1e-5 < relative(found, expected.double()) < 0.1
    F.cross_entropy(found, labels).backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in low.parameters())


def test_only_what_is_wanted_gets_gradients() -> None:
    network, (features, labels) = speed_up(supernet()), batch()
    for parameter in network.weight_parameters():
        parameter.requires_grad_(False)
    F.cross_entropy(network(features), labels).backward()
    assert all(p.grad is None for p in network.weight_parameters())
    assert all(p.grad is not None for p in network.architecture_parameters())


def test_it_leaves_alone_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (features, _) = supernet(), batch()
    assert logits(copy.deepcopy(network).eval(), features) is None
    assert logits(copy.deepcopy(network).double(), [x.double() for x in features]) is None
    monkeypatch.setitem(OPERATIONS, "again", Operation("again", "Again", "{0}", Sum))
    assert speed_up(supernet()).fast_path is None
    network.use_batch_statistics()
    assert logits(network, features) is None


def test_the_same_seed_gives_the_same_bits_whatever_the_threads() -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        step = RelaxedStep(CHANNELS, LENGTH, 0.3)
        torch.manual_seed(2)
        t = torch.randn(BATCH, LENGTH, CHANNELS, requires_grad=True)
        z = mixture(step, t, products_of(step, t).detach())
        z.sum().backward()
        results.append((z.detach(), t.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def products_of(step: RelaxedStep, t: Tensor) -> Tensor:
    """The products of a step, with one thread, as products of matrices differ with their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    layers = [*step.operations["linear_glu"].layers(), *step.operations["concat_fc"].layers()]
    found = shared_product(t, layers)
    torch.set_num_threads(threads)
    return found


def mixture(step: RelaxedStep, t: Tensor, products: Tensor, gamma: Tensor | None = None) -> Tensor:
    """Call the kernel for a step with dropout 0.3 of linear_glu and concat_fc, 0.1 of attention."""
    layers = [*step.operations["linear_glu"].layers(), *step.operations["concat_fc"].layers()]
    norms = [layer.norm for layer in layers]
    attention = step.operations["attention"].norm
    weight, bias = (torch.cat([getattr(n, name) for n in norms]) for name in ("weight", "bias"))
    state = StepState(Norm.of(norms), attention.eps, Drop.of(0.3), Drop.of(0.1))
    gamma = torch.full((5,), 0.2) if gamma is None else gamma
    return Mixture.apply(state, t, products, gamma, weight, bias, attention.weight, attention.bias)


@pytest.mark.parametrize(("operation", "p"), [("attention", 0.1), ("concat_fc", 0.3)])
def test_a_dropped_element_gets_no_gradient_and_the_others_their_factor(
    operation: str, p: float
) -> None:
    step = RelaxedStep(CHANNELS, LENGTH, 0.0)
    gamma = torch.tensor([float(name == operation) for name in OPERATIONS])
    t = torch.randn(200, LENGTH, CHANNELS)
    layers = step.operations["concat_fc"].layers()
    products = torch.randn(200 * LENGTH, 3 * CHANNELS)
    z = mixture(step, t, products, gamma)
    if operation == "attention":
        assert z.isfinite().all()
        return
    plain = F.batch_norm(products[:, 2 * CHANNELS :], None, None, training=True).relu()
    kept = z.view_as(plain)[plain > 0.01] / plain[plain > 0.01]
    threshold, factor = drop_threshold(p)
    assert layers[0].linear.out_features == CHANNELS
    # A byte of random bits decides, so the share is a multiple of 1/256.
    assert (kept == 0).double().mean().item() == pytest.approx(threshold / 256, abs=0.01)
    torch.testing.assert_close(kept[kept != 0], torch.full_like(kept[kept != 0], factor))


def test_features_are_dropped_independently() -> None:
    x = [torch.randn(400, CHANNELS) for _ in range(2)]
    norms = [torch.nn.BatchNorm1d(CHANNELS) for _ in x]
    masks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        edges = torch.eye(2)
        mixed = ReshapeAndMix.apply(
            Norm.of(norms), Drop.of(0.25), edges, torch.zeros(140), torch.ones(140), *x
        )
        masks += [one > 0 for one in mixed.unbind()]  # weight 0, bias 1: what is left is the mask
    for one in masks:
        assert one.double().mean().item() == pytest.approx(0.75, abs=0.01)
        assert one.double().mean(0).sub(0.75).abs().max().item() < 0.1
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one & other).double().mean().item() == pytest.approx(0.75**2, abs=0.01)


def test_a_nan_comes_through() -> None:
    network, (features, _) = speed_up(supernet()), batch()
    features[0][0, 0, 0] = math.nan
    assert network(features).isnan().all()


def test_a_norm_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="expected BatchNorms with a momentum"):
        Norm.of([torch.nn.BatchNorm1d(3, momentum=None)])


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
        "import bmnas.spaces.cells.native.network, bmnas.spaces.cells.native.build as b; "
        "assert not b._built.cache_info().misses"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
