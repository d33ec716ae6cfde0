from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas import native
from bmnas.metrics import Objective
from bmnas.supernet import RelaxedStep, Supernet
from bmnas.supernets import Supernets


@dataclass
class Case:
    """Supernets of one random shape with random values, and a batch for all of them."""

    members: list[Supernet]
    features: list[Tensor]
    labels: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.labels)


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


def own_gradients(together: Supernets, number: int) -> dict[str, Tensor]:
    """The gradients of a member under its own names."""
    for parameter in together.stacked.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    return dict(together.member(number).named_parameters())


@pytest.fixture(params=["native", "one after another"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native":
        if native.kernels() is None:
            pytest.skip(native.describe())
    else:
        for place in ("bmnas.supernet", "bmnas.supernets"):
            monkeypatch.setattr(f"{place}.has_kernels", lambda _: False)
    return str(request.param)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("cells", [1, 3])
def test_members_at_once_equal_each_alone(way: str, cells: int, steps: int) -> None:
    found = case(10 * cells + steps, cells=cells, steps=steps)
    together = Supernets(found.members)
    logits = together(found.features)
    Objective("multiclass").losses(logits, found.labels).sum().backward()
    buffers = [dict(together.member(s).named_buffers()) for s in range(together.count)]
    for number, member in enumerate(found.members):
        alone = member(found.features)
        found.loss(alone).backward()
        assert_close(logits[number], alone)
        gradients = own_gradients(Supernets_with_gradients(together), number)
        for name, parameter in member.named_parameters():
            assert parameter.grad is not None
            # A bias before a BatchNorm has no gradient but noise where PyTorch computes it.
            if not (way != "native" and is_bias_before_norm(name)):
                assert_close(gradients[name], parameter.grad)
        for name, value in member.named_buffers():
            assert_close(buffers[number][name].float(), value.float())
