from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bmnas.features.layers import Dropout
from bmnas.lab import cards
from bmnas.lab.cards import Card, Work, on_cards, search_work, work_of
from bmnas.lab.planning import Plan
from bmnas.strategies.settings import SearchConfig

SEARCH = SearchConfig(cells=1, steps=1, channels=8, length=4, epochs=3, batch_size=10, dropout=0.0)
PLAN = Plan({"train": 105, "validation": 30}, {"a.1": 16, "b.1": 12}, SEARCH, 2, 27_000, {}, {}, {})
B, L, C = 10, 4, 8


def test_a_layer_by_hand() -> None:
    x, weight = torch.zeros(5, 3), torch.zeros(2, 3, requires_grad=True)
    bias, gradient = torch.zeros(2, requires_grad=True), torch.ones(5, 2)
    dropout = Dropout(0.5)

    def run() -> None:
        dropout(F.linear(x, weight, bias).relu()).backward(gradient)

    # Numbers of four bytes; a mask has one byte for each.
    wide, narrow, mask = 4 * 5 * 3, 4 * 5 * 2, 5 * 2
    steps = [  # read, written
        (4 * 2 + wide + 4 * 6, narrow),  # bias + x W
        (narrow, narrow),  # relu
        (narrow, narrow + mask),  # dropout
        (narrow + mask, narrow),  # its backward pass
        (2 * narrow, narrow),  # that of relu
        (narrow + wide, 4 * 6),  # gradient of W
        (narrow, 4 * 2),  # gradient of the bias
    ]
    read, written = (sum(each) for each in zip(*steps, strict=True))
    # Two products, each of 5 x 3 x 2 multiplications and additions.
    assert work_of(run) == Work(2 * (2 * 5 * 3 * 2), read, written, len(steps))


def test_views_and_empty_memory_launch_nothing() -> None:
    work = work_of(lambda: torch.empty(4, 6).t().flatten()[1:])
    # A transposed matrix is copied to be flat.
    assert work == Work(0, 96, 96, 1)


def test_the_products_of_a_step_by_hand() -> None:
    work = search_work(PLAN)
    reshape = 2 * B * L * (16 + 12) * C
    # LinearGLU twice and ConcatFC, whose two inputs are one tensor here.
    layers = 2 * B * L * C * 3 * C
    attention = 2 * (2 * B * L * L * C)
    mixtures = 2 * B * L * C * (2 + 4)  # of two features, of four operations that are not zero
    classifier = 2 * B * L * C * 60
    forward = reshape + layers + attention + mixtures + classifier
    # A backward pass is two products for each of the forward pass; features need no gradient.
    assert work.step.flops == 3 * forward - reshape
    # Validation is one batch.
    assert (work.at_once, work.validation.flops) == (30, 3 * forward)


def test_a_step_has_the_gathering_of_its_batch_and_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    one = search_work(PLAN)
    more = search_work(replace(PLAN, features={"a.1": 16, "a.2": 12}))
    # Two modalities have two tables of rows.
    assert one.step.launches == more.step.launches + 1
    monkeypatch.setattr(cards, "ADAM_LAUNCHES", 0)
    monkeypatch.setattr(cards, "ADAM_READ", 0)
    without = search_work(PLAN).step
    assert one.step.launches == without.launches + 4
    assert one.step.read == without.read + 16 * one.weights


def test_a_card_takes_the_longest_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    work = search_work(PLAN)
    busy = Card("busy", 2e3, 1e99, 1e9)
    slow = Card("slow", 1e99, 2e3, 1e9)
    quick = Card("quick", 1e99, 1e99, 1e9)
    small = Card("small", 1e99, 1e99, 44_999)
    monkeypatch.setattr(cards, "CARDS", (busy, slow, quick, small))
    monkeypatch.setattr(cards, "COPY", 1e3)
    found = on_cards(PLAN)
    assert [card.launches_ms for card in found] == pytest.approx([1e-2 * work.step.launches] * 4)
    assert [card.copying_ms for card in found] == pytest.approx([0, 0, 0, 27_000 / 135 * B])
    times = [
        [each.flops / 1e3, (each.read + each.written) / 1e3, each.launches * 1e-5, size * 0.2]
        for each, size in ((work.step, B), (work.validation, 30))
    ]
    assert [card.arithmetic_ms for card in found[:2]] == pytest.approx(
        [1e3 * t for t in times[0][:2]]
    )
    # Ten batches of train and three of validation an epoch, and one of evaluation; two seeds.
    seconds = [2 * 3 * (13 * step + alone) for step, alone in zip(*times, strict=True)]
    assert [card.seconds for card in found] == pytest.approx(seconds)
    assert found[0].bytes == 16 * work.weights + work.kept + 27_000
    assert found[3].bytes == 16 * work.weights + work.kept + 2_000
