from __future__ import annotations

from dataclasses import replace

import pytest

from bmnas.lab import cards
from bmnas.lab.cards import Card, on_cards, step_work
from bmnas.lab.planning import Plan
from bmnas.strategies.settings import SearchConfig

SEARCH = SearchConfig(cells=1, steps=1, channels=8, length=4, epochs=3, batch_size=10, dropout=0.0)
PLAN = Plan({"train": 105, "validation": 30}, {"a.1": 16, "b.1": 12}, SEARCH, 2, 27_000, {}, {}, {})
B, L, C = 10, 4, 8


def test_the_products_of_a_step_by_hand() -> None:
    work, weights = step_work(PLAN)
    reshape = 2 * B * L * (16 + 12) * C
    # LinearGLU twice and ConcatFC, whose two inputs are one tensor here.
    layers = 2 * B * L * C * 3 * C
    attention = 2 * (2 * B * L * L * C)
    mixtures = 2 * B * L * C * (2 + 4)  # of two features, of four operations that are not zero
    classifier = 2 * B * L * C * 60
    # A backward pass is two products for each of the forward pass; features need no gradient.
    assert work.flops == 2 * reshape + 3 * (layers + attention + mixtures + classifier)
    assert work.kept < work.bytes
    assert work.bytes > 28 * weights


def test_a_card_takes_the_longest_of_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    work, weights = step_work(PLAN)
    # Ten batches of train and three of validation an epoch; three more, forward alone.
    steps = 2 * 3 * (10 + 3 + 1)
    busy = Card("busy", 2e3, 1e99, 1e9)
    slow = Card("slow", 1e99, 2e3, 1e9)
    quick = Card("quick", 1e99, 1e99, 1e9)
    small = Card("small", 1e99, 1e99, 44_999)
    monkeypatch.setattr(cards, "CARDS", (busy, slow, quick, small))
    monkeypatch.setattr(cards, "COPY", 1e3)
    found = on_cards(PLAN)
    seconds = [work.flops / 1e3, work.bytes / 1e3, work.operations * 1e-5, 27_000 / 135 * B / 1e3]
    assert [card.step_ms for card in found] == pytest.approx([1e3 * each for each in seconds])
    assert [card.seconds for card in found] == pytest.approx([steps * each for each in seconds])
    assert [card.limit for card in found] == [
        "arithmetic and memory",
        "arithmetic and memory",
        "launches",
        "copying of batches",
    ]
    assert found[0].bytes == 16 * weights + work.kept + 27_000
    assert found[3].bytes == 16 * weights + work.kept + 2_000
    (alone,) = {card.seconds for card in on_cards(replace(PLAN, seeds=1)) if card.name == "quick"}
    assert alone == pytest.approx(found[2].seconds / 2)
