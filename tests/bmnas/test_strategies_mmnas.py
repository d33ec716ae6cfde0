"""The search of MMnas: single paths, gates, their schedule, what decides in the end."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from command_line import bmnas_command
from tiny_runs import svg_texts
from tiny_tasks import CONFIG, write_tiny_task
from tiny_words import RAW, TOKENS, tiny_questions, token_problem, token_samples

import bmnas
from bmnas.features.samples import samples_per_epoch
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import count_parameters
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config
from bmnas.report.history import weights_parts
from bmnas.report.record import load_run
from bmnas.report.style import figure_of
from bmnas.spaces.mmnas.genotype import DECODER, MMnasGenotype
from bmnas.spaces.mmnas.network import MMnasNetwork
from bmnas.spaces.mmnas.space import MMnasSpace, operations_of
from bmnas.spaces.mmnas.supernet import Choice, Supernet
from bmnas.strategies import evaluator, gates, rerank
from bmnas.strategies.gates import judging, parts_of, relax, search_with_gates
from bmnas.strategies.mmnas import MMnas, MMnasConfig
from bmnas.training.together import Trained


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerank, "SCREENED", 20)


SPACE = MMnasSpace(TOKENS, encoder=1, decoder=1, width=8, head=4, hidden=2)


def supernet(space: MMnasSpace = SPACE, dropout: float = 0.0) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space, RAW, classes=2, dropout=dropout)


def test_a_supernet_has_the_published_number_of_weights() -> None:
    space = MMnasSpace(TOKENS, 12, 18, 256, 64)
    with torch.device("meta"):
        net = supernet(space)
    alphas = sum(alpha.numel() for alpha in net.architecture_parameters())
    blocks = count_parameters(net.encoder) + count_parameters(net.decoder) - alphas
    assert (blocks, alphas) == (33_122_376, 12 * 2 + 18 * 4)


def test_a_supernet_computes_the_network_that_is_chosen() -> None:
    space = MMnasSpace(TOKENS, 2, 3, 8, 4, 2)
    net, batch = supernet(space).eval(), token_samples(8).batch(torch.arange(8))
    found = space.made(["ffn", "sa", "rsa", "ga", "ffn"])
    own = MMnasNetwork(found, RAW, classes=2, dropout=0.0).eval()
    state = net.state_dict()
    places = {
        f"{chain}.{n}.": f"{chain}.{n}.blocks.{net.pools[n + skipped].index(op)}."
        for chain, skipped in (("encoder", 0), ("decoder", 2))
        for n, op in enumerate(getattr(found, chain))
    }
    for name, tensor in own.state_dict().items():
        prefix = next((p for p in places if name.startswith(p)), "")
        tensor.copy_(state[places.get(prefix, "") + name.removeprefix(prefix)])
    net.choose(operations_of(found))
    logits = net(batch.inputs, batch.masks)
    torch.testing.assert_close(logits, own(batch.inputs, batch.masks))
    for choice in net.choices:
        choice.gated = True
    torch.testing.assert_close(net(batch.inputs, batch.masks), logits)


@pytest.mark.parametrize("chosen", [("sa", "ga"), ("ffn", "rsa"), ("ffn", "ffn")])
def test_the_gradient_of_alpha_is_that_of_the_gates(
    chosen: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    net, batch = supernet().double(), token_samples(6).batch(torch.arange(6))
    inputs = [x.double() for x in batch.inputs]
    for alpha in net.architecture_parameters():
        torch.nn.init.normal_(alpha)
    net.choose(chosen)
    for choice in net.choices:
        choice.gated = True

    def loss() -> torch.Tensor:
        return F.cross_entropy(net(inputs, batch.masks), batch.labels)

    loss().backward()
    found = [alpha.grad for alpha in net.architecture_parameters()]

    # dL / dg_j by differences, of gates that are anything; then the chain to alpha in full.
    gates = [torch.eye(len(c.blocks), dtype=torch.float64)[c.chosen] for c in net.choices]
    by_choice = {id(c): g for c, g in zip(net.choices, gates, strict=True)}

    def mixed(self: Choice, x: torch.Tensor, around: Any) -> torch.Tensor:
        own = by_choice[id(self)]
        return torch.stack([g * b(x, around) for g, b in zip(own, self.blocks, strict=True)]).sum(0)

    monkeypatch.setattr(Choice, "forward", mixed)
    step = 1e-6
    for choice, gate, gradient in zip(net.choices, gates, found, strict=True):
        slopes = []
        for j in range(len(gate)):
            gate[j] += step
            above = float(loss().detach())
            gate[j] -= 2 * step
            slopes.append((above - float(loss().detach())) / (2 * step))
            gate[j] += step
        p = choice.alpha.detach().softmax(0).tolist()
        count = range(len(p))
        wanted = [sum(slopes[j] * p[j] * ((i == j) - p[i]) for j in count) for i in count]
        assert gradient is not None
        assert gradient.tolist() == pytest.approx(wanted, abs=1e-7)


def test_alpha_begins_at_the_published_probabilities() -> None:
    net = supernet(MMnasSpace(TOKENS, 12, 18, 8, 4))
    net.begin_at(operations_of(MMnasSpace(TOKENS, 12, 18, 8, 4).start()))
    largest = [max(row) for row in net.probabilities()]
    assert largest == pytest.approx([0.8808] * 12 + [0.7113] * 18, abs=1e-4)
    assert net.likeliest() == ["sa", "ffn"] * 6 + ["rsa", "ga", "ffn"] * 6


def history(folder: Path, name: str = "history") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_alpha_waits_and_then_learns_from_samples_of_its_own(tmp_path: Path) -> None:
    own = {"warm_up": 0.5, "alpha_every": 2}
    problem = token_problem(tmp_path, own, epochs=4, batch_size=8)
    _, _, (train, held_out) = relax(problem, SPACE.of(TOKENS, vars(problem.own)))
    assert (len(train), len(held_out)) == (64, 16)
    assert not set(train.rows["image"].tolist()) & set(held_out.rows["image"].tolist())
    records = history(tmp_path)
    assert [record["alpha_steps"] for record in records] == [0, 0, 4, 4]
    assert [("architecture_loss" in record) for record in records] == [False, False, True, True]
    assert records[0]["probabilities"] == records[1]["probabilities"]
    assert records[1]["probabilities"] != records[2]["probabilities"]
    assert [record["best"] for record in records] == [False, False, False, True]


def test_the_split_may_follow_the_order_of_the_file() -> None:
    train, held_out = parts_of(token_samples(80), "image", MMnasConfig(split="order"))
    assert train.rows["question"].tolist() == list(range(64))
    assert held_out.rows["question"].tolist() == list(range(64, 80))


@pytest.mark.parametrize("stale", [False, True])
def test_a_step_trains_one_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    nets: list[Supernet] = []
    build, draw = Supernet.__init__, Supernet.draw
    seen: list[tuple[dict[str, torch.Tensor], list[int], bool]] = []

    def init(net: Supernet, *args: Any, **kwargs: Any) -> None:
        build(net, *args, **kwargs)
        nets.append(net)

    def drawn(net: Supernet, *, gated: bool = False) -> None:
        draw(net, gated=gated)
        state = {k: v.detach().clone() for k, v in net.state_dict().items()}
        seen.append((state, [choice.chosen for choice in net.choices], gated))

    monkeypatch.setattr(Supernet, "__init__", init)
    monkeypatch.setattr(Supernet, "draw", drawn)
    own = {"stale_momentum": stale, "start": "even", "alpha_every": 2}
    relax(token_problem(tmp_path, own, epochs=3, batch_size=16), SPACE)
    blocks = {f"{chain}.0.": n for n, chain in enumerate(("encoder", "decoder"))}
    moved_elsewhere = False
    for (before, path, gated), (after, _, _) in pairwise(seen):
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        if gated:
            assert changed <= {"encoder.0.alpha", "decoder.0.alpha"}
            continue
        assert not any(name.endswith("alpha") for name in changed)
        own_blocks = {f"{prefix}blocks.{path[n]}." for prefix, n in blocks.items()}
        others = {
            name
            for name in changed
            if name.startswith(tuple(blocks)) and not name.startswith(tuple(own_blocks))
        }
        assert stale or not others
        moved_elsewhere |= bool(others)
        assert any(name.startswith("output") for name in changed)
    assert moved_elsewhere == stale
    assert {gated for _, _, gated in seen} == {True, False}


@pytest.mark.parametrize("steps", ["cosine", "official"])
def test_the_rate_follows_its_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    clips: list[float] = []
    clip = gates.clipped_adam
    monkeypatch.setattr(gates, "clipped_adam", lambda *a: clips.append(a[2]) or clip(*a))
    own = {"steps": steps, "gpu_batch": 5}
    relax(token_problem(tmp_path, own, epochs=5, max_lr=0.004, min_lr=0.0), SPACE)
    assert clips == [1 / 5 if steps == "official" else 1]
    rates = [record["learning_rate"] for record in history(tmp_path)]
    if steps == "official":
        assert rates == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.004])
    else:
        assert rates[0] == 0.004
        assert rates == sorted(rates, reverse=True)


def test_short_trainings_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts, fit = [], evaluator.fit_together

    def noted(
        networks: Any, train: Any, validation: Any, head: Any, training: Any, **more: Any
    ) -> list[Trained]:
        parts.append(training.part)
        return fit(networks, train, validation, head, training, **more)

    monkeypatch.setattr(evaluator, "fit_together", noted)
    # Rivals are not for it, wherever the settings come from.
    problem = token_problem(tmp_path, epochs=2, rerank=4, rivals=True, candidate_epochs=2)
    outcome = search_with_gates(problem)
    space = problem.space_for(MMnas)
    assert isinstance(space, MMnasSpace)
    records = history(tmp_path, "rerank")
    first = [MMnasGenotype.from_dict(r["genotype"]) for r in records]
    assert first[0] == space.made(history(tmp_path)[-1]["operations"])
    assert {*space.cycles()} < {*first}
    assert [found.decoder for found in space.cycles()] == [
        ("rsa", "ga", "ffn"),
        ("ga", "rsa", "ffn"),
        ("ga", "sa", "ffn"),
    ]
    assert len(first) == len(set(first)) == 5
    assert parts == [0.5] * 5
    assert outcome.genotype in first
    assert set(outcome.stages) == {"search_weights", "validation", "screening", "rerank"}
    assert outcome.candidates == len(records) == 5
    assert outcome.stages["rerank"].samples == 5 * 2 * samples_per_epoch(
        len(problem.train), problem.config.batch_size
    )


def test_two_pairs_that_do_not_match_judge_for_each_that_does() -> None:
    match = torch.eye(60).flatten() > 0
    draw = torch.Generator()
    found = judging(3600, match, draw)
    assert len(set(found.tolist())) == 180
    assert int(match[found].sum()) == 60
    assert len(judging(3600, torch.arange(3600) % 2 > 0, draw)) == 999
    assert len(judging(3600, None, draw)) == 1000


def test_without_them_alpha_decides_and_the_network_may_be_wider(tmp_path: Path) -> None:
    outcome = search_with_gates(token_problem(tmp_path, {"final_width": 16}, epochs=1))
    last = history(tmp_path)[-1]
    assert [*operations_of(outcome.genotype)] == last["operations"]
    assert (outcome.genotype.width, outcome.validation) == (16, last["validation_score"])


@pytest.mark.parametrize("saves", [2, 4, 6])
def test_a_search_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    changes = {"epochs": 3, "rerank": 2, "candidate_epochs": 1}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    wanted = search_with_gates(token_problem(whole, {"steps": "official"}, **changes))
    save, count = Checkpoint.save, iter(range(100))

    def stopping(self: Checkpoint, *args: Any) -> None:
        save(self, *args)
        if next(count) + 1 == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        search_with_gates(token_problem(stopped, {"steps": "official"}, **changes))
    found = search_with_gates(token_problem(stopped, {"steps": "official"}, **changes))
    assert (found.genotype, found.validation) == (wanted.genotype, wanted.validation)
    for name in ("history.jsonl", "rerank.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_from_the_data_to_a_genotype_that_is_trained(tmp_path: Path) -> None:
    run, task = tmp_path / "run", tiny_questions()
    config = CONFIG.override("search", rerank=1)
    found = bmnas.search(task, run=run, config=config, strategy="mmnas")
    assert isinstance(found.genotype, MMnasGenotype)
    assert found.genotype.features == ("question.1", "image.3")
    assert "rsa" not in found.genotype.decoder
    assert found.metrics["search"]["strategy"] == "mmnas"
    (part,) = weights_parts(load_run(run))
    shown = svg_texts(figure_of(part))
    assert {"encoder 1", "encoder 2", "decoder 1", "decoder 3", *DECODER} <= set(shown)
    trained = bmnas.train(run / "genotype.json", task, run=run)
    assert bmnas.load_network(trained.network).genotype == found.genotype
    again = bmnas.search(task, run=run, config=config, strategy="mmnas", existing="resume")
    assert again.genotype == found.genotype


def test_the_recipe_of_the_paper_is_the_facts(tmp_path: Path) -> None:
    config = Config().as_in_the_paper("mmnas")
    own = config.strategies["mmnas"]
    assert (own.split, own.start, own.stale_momentum) == ("order", "mcan", True)
    assert (own.norm, own.steps, config.train.steps) == ("official",) * 3
    assert (own.alpha_every, own.alpha_lr, own.held_out, own.warm_up) == (5, 0.1, 0.2, 0.2)
    assert config.search.rerank == 0
    write_tiny_task(tmp_path)
    words = ("search", "--task", tmp_path / "task.toml", "--recipe", "paper", "--strategy")
    assert "--strategy evolution too" in bmnas_command(*words, "evolution").err
    with pytest.raises(UserError, match="received space cells, which has no gates"):
        MMnas.check_space("cells")
