from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problems import CHANNELS, LENGTH, tiny_problem

import bmnas.strategies.mfas as module
from bmnas.features.samples import FeatureSamples
from bmnas.machine.errors import UserError
from bmnas.spaces.mfas.genotype import Layers, MFASGenotype
from bmnas.spaces.mfas.settings import MFASConfig
from bmnas.spaces.mfas.space import MFASSpace
from bmnas.spaces.mfas.surrogate import ScorePool
from bmnas.strategies import Outcome, SearchProblem
from bmnas.strategies.mfas import search_mfas
from bmnas.training.metrics import Evaluation

SMALL = MFASConfig(
    sweeps=2, levels=2, kept=3, epochs=1, batch_size=16, inner_size=4, final_inner_size=8
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmnas.spaces.mfas.surrogate.EPOCHS", 3)


def problem(folder: Path, settings: MFASConfig = SMALL, **options: Any) -> SearchProblem:
    return dataclasses.replace(tiny_problem(folder, **options), mfas=settings)


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let candidates have scores from their architectures alone: audio.4 in the last layer."""

    def score(layers: Layers, features: Sequence[str]) -> float:
        rows = MFASSpace(tuple(features)).encode(MFASGenotype(tuple(features), LENGTH, 16, layers))
        return 0.3 + 0.05 * rows[-1][1] + 0.01 * sum(row[0] for row in rows)

    def train(
        problem: SearchProblem, group: Sequence[Layers], first: int, progress: object
    ) -> list[Evaluation]:
        features = problem.train.names
        return [Evaluation(1.0, score(layers, features), torch.zeros(1)) for layers in group]

    monkeypatch.setattr(module, "_train_together", train)


def eight_features(folder: Path) -> SearchProblem:
    names = tuple(f"{m}.{n}" for m in ("image", "audio") for n in (1, 2, 3, 4))
    samples = FeatureSamples(
        names,
        {name: torch.zeros(4, LENGTH, 2) for name in names},
        {"image": torch.arange(4), "audio": torch.arange(4)},
        torch.arange(4),
    )
    return dataclasses.replace(problem(folder, MFASConfig()), train=samples, validation=samples)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome[MFASGenotype]]:
    """A search with the settings of the authors over 4 and 4 features, nothing being trained."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        without_training(patch)
        patch.setattr("bmnas.spaces.mfas.surrogate.EPOCHS", 5)
        return folder, search_mfas(eight_features(folder))


def test_with_the_settings_of_the_authors_197_candidates_are_trained(
    whole: tuple[Path, Outcome[MFASGenotype]],
) -> None:
    folder, outcome = whole
    records = history(folder)
    assert outcome.candidates == len(records) == 32 + 11 * 15 == 197
    assert [record["epoch"] for record in records] == list(range(1, 198))
    steps = Counter(record["step"] for record in records)
    assert steps == {1: 32, **dict.fromkeys(range(2, 13), 15)}
    depths = {step: set() for step in steps}
    for record in records:
        depths[record["step"]].add(len(record["layers"]))
    # The first sweep makes the chain longer, the others replace its layers.
    assert [depths[step] for step in range(1, 13)] == [{1}, {2}, {3}, *([{4}] * 9)]


def test_a_step_changes_one_layer_of_what_the_step_before_kept(
    whole: tuple[Path, Outcome[MFASGenotype]],
) -> None:
    records = history(whole[0])
    for step in range(2, 13):
        level = (step - 1) % 4
        before, now = (
            [record["layers"] for record in records if record["step"] == s]
            for s in (step - 1, step)
        )
        rest = [layers[:level] + layers[level + 1 :] for layers in before]
        assert all(layers[:level] + layers[level + 1 :] in rest for layers in now)
        # Drawn without replacement from architectures that differ.
        assert len({json.dumps(layers) for layers in now}) == 15


def test_the_five_best_are_returned(whole: tuple[Path, Outcome[MFASGenotype]]) -> None:
    folder, outcome = whole
    scores: dict[str, float] = {}
    for record in history(folder):
        scores.setdefault(json.dumps(record["layers"]), record["validation_score"])
    expected = sorted(scores.values(), reverse=True)[:5]
    returned = [(outcome.genotype, outcome.validation), *outcome.others]
    assert [score for _, score in returned] == expected
    for genotype, score in returned:
        assert scores[json.dumps([layer.to_dict() for layer in genotype.layers])] == score
        assert (genotype.inner_size, genotype.length) == (256, LENGTH)
    best = next(r for r in history(folder) if r["epoch"] == outcome.best_epoch)
    assert best["validation_score"] == outcome.validation
    assert best["layers"] == [layer.to_dict() for layer in outcome.genotype.layers]


def test_the_surrogate_predicts_before_it_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, learn; then in every step predict, train, learn; all that was trained is learned."""
    calls: list[tuple[str, int]] = []
    without_training(monkeypatch)
    train, learn, predict = module._train_together, ScorePool.learn, ScorePool.predict

    def trained(problem: SearchProblem, group: Any, *rest: Any) -> Any:
        calls.append(("train", len(group)))
        return train(problem, group, *rest)

    def learned(pool: ScorePool, architectures: Any, scores: Any) -> None:
        calls.append(("learn", len(architectures)))
        learn(pool, architectures, scores)

    def predicted(pool: ScorePool, architectures: Any) -> Any:
        calls.append(("predict", len(architectures)))
        return predict(pool, architectures)

    monkeypatch.setattr(module, "_train_together", trained)
    monkeypatch.setattr(ScorePool, "learn", learned)
    monkeypatch.setattr(ScorePool, "predict", predicted)
    search_mfas(dataclasses.replace(eight_features(tmp_path), mfas=MFASConfig(sweeps=1, levels=3)))
    assert calls == [
        ("train", 32), ("learn", 32),
        ("predict", 480), ("train", 15), ("learn", 15),
        ("predict", 480), ("train", 15), ("learn", 15),
    ]  # fmt: skip


def test_candidates_are_trained_and_the_budget_is_counted(tmp_path: Path) -> None:
    outcome = search_mfas(problem(tmp_path, dataclasses.replace(SMALL, epochs=2)))
    records = history(tmp_path)
    # 2 x 1 x 2 candidates of one layer, then three in each of three steps.
    assert outcome.candidates == len(records) == 4 + 3 * 3
    # Batches of 16: of 40 train samples 32 are seen in an epoch.
    assert outcome.samples_seen == 13 * 2 * 32
    assert set(outcome.stages) == {"candidates", "surrogate"}
    assert all(cost.seconds > 0 for cost in outcome.stages.values())
    assert sum(cost.seconds for cost in outcome.stages.values()) <= outcome.seconds
    assert outcome.threshold is None
    assert outcome.genotype.features == tuple(CHANNELS)
    assert outcome.genotype.inner_size == 8
    assert len({record["validation_loss"] for record in records}) > 4


def test_enough_training_finds_both_bits(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SMALL, sweeps=1, levels=1, epochs=31, batch_size=8, max_lr=0.02, dropout=0.0
    )
    assert search_mfas(problem(tmp_path, settings)).validation > 0.8


def test_the_same_seed_trains_the_same_candidates(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        search_mfas(problem(tmp_path / name))
    search_mfas(dataclasses.replace(problem(tmp_path / "c"), seed=1))
    a, b, c = ((tmp_path / name / "history.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("saves", [1, 3])
def test_a_stopped_search_ends_as_it_would_have(tmp_path: Path, saves: int) -> None:
    # Two at a time: stopped in the middle of a step, too.
    settings = dataclasses.replace(SMALL, together=2)
    whole = search_mfas(problem(tmp_path / "whole", settings))
    stopped = problem(tmp_path / "stopped", settings)
    save, count = stopped.checkpoint.save, 0

    class StoppedError(Exception):
        pass

    def stop(*args: Any) -> None:
        nonlocal count
        save(*args)
        count += 1
        if count == saves:
            raise StoppedError

    stopped.checkpoint.save = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        search_mfas(stopped)
    assert len(history(tmp_path / "stopped")) == 2 * saves
    again = search_mfas(problem(tmp_path / "stopped", settings))
    assert again == whole
    one, other = ((tmp_path / name / "history.jsonl") for name in ("stopped", "whole"))
    assert one.read_bytes() == other.read_bytes()


def test_records_of_other_candidates_are_refused(tmp_path: Path) -> None:
    first = problem(tmp_path)
    search_mfas(first)
    records = first.checkpoint.restore({})
    records[4]["layers"], records[5]["layers"] = records[5]["layers"], records[4]["layers"]
    first.checkpoint.save({}, records)
    with pytest.raises(UserError, match="received other candidates than the surrogate asks for"):
        search_mfas(problem(tmp_path))


def test_a_multilabel_search_chooses_a_threshold(tmp_path: Path) -> None:
    outcome = search_mfas(problem(tmp_path, kind="multilabel"))
    record = history(tmp_path)[outcome.best_epoch - 1]
    assert outcome.threshold == record["threshold"]
    assert 0.05 <= record["threshold"] <= 0.95
    assert 0 <= outcome.validation <= 1


def test_divergence_names_the_candidates(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, max_lr=1e30, epochs=2)
    with pytest.raises(UserError, match=r"candidates 1 to 4: the loss is (nan|inf) in epoch"):
        search_mfas(problem(tmp_path, settings))


def test_one_modality_is_nothing_to_fuse(tmp_path: Path) -> None:
    given = problem(tmp_path)
    alone = dataclasses.replace(given, train=given.train.select(("m0.1", "m0.2")))
    with pytest.raises(UserError, match="space mfas: received the modality m0 alone"):
        search_mfas(alone)


def test_progress_counts_the_epochs_of_all_trainings(tmp_path: Path) -> None:
    class Counting:
        units, done = 0, 0

        def stage(self, name: str, units: int) -> Any:
            import contextlib

            self.units = units
            return contextlib.nullcontext(self)

        def advance(self, units: int = 1) -> None:
            self.done += units

        def message(self, text: str) -> None:
            pass

        def note(self, text: str) -> None:
            pass

    for _ in range(2):  # The second time all candidates are known.
        shown = Counting()
        settings = dataclasses.replace(SMALL, epochs=2)
        search_mfas(dataclasses.replace(problem(tmp_path, settings), progress=shown))
        assert shown.done == shown.units == 2 * 4


def test_of_the_epochs_of_a_candidate_the_best_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scores of the four candidates after each epoch.
    scores = iter([[0.3, 0.9, 0.0, 0.5], [0.6, 0.2, 0.0, 0.5], [0.4, 0.8, 0.1, 0.5]])

    def evaluate(*args: object) -> list[Evaluation]:
        return [Evaluation(0.0, score, torch.zeros(24, 4)) for score in next(scores)]

    monkeypatch.setattr(module, "evaluate_several", evaluate)
    search_mfas(problem(tmp_path, dataclasses.replace(SMALL, sweeps=1, levels=1, epochs=3)))
    kept = [record["validation_score"] for record in history(tmp_path)]
    assert kept == [0.6, 0.9, 0.1, 0.5]
