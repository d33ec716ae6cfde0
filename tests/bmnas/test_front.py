from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random

from tiny_runs import GENOTYPE, METRICS, svg_texts, write_run

from bmnas.report.front import front_parts
from bmnas.report.record import load_run
from bmnas.report.style import figure_of
from bmnas.strategies.front import Point, crowding, front, ordered, ranks


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def test_ranks_are_those_of_fronts_taken_off_one_by_one() -> None:
    draw = Random(0)
    values = [tuple(draw.randrange(6) for _ in range(3)) for _ in range(60)]
    left, expected, rank = set(range(60)), [0] * 60, 0
    while left:
        own = {n for n in left if not any(dominates(values[m], values[n]) for m in left)}
        for n in own:
            expected[n] = rank
        left -= own
        rank += 1
    assert ranks(values) == expected
    assert rank > 3
    assert ranks([]) == []


def test_the_crowding_distance_by_hand() -> None:
    values = [(0.0, 4.0), (1.0, 2.0), (4.0, 0.0), (2.0, 1.0)]
    # The second lies between the first and the fourth, that between the second and the third.
    assert crowding(values) == [math.inf, 2 / 4 + 3 / 4, math.inf, 3 / 4 + 2 / 4]
    assert crowding([(1.0, 1.0)] * 2) == [0.0, 0.0]


def test_the_order_goes_front_by_front_and_begins_with_the_ends() -> None:
    values = [(1.0, 5.0), (2.0, 3.0), (2.1, 2.9), (4.0, 1.0), (5.0, 5.0)]
    assert ordered(values) == [0, 3, 2, 1, 4]
    assert ordered([]) == []


def test_a_front_holds_what_none_is_better_than() -> None:
    def point(score: float, latency: float, parameters: int) -> Point:
        return Point(GENOTYPE, False, score, latency, parameters)

    best, fast, small = point(0.9, 2.0, 30), point(0.8, 1.0, 30), point(0.7, 2.0, 10)
    worse = point(0.7, 2.0, 30)
    assert front([worse, best, small, fast, best]) == (fast, small, best)
    assert front([]) == ()


def test_a_front_is_drawn_by_latency_and_by_weights(tmp_path: Path) -> None:
    points = [
        {"score": 0.9, "latency_ms": 0.1, "parameters": 500, "unimodal_logits": False},
        {"score": 0.95, "latency_ms": 0.3, "parameters": 400, "unimodal_logits": True},
    ]
    search = {**METRICS["search"], "front": points}
    run = load_run(write_run(tmp_path / "run", metrics={**METRICS, "search": search}))
    texts = svg_texts(figure_of(*front_parts(run)))
    assert {"Front: what is served", "latency, ms", "weights", "1", "2"} <= set(texts)
    assert front_parts(load_run(write_run(tmp_path / "other"))) == []
