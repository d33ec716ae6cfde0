from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.spaces.cells import native
from bmnas.spaces.cells.supernet import RelaxedStep, Supernet
from bmnas.spaces.cells.supernets import Supernets
from bmnas.training.heads import head_for


@dataclass
class Case:
    """Supernets of one random shape with random values, and a batch for all of them."""

    members: list[Supernet]
    features: list[Tensor]
    labels: Tensor


def case(number: int, *, steps: int, cells: int, dropout: float = 0.0) -> Case:
    draw = random.Random(number)
    torch.manual_seed(number)
    channels_raw = [draw.randint(3, 30) for _ in range(draw.randint(2, 5))]
    length, channels = draw.choice([3, 4, 8]), draw.choice([8, 12, 70])
    members = [
        Supernet(
            channels_raw,
            cells=cells,
            steps=steps,
            channels=channels,
            length=length,
            classes=5,
            dropout=dropout,
        )
        for _ in range(draw.randint(2, 4))
    ]
    for member in members:
        for module in member.modules():
            if isinstance(module, RelaxedStep):
                module.attention_dropout.p = dropout
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    batch = draw.randint(8, 16)
    features = [torch.randn(batch, length, c) for c in channels_raw]
    return Case(members, features, torch.randint(0, 5, (batch,)))


def gradients(together: Supernets) -> list[dict[str, Tensor]]:
    """The gradients of each member under its own names."""
    twin = copy.deepcopy(together)
    with torch.no_grad():
        for to, of in zip(twin.parameters(), together.parameters(), strict=True):
            assert of.grad is not None
            to.copy_(of.grad)
    return [dict(twin.member(s).named_parameters()) for s in range(twin.count)]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=1e-5 * scale)


def is_bias_before_norm(name: str) -> bool:
    parts = ("projections.", ".glu.", ".concat.", ".merge.linear.")
    return name.endswith("bias") and any(part in name for part in parts)


@pytest.fixture(params=["native", "one after another"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native":
        if native.kernels() is None:
            pytest.skip(native.describe())
    else:
        for place in ("bmnas.spaces.cells.supernet", "bmnas.spaces.cells.supernets"):
            monkeypatch.setattr(f"{place}.has_kernels", lambda _, **__: False)
    return str(request.param)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("cells", [1, 3])
def test_members_at_once_equal_each_alone(way: str, cells: int, steps: int) -> None:
    found = case(10 * cells + steps, cells=cells, steps=steps)
    together = Supernets(found.members)
    logits = together(found.features)
    losses = head_for("multiclass").network_losses(logits.transpose(0, 1), found.labels)
    losses.sum().backward()
    own = gradients(together)
    for number, member in enumerate(found.members):
        exact = copy.deepcopy(member).double()
        F.cross_entropy(exact([x.double() for x in found.features]), found.labels).backward()
        alone = member(found.features)
        loss = F.cross_entropy(alone, found.labels)
        loss.backward()
        assert_close(logits[number], alone)
        assert_close(losses[number], loss)
        for name, parameter in member.named_parameters():
            actual, expected = own[number][name], parameter.grad
            reference = exact.get_parameter(name).grad
            assert expected is not None
            assert reference is not None
            scale = reference.abs().max().item()
            if is_bias_before_norm(name):  # noise, measured against the gradient of its weight
                weight = member.get_parameter(name.removesuffix("bias") + "weight").grad
                assert weight is not None
                scale = weight.abs().max().item()
            # Some architecture gradients are small rests of large sums, also for one supernet.
            rounding = (expected - reference).abs().max().item()
            assert (actual - expected).abs().max().item() <= 1e-5 * scale + rounding, name
        for name, value in together.member(number).named_buffers():
            assert_close(value.double(), member.get_buffer(name).double())


def test_in_evaluation_mode_they_are_the_members(way: str) -> None:
    found = case(5, cells=2, steps=2, dropout=0.5)
    together = Supernets(found.members).eval()
    expected = [member.eval()(found.features) for member in found.members]
    assert_close(together(found.features), torch.stack(expected))
    assert not together.member(0).training


def test_the_architecture_alone_has_the_gradients_of_a_whole_pass(way: str) -> None:
    whole, part = (Supernets(case(6, cells=2, steps=2).members) for _ in range(2))
    for parameter in part.weight_parameters():
        parameter.requires_grad_(False)
    found = case(6, cells=2, steps=2)
    for together in (whole, part):
        together(found.features).square().sum().backward()
    assert all(parameter.grad is None for parameter in part.weight_parameters())
    pairs = zip(part.architecture_parameters(), whole.architecture_parameters(), strict=True)
    for of_part, of_whole in pairs:
        assert of_part.grad is not None
        assert of_whole.grad is not None
        torch.testing.assert_close(of_part.grad, of_whole.grad)


def test_masks_follow_the_seed_and_differ_between_members(way: str) -> None:
    found = case(7, cells=2, steps=2, dropout=0.5)
    together = Supernets([found.members[0]] * 3)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(together(found.features))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    first, second, third = outputs[0]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_member_that_diverged_does_not_touch_the_others() -> None:
    found = case(8, cells=2, steps=2)
    with torch.no_grad():
        found.members[0].head.classifier.weight.fill_(float("nan"))
    together = Supernets(found.members)
    logits = together(found.features).transpose(0, 1)
    losses = head_for("multiclass").network_losses(logits, found.labels)
    losses.sum().backward()
    assert losses.isnan().tolist() == [True, *[False] * (together.count - 1)]
    broken, *whole = gradients(together)
    assert any(g.isnan().any() for g in broken.values())
    assert not any(g.isnan().any() for own in whole for g in own.values())


def test_a_copy_of_a_member_is_its_own() -> None:
    found = case(9, cells=1, steps=2)
    together = Supernets(found.members)
    for number, member in enumerate(found.members):
        copied = together.member(number)
        for name, value in member.state_dict().items():
            assert torch.equal(copied.state_dict()[name], value)
        assert copied.architecture_weights() == member.architecture_weights()
    with torch.no_grad():
        together.stacked.alpha.zero_()
    assert copied.alpha.abs().sum() > 0
    split = (*together.architecture_parameters(), *together.weight_parameters())
    assert {id(p) for p in split} == {id(p) for p in together.parameters()}
    assert len(split) == len(list(found.members[0].parameters()))


def test_weights_that_were_asked_for_before_are_not_those_of_the_stack() -> None:
    members = case(0, steps=2, cells=2).members
    for member in members:
        member.weight_parameters()
    together = Supernets(members)
    own = {id(parameter) for parameter in together.parameters()}
    weights = together.weight_parameters()
    assert {id(w) for w in weights} <= own
    assert len(weights) + len(together.architecture_parameters()) == len(own)
    weights.clear()
    assert together.weight_parameters()
