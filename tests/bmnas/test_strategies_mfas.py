"""The sequential search with made-up scores, by ask and tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_problems import tiny_problem

from bmnas.machine.errors import UserError
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.mfas.space import MFASSpace
from bmnas.spaces.space import SearchSpace
from bmnas.strategies.evaluator import run_strategy
from bmnas.strategies.mfas import MFAS, MFASConfig
from bmnas.strategies.strategy import Candidate
from bmnas.strategies.surrogate import ScorePool

FEATURES = tuple(f"{m}.{n}" for m in ("image", "audio") for n in (1, 2, 3, 4))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmnas.strategies.surrogate.EPOCHS", 3)


def asked(
    space: SearchSpace[Any], settings: MFASConfig | None = None, seed: int = 0
) -> list[list[Candidate]]:
    """Return what each step asks for; audio.4 in the last layer scores best."""
    steps: list[list[Candidate]] = []

    class Judge:
        def score(self, candidates: Sequence[Candidate]) -> list[float]:
            steps.append(list(candidates))
            rows = [space.encode(candidate.genotype) for candidate in candidates]
            return [0.3 + 0.05 * own[-1][1] + 0.01 * sum(r[0] for r in own) for own in rows]

    run_strategy(MFAS(space, settings or MFASConfig(), seed), Judge())
    return steps


def test_with_the_settings_of_the_authors_197_candidates_are_asked_for() -> None:
    steps = asked(MFASSpace(FEATURES))
    assert [len(step) for step in steps] == [32, *[15] * 11]
    assert MFAS(MFASSpace(FEATURES), MFASConfig(), 0).expected == 197
    # The first sweep makes the chain longer, the others replace its layers.
    depths = [{len(c.genotype.layers) for c in step} for step in steps]  # type: ignore[attr-defined]
    assert depths == [{1}, {2}, {3}, *([{4}] * 9)]
    assert [{c.note["step"] for c in step} for step in steps] == [{n} for n in range(1, 13)]


def test_a_step_changes_one_layer_of_what_the_step_before_kept() -> None:
    steps = [[c.genotype.layers for c in step] for step in asked(MFASSpace(FEATURES))]  # type: ignore[attr-defined]
    for number, (before, now) in enumerate(pairwise(steps), start=1):
        level = number % 4
        rest = [layers[:level] + layers[level + 1 :] for layers in before]
        assert all(layers[:level] + layers[level + 1 :] in rest for layers in now)
        # Drawn without replacement from architectures that differ.
        assert len(set(now)) == 15


def test_the_surrogate_predicts_before_it_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("learn", "predict"):
        method = getattr(ScorePool, name)

        def noted(self: ScorePool, rows: Any, *rest: Any, call: Any = (name, method)) -> Any:
            calls.append((call[0], len(rows)))
            return call[1](self, rows, *rest)

        monkeypatch.setattr(ScorePool, name, noted)
    asked(MFASSpace(FEATURES, levels=3), MFASConfig(sweeps=1))
    assert calls[:2] == [("learn", 32), ("predict", 480)]
    assert calls[2:4] == [("learn", 15), ("predict", 480)]
    assert Counter(name for name, _ in calls) == {"learn": 3, "predict": 2}


def test_any_space_with_levels_can_be_searched() -> None:
    space = CellSpace(FEATURES, cells=2, steps=1)
    steps = asked(space, MFASConfig(sweeps=2, kept=4))
    assert [len(step) for step in steps] == [len(space.unfold([], 0)), 4, 4, 4]
    assert MFAS(space, MFASConfig(sweeps=2, kept=4), 0).expected == len(steps[0]) + 12


def test_the_same_seed_asks_for_the_same() -> None:
    space, settings = MFASSpace(FEATURES), MFASConfig(sweeps=1)
    assert asked(space, settings) == asked(space, settings)
    assert asked(space, settings) != asked(space, settings, seed=1)


def test_the_best_are_returned_with_layers_of_the_final_size(tmp_path: Path) -> None:
    outcome = MFAS.search(tiny_problem(tmp_path, strategy="mfas"))
    returned = [(outcome.genotype, outcome.validation), *outcome.others]
    scores = [score for _, score in returned]
    assert len({genotype.layers for genotype, _ in returned}) == 5
    assert scores == sorted(scores, reverse=True)
    assert {genotype.inner_size for genotype, _ in returned} == {8}
    assert set(outcome.stages) == {"candidates"}
    assert all(cost.seconds > 0 for cost in outcome.stages.values())


def test_one_modality_is_nothing_to_fuse() -> None:
    with pytest.raises(UserError, match="space mfas: received the modality image alone"):
        MFASSpace(FEATURES[:4])
