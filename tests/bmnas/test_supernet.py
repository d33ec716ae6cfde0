from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from plain_supernet import PlainSupernet, copy_parameters, parameter_pairs
from torch import Tensor, nn

from bmnas.spaces.cells.derive import derive_genotype
from bmnas.spaces.cells.primitives import Attention
from bmnas.spaces.cells.supernet import Supernet


@dataclass
class Twins:
    """The plain form and the relaxed form with the same weights, and a batch for both."""

    plain: PlainSupernet
    relaxed: Supernet
    features: list[Tensor]
    labels: Tensor

    def logits(self) -> tuple[Tensor, Tensor]:
        return self.plain([x.transpose(1, 2) for x in self.features]), self.relaxed(self.features)


def supernet(channels_raw: list[int], cells: int = 2, steps: int = 2, **options: float) -> Supernet:
    sizes = {"channels": 8, "length": 4, "classes": 5, "dropout": 0.0, **options}
    return Supernet(channels_raw, cells=cells, steps=steps, **sizes)  # type: ignore[arg-type]


def twins(cells: int, steps: int, dtype: torch.dtype) -> Twins:
    """Random shapes and weights, no dropout; every size may differ from every other."""
    torch.manual_seed(10 * cells + steps)
    draw = random.Random(10 * cells + steps)
    channels_raw = [draw.randint(3, 40) for _ in range(draw.randint(2, 6))]
    batch, length = draw.randint(8, 16), draw.choice([3, 4, 7, 8])
    sizes = {"channels": draw.choice([8, 12, 20]), "length": length, "classes": 5}
    options = {"cells": cells, "steps": steps, "dropout": 0.0, **sizes}
    relaxed = Supernet(channels_raw, **options).to(dtype)
    plain = PlainSupernet(channels_raw, attention_dropout=0.0, **options).to(dtype)
    with torch.no_grad():
        for parameter in relaxed.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    for module in relaxed.modules():
        if isinstance(module, Attention):
            module.dropout.p = 0.0
    copy_parameters(plain, relaxed)
    features = [torch.randn(batch, length, c, dtype=dtype) for c in channels_raw]
    return Twins(plain, relaxed, features, torch.randint(0, 5, (batch,)))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def is_bias_before_norm(name: str) -> bool:
    return ".conv" in name and name.endswith(".bias")


def gradient_errors(pair: Twins, training: bool) -> dict[str, float]:
    """The error of every gradient, relative to the largest of its kind in the same tensor.

    The logits of one level are one tensor in the relaxed form. A bias before a BatchNorm has no
    gradient in training; what rounding leaves is measured against the gradient of its weight.
    """
    names = {id(p): name for name, p in pair.plain.named_parameters()}
    pairs = parameter_pairs(pair.plain, pair.relaxed, gradients=True)
    assert {id(p) for p, _ in pairs} == set(names)
    gradients: dict[str, tuple[Tensor, Tensor]] = {}
    for parameter, actual in pairs:
        assert parameter.grad is not None
        gradients[names[id(parameter)]] = (actual, parameter.grad)
    largest: dict[str, float] = {}
    for name, (_, expected) in gradients.items():
        level = kind_of(name)
        largest[level] = max(largest.get(level, 0.0), expected.abs().max().item())
    errors = {}
    for name, (actual, expected) in gradients.items():
        scale = largest[kind_of(name)]
        if training and is_bias_before_norm(name):
            scale = largest[name.removesuffix("bias") + "weight"]
        errors[name] = (actual - expected).abs().max().item() / scale
    return errors


def kind_of(name: str) -> str:
    if name.endswith("logits"):
        return "beta" if name.startswith("cells") else "alpha"
    return "gamma" if name.endswith("gamma") else name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("cells", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_equals_a_module_for_each_edge_and_operation(
    cells: int, steps: int, training: bool, dtype: torch.dtype, tolerance: float
) -> None:
    pair = twins(cells, steps, dtype)
    pair.plain.train(training)
    pair.relaxed.train(training)
    expected, actual = pair.logits()
    assert relative_error(actual, expected) < tolerance
    for logits in (expected, actual):
        F.cross_entropy(logits, pair.labels).backward()
    errors = gradient_errors(pair, training)
    assert max(errors.values()) < tolerance, max(errors, key=errors.__getitem__)


def test_running_statistics_equal_those_of_the_plain_form() -> None:
    pair = twins(2, 3, torch.float64)
    for _ in range(3):
        pair.logits()
    plain, relaxed = pair.plain.eval(), pair.relaxed.eval()
    assert relative_error(*reversed(pair.logits())) < 1e-12
    operations = relaxed.cells[1].steps[2].operations
    glu, concat = operations["linear_glu"], operations["concat_fc"]
    step = plain.cells[1].steps[2]
    for name in ("running_mean", "running_var"):
        for own, norm in (
            (glu.value, step.glu.norm_1),
            (glu.gate, step.glu.norm_2),
            (concat.project, step.concat.norm),
            (relaxed.projections[0].project, plain.reshapes[0].norm),
        ):
            torch.testing.assert_close(getattr(own.norm, name), getattr(norm, name))


def test_gradients_of_what_is_frozen_are_not_made_and_the_others_stay() -> None:
    whole, weights_only, architecture_only = (
        pair.relaxed for pair in (twins(2, 2, torch.float64) for _ in range(3))
    )
    pair = twins(2, 2, torch.float64)
    for parameter in weights_only.architecture_parameters():
        parameter.requires_grad_(False)
    for parameter in architecture_only.weight_parameters():
        parameter.requires_grad_(False)
    for net in (whole, weights_only, architecture_only):
        F.cross_entropy(net(pair.features), pair.labels).backward()
    for net, made, not_made in (
        (weights_only, weights_only.weight_parameters(), weights_only.architecture_parameters()),
        (
            architecture_only,
            architecture_only.architecture_parameters(),
            architecture_only.weight_parameters(),
        ),
    ):
        expected = {name: p.grad for name, p in whole.named_parameters()}
        names = {id(p): name for name, p in net.named_parameters()}
        assert all(p.grad is None for p in not_made)
        for p in made:
            torch.testing.assert_close(p.grad, expected[names[id(p)]])


def test_a_batch_norm_bias_learns_nothing_from_noise() -> None:
    pair = twins(1, 2, torch.float64)
    F.cross_entropy(pair.logits()[1], pair.labels).backward()
    assert pair.relaxed.projections[0].project.linear.bias.grad.abs().max() < 1e-15
    glu = pair.relaxed.cells[0].steps[0].operations["linear_glu"]
    assert glu.value.linear.bias.grad.abs().max() < 1e-15


def test_dropout_follows_the_seed_and_is_off_in_evaluation() -> None:
    torch.manual_seed(0)
    net = supernet([6, 7, 9], dropout=0.5)
    features = [torch.randn(6, 4, c) for c in (6, 7, 9)]
    twin = copy.deepcopy(net)
    outputs = []
    for module in (net, twin):
        torch.manual_seed(5)
        logits = module(features)
        logits.sum().backward()
        outputs.append(logits)
    assert torch.equal(*outputs)
    for first, second in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)
    assert not torch.equal(net(features), net(features))
    net.eval()
    assert torch.equal(net(features), net(features))


def test_entries_of_edges_that_do_not_exist_are_never_read() -> None:
    torch.manual_seed(0)
    net = supernet([6, 7], cells=3, steps=3).eval()
    features = [torch.randn(4, 4, c) for c in (6, 7)]
    expected = net(features)
    with torch.no_grad():
        for k in range(3):
            net.alpha[k, 2 + k :] = 7.0
            for m in range(3):
                net.beta[k, m, 2 + m :] = 7.0
    assert torch.equal(net(features), expected)
    net(features).sum().backward()
    assert net.alpha.grad[0, 2:].abs().sum() == 0
    assert net.beta.grad[:, 0, 2:].abs().sum() == 0


def test_initial_logits_are_small_and_random() -> None:
    torch.manual_seed(0)
    net = supernet([4] * 40, cells=6, steps=3)
    values = torch.cat([p.detach().flatten() for p in net.architecture_parameters()])
    assert 0.8e-3 < values.std().item() < 1.2e-3
    assert abs(values.mean().item()) < 2e-4


def test_parameters_are_split_in_two_without_a_rest() -> None:
    net = supernet([6, 7])
    architecture, weights = net.architecture_parameters(), net.weight_parameters()
    assert [p.shape for p in architecture] == [(2, 3, 2), (2, 2, 3, 2), (2, 2, 5)]
    ids = [id(p) for p in (*architecture, *weights)]
    assert sorted(ids) == sorted(id(p) for p in net.parameters())


def test_architecture_weights_are_probabilities_of_the_edges_that_exist() -> None:
    net = supernet([6, 7, 8], cells=2, steps=3)
    with torch.no_grad():
        net.alpha[1, 3] = torch.tensor([0.0, 3.0]).log()
        net.beta[0, 2, 3] = torch.tensor([1.0, 4.0]).log()
        net.gamma[1, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0, 10.0]).log()
    weights = net.architecture_weights()
    assert [len(row) for row in weights.alpha] == [3, 4]
    assert [[len(row) for row in cell] for cell in weights.beta] == [[2, 3, 4]] * 2
    assert weights.alpha[1][3] == pytest.approx(1.0)
    assert weights.alpha[0][0] == pytest.approx(0.5, abs=0.01)
    assert weights.gamma[1][0] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.5])
    assert weights.beta[0][2][3] == pytest.approx(0.8)


def test_architecture_weights_derive_a_genotype() -> None:
    net = supernet([6, 7, 8], cells=2, steps=2)
    with torch.no_grad():
        for tensor in net.architecture_parameters():
            tensor.zero_()
        net.alpha[0, 1:, 1] = net.alpha[1, :1, 1] = 5.0
        net.alpha[1, 3, 1] = 5.0
        net.gamma[..., 3] = 5.0
    weights = net.architecture_weights()
    genotype = derive_genotype(
        weights.alpha,
        weights.beta,
        weights.gamma,
        features=["a.1", "a.2", "b.1"],
        channels=8,
        length=4,
    )
    assert [cell.inputs for cell in genotype.cells] == [("a.2", "b.1"), ("a.1", "cell1")]
    assert {step.op for cell in genotype.cells for step in cell.steps} == {"linear_glu"}


def test_features_in_the_wrong_number_are_rerelaxed() -> None:
    with pytest.raises(ValueError, match="received 1 features, expected 2"):
        supernet([6, 7])([torch.randn(4, 4, 6)])


def test_it_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    net = supernet([6, 7])
    for step in (s for cell in net.cells for s in cell.steps):
        step.operations["attention"].dropout.p = 0.0
    features = [torch.randn(6, 4, c) for c in (6, 7)]
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(features), net(features))
    compiled(features).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_autocast_lowers_the_precision_of_products_only() -> None:
    torch.manual_seed(0)
    net = supernet([6, 7], cells=2, steps=3).eval()
    features = [torch.randn(6, 4, c) for c in (6, 7)]
    exact = net(features)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(features)
        rough.float().sum().backward()
    assert 0 < relative_error(rough.float(), exact) < 0.1
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in net.parameters())


def test_a_few_steps_of_adam_lower_the_loss() -> None:
    torch.manual_seed(0)
    net = supernet([6, 7], dropout=0.1)
    features, labels = [torch.randn(32, 4, c) for c in (6, 7)], torch.randint(0, 5, (32,))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, fused=True)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(features), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_cell_of_one_step_has_no_merge_layer() -> None:
    net = supernet([6, 7], cells=1, steps=1)
    assert [type(m) for m in net.cells[0].output.children()][-1] is nn.LayerNorm
    assert net.cells[0].output.merge is None
    assert supernet([6, 7], cells=1, steps=2).cells[0].output.merge is not None
