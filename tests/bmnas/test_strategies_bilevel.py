from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_problems import CHANNELS, tiny_problem
from torch import Tensor, nn

import bmnas.strategies.bilevel as module
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime
from bmnas.spaces.cells.derive import derive_genotype
from bmnas.spaces.cells.supernet import Supernet
from bmnas.strategies.bilevel import search_bilevel
from bmnas.training.metrics import Evaluation


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


class Watch:
    """Looks at a supernet before and after every pass of the search."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[str, set[str], bool]] = []
        self.optimizers: list[torch.optim.Adam] = []
        self.supernet: Supernet | None = None
        watch, build = self, Supernet.__init__
        descend, adam = module.descend, torch.optim.Adam

        def init(net: Supernet, *args: Any, **kwargs: Any) -> None:
            build(net, *args, **kwargs)
            watch.supernet = net

        def watched(forward: Any, samples: Any, *args: Any) -> float:
            assert watch.supernet is not None
            before = {k: v.detach().clone() for k, v in watch.supernet.named_parameters()}
            part = "train" if len(samples) == 40 else "validation"
            training = watch.supernet.training
            loss = descend(forward, samples, *args)
            after = dict(watch.supernet.named_parameters())
            changed = {k for k in before if not torch.equal(before[k], after[k])}
            watch.passes.append((part, changed, training))
            return loss

        class Adam(adam):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                watch.optimizers.append(self)

        monkeypatch.setattr(Supernet, "__init__", init)
        monkeypatch.setattr(module, "descend", watched)
        monkeypatch.setattr(torch.optim, "Adam", Adam)


ARCHITECTURE = {"alpha", "beta", "gamma"}


def test_weights_move_on_train_and_the_architecture_on_validation_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    search_bilevel(tiny_problem(tmp_path, epochs=3))
    assert watch.supernet is not None
    everything = {name for name, _ in watch.supernet.named_parameters()}
    assert [part for part, _, _ in watch.passes] == ["train", "validation"] * 3
    assert all(training for _, _, training in watch.passes)
    for part, changed, _ in watch.passes:
        if part == "train":
            assert not changed & ARCHITECTURE
            # Biases before a BatchNorm get no gradient to speak of; all the rest moves.
            assert {name for name in everything - ARCHITECTURE - changed if "bias" not in name} == (
                set()
            )
        else:
            assert changed == ARCHITECTURE


def test_the_optimisers_are_those_of_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    settings = {"max_lr": 0.02, "min_lr": 0.004, "weight_decay": 0.03}
    search_bilevel(tiny_problem(tmp_path, epochs=3, **settings))
    weights, architecture = watch.optimizers
    assert architecture.defaults["lr"] == 3e-4
    assert architecture.defaults["betas"] == (0.5, 0.999)
    assert architecture.defaults["weight_decay"] == 1e-3
    assert weights.defaults["weight_decay"] == 0.03
    assert not any(o.defaults["decoupled_weight_decay"] for o in watch.optimizers)
    # Cosine annealing: the rate at the start of each epoch; two batches of 16 in 40 samples.
    expected = [0.004 + 0.016 * (1 + math.cos(math.pi * 2 * e / 6)) / 2 for e in range(3)]
    assert [r["learning_rate"] for r in history(tmp_path)] == pytest.approx(expected)
    assert weights.param_groups[0]["lr"] == pytest.approx(0.004)
    assert architecture.param_groups[0]["lr"] == 3e-4
    assert watch.supernet is not None
    held = [{id(p) for p in o.param_groups[0]["params"]} for o in watch.optimizers]
    assert held[1] == {id(p) for n, p in watch.supernet.named_parameters() if n in ARCHITECTURE}
    assert held[0] | held[1] == {id(p) for p in watch.supernet.parameters()}
    assert not held[0] & held[1]


def test_initial_logits_are_small_normal_numbers() -> None:
    torch.manual_seed(0)
    supernet = Supernet([3] * 40, cells=8, steps=3, channels=4, length=4, classes=2, dropout=0.0)
    logits = torch.cat([p.detach().flatten() for p in supernet.architecture_parameters()])
    assert float(logits.std()) == pytest.approx(1e-3, rel=0.1)
    assert abs(float(logits.mean())) < 2e-4


def test_records_hold_what_the_genotype_was_derived_from(tmp_path: Path) -> None:
    problem = tiny_problem(tmp_path, epochs=2)
    search_bilevel(problem)
    for record in history(tmp_path):
        derived = derive_genotype(
            record["alpha"],
            record["beta"],
            record["gamma"],
            features=tuple(CHANNELS),
            channels=problem.config.channels,
            length=problem.config.length,
        )
        assert derived.to_dict()["cells"] == record["cells"]
        assert [len(row) for row in record["alpha"]] == [3, 4]


def planted(scores: list[float]) -> Any:
    left = iter(scores)

    def evaluate(
        network: nn.Module, forward: Any, samples: Any, objective: Any, device: Any
    ) -> Evaluation:
        logits: Tensor = torch.zeros(len(samples), 2)
        return Evaluation(0.5, next(left), logits)

    return evaluate


@pytest.mark.parametrize(
    ("scores", "best"),
    [([0.9, 0.5, 0.7], 1), ([0.1, 0.8, 0.3], 2), ([0.1, 0.6, 0.6], 2), ([0.1, 0.2, 0.9], 3)],
)
def test_the_earliest_epoch_with_the_best_validation_score_is_kept(
    tmp_path: Path, scores: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "evaluate", planted(scores))
    # The architecture learns fast, so that the genotypes of the epochs differ.
    problem = tiny_problem(tmp_path, epochs=3, arch_lr=5.0)
    outcome = search_bilevel(problem)
    records = history(tmp_path)
    assert (outcome.best_epoch, outcome.validation) == (best, scores[best - 1])
    assert outcome.genotype.to_dict()["cells"] == records[best - 1]["cells"]
    assert any(record["cells"] != records[best - 1]["cells"] for record in records)


def test_the_score_is_that_of_the_supernet_in_evaluation_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    problem = tiny_problem(tmp_path, epochs=1, dropout=0.5)
    outcome = search_bilevel(problem)
    assert watch.supernet is not None
    assert not watch.supernet.training
    batch = problem.validation.batch(torch.arange(len(problem.validation)))
    inputs, labels = batch.inputs, batch.labels
    with torch.no_grad():
        logits = watch.supernet(inputs)
    assert outcome.validation == pytest.approx(problem.head.score(logits, labels))
    record = history(tmp_path)[0]
    assert record["validation_loss"] == pytest.approx(
        float(problem.head.loss(logits, labels)), rel=1e-4
    )
    assert record["alpha"] == asdict(watch.supernet.architecture_weights())["alpha"]


def test_the_same_seed_gives_the_same_history(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        search_bilevel(tiny_problem(tmp_path / name))
    assert history(tmp_path / "a") == history(tmp_path / "b")


@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_search_goes_on_to_the_same_end(tmp_path: Path, after: int) -> None:
    whole = search_bilevel(tiny_problem(tmp_path / "whole", epochs=3))
    problem = tiny_problem(tmp_path / "stopped", epochs=3)
    save, saves = problem.checkpoint.save, 0

    class StoppedError(Exception):
        pass

    def stop(*args: Any) -> None:
        nonlocal saves
        save(*args)
        saves += 1
        if saves == after:
            raise StoppedError

    problem.checkpoint.save = stop  # type: ignore[method-assign]
    with pytest.raises(StoppedError):
        search_bilevel(problem)
    torch.manual_seed(99)
    again = search_bilevel(tiny_problem(tmp_path / "stopped", epochs=3))
    assert replace(again, seconds=whole.seconds) == whole
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")


def test_every_step_of_a_search_counts_for_compiling_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def compiled(self: Runtime, network: nn.Module, steps: float) -> nn.Module:
        asked.append(steps)
        return network

    monkeypatch.setattr(Runtime, "compiled", compiled)
    problem = tiny_problem(tmp_path)
    search_bilevel(problem)
    size = problem.config.batch_size
    an_epoch = len(problem.train) // size + len(problem.validation) // size
    assert asked == [problem.config.epochs * an_epoch]


def test_it_learns_what_needs_both_modalities(tmp_path: Path) -> None:
    outcome = search_bilevel(tiny_problem(tmp_path, epochs=40, max_lr=0.01, dropout=0.0))
    assert outcome.validation > 0.8
    losses = [record["train_loss"] for record in history(tmp_path)]
    assert losses[-1] < losses[0] / 2


def test_a_multilabel_search_keeps_the_threshold_of_its_best_epoch(tmp_path: Path) -> None:
    outcome = search_bilevel(tiny_problem(tmp_path, kind="multilabel", epochs=3))
    record = history(tmp_path)[outcome.best_epoch - 1]
    assert outcome.threshold == record["threshold"]


def test_divergence_is_told_and_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search: the loss is (nan|inf) in epoch 1"):
        search_bilevel(tiny_problem(tmp_path, max_lr=1e30))
    assert not (tmp_path / "history.jsonl").exists()
