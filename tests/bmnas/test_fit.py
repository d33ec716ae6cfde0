from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bmnas.features.samples import Batch, epoch_batches
from bmnas.machine.errors import UserError
from bmnas.training.fit import cosine_schedule, fit, require_finite_loss
from bmnas.training.heads import head_for
from bmnas.training.settings import Recipe

CPU = torch.device("cpu")


class Points:
    """Points of the plane, labelled by the side of a line."""

    at_once = 64

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.points = torch.randn(count, 2, generator=generator)
        self.labels = (self.points.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, chosen: Tensor, device: torch.device | None = None) -> Batch:
        return Batch([self.points[chosen]], self.labels[chosen])


def train(
    recipe: Recipe, until: Callable[[], bool] | None = None
) -> tuple[nn.Linear, list[dict[str, float]]]:
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    records = fit(
        network,
        lambda inputs: network(inputs[0]),
        Points(64),
        head_for("multiclass"),
        recipe,
        stage="test",
        until=until,
    )
    return network, records


def test_it_learns_and_records_every_epoch() -> None:
    network, records = train(Recipe(20, 16, 0.1, 0.0, 0.0))
    assert [record["epoch"] for record in records] == list(range(1, 21))
    assert records[-1]["train_loss"] < records[0]["train_loss"] / 2
    assert records[-1]["train_score"] > 0.95
    assert not network.training


def test_warm_restarts_begin_anew_after_one_epoch_then_after_two_more() -> None:
    _, records = train(Recipe(4, 16, 0.1, 0.02, 0.0, first_cycle=1))
    middle = 0.02 + (0.1 - 0.02) / 2
    assert [r["learning_rate"] for r in records] == pytest.approx([0.1, 0.1, middle, 0.1])


def test_it_ends_early_where_it_is_told_to() -> None:
    asked: list[int] = []

    def until() -> bool:
        asked.append(len(asked))
        return len(asked) == 3

    network, records = train(Recipe(20, 16, 0.1, 0.0, 0.0), until=until)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert not network.training


def test_a_learning_rate_may_stay_as_it_is() -> None:
    _, records = train(Recipe(5, 16, 0.1, 0.1, 0.0))
    assert [record["learning_rate"] for record in records] == [0.1] * 5


def test_the_learning_rate_is_one_cosine() -> None:
    _, records = train(Recipe(4, 16, 0.1, 0.02, 0.0))
    # Four steps an epoch: the rate at the start of epoch e is that after 4 (e - 1) of 16 steps.
    expected = [0.02 + 0.08 * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]
    assert [record["learning_rate"] for record in records] == pytest.approx(expected)


def test_the_learning_rate_may_rise_first() -> None:
    _, records = train(Recipe(8, 16, 0.1, 0.03, 0.0, warmup_steps=8))
    # Four steps an epoch.
    risen = (1 / 8, 5 / 8, 1, 1, 1, 1, 1, 1)
    expected = [risen[e] * (0.03 + 0.07 * (1 + math.cos(math.pi * e / 8)) / 2) for e in range(8)]
    assert [record["learning_rate"] for record in records] == pytest.approx(expected)


def test_a_short_training_rises_in_a_quarter_of_its_steps() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, rates = cosine_schedule(optimizer, 12, 0.0, 50), []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates.index(max(rates)) == 2
    assert max(rates) == pytest.approx(0.1 * (1 + math.cos(math.pi / 6)) / 2)


@pytest.mark.parametrize("rising", [0, 8, 50])
def test_part_of_a_cosine_is_the_beginning_of_a_longer_one(rising: int) -> None:
    _, whole = train(Recipe(8, 16, 0.1, 0.0, warmup_steps=min(rising, 4)))
    _, half = train(Recipe(4, 16, 0.1, 0.0, warmup_steps=rising, part=0.5))
    # A quarter of 16 steps, the rise at most.
    assert [r["learning_rate"] for r in half] == [r["learning_rate"] for r in whole[:4]]


def test_decoupled_weight_decay_is_that_of_adamw() -> None:
    coupled, _ = train(Recipe(1, 64, 0.1, 0.1, 0.5))
    decoupled, _ = train(Recipe(1, 64, 0.1, 0.1, 0.5, decoupled=True))
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    points = Points(64)
    adamw = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.5)
    nn.functional.cross_entropy(network(points.points), points.labels).backward()
    adamw.step()
    assert torch.allclose(decoupled.weight, network.weight, atol=1e-6)
    assert not torch.allclose(coupled.weight, network.weight, atol=1e-3)


def test_a_loss_that_is_not_finite_is_told() -> None:
    with pytest.raises(UserError, match=r"search: the loss is inf in epoch 3: .* lower max_lr"):
        require_finite_loss(float("inf"), "search", 3)
    assert require_finite_loss(0.5, "search", 3) == 0.5


def test_batches_are_equally_large_and_visit_each_sample_once() -> None:
    batches = list(epoch_batches(10, 3))
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len(torch.cat(batches).unique()) == 9
    assert [len(batch) for batch in epoch_batches(2, 100)] == [2]
