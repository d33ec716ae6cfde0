from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny_problems import CPU
from tiny_tasks import CONFIG, tiny_task
from tiny_words import tiny_questions
from torch import Tensor, nn

import bmnas.strategies.rerank as module_of_rerank
from bmnas.backbones import Backbone
from bmnas.machine.costs import count_parameters
from bmnas.machine.errors import UserError
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.latency import LatencyTable, Trace
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork, channels_of
from bmnas.pipeline.network_costs import NetworkCosts
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.report.record import load_run
from bmnas.report.tables import run_tables
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.registry import build_fusion, space_named, space_of
from bmnas.strategies import strategy_named
from bmnas.strategies.front import ranks
from bmnas.strategies.target import Aim, Cost, Target, Within
from bmnas.training.heads import head_for
from bmnas.training.settings import Weighing

EMPTY = 0.5


class Weights:
    """A timer by which a graph takes half a millisecond, and one for each thousand weights."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, module: nn.Module, inputs: Sequence[Tensor]) -> float:
        self.calls += 1
        with torch.no_grad():
            module(*inputs)  # it has to run on what it is given
        return EMPTY + count_parameters(module) / 1000


def backbones_of(task: Any, folder: Path) -> dict[str, Backbone]:
    context = RunContext(Run(folder), task, CONFIG, 0, runtime=CPU)
    return {name: found.backbone for name, found in unimodal_networks(context).items()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of trained backbones."""
    folder = tmp_path_factory.mktemp("kept")
    backbones_of(tiny_task(), folder)
    return folder / "backbones"


def costs_of(kept: Path, folder: Path, timer: Weights) -> NetworkCosts:
    table, task = LatencyTable(folder / "latencies.json", timer), tiny_task()
    return NetworkCosts(task, backbones_of(task, kept.parent), head_for(task.kind), table)


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("space", ["cells", "mfas", "trees", "fusions", "ensembles"])
def test_a_prediction_adds_up_what_the_whole_network_consists_of(
    tmp_path: Path, kept: Path, space: str, heads: bool
) -> None:
    """By weights the parts are the whole, so none of them is missing and none counts twice."""
    costs = costs_of(kept, tmp_path, Weights())
    backbones = backbones_of(tiny_task(), kept.parent)
    looked_in = space_named(space).of(list(channels_of(backbones)), {"length": 4, "channels": 8})
    for number in range(5):
        found = looked_in.sample(Random(number))
        fusion = build_fusion(found, channels_of(backbones), classes=4, dropout=0.0)
        weighing = Weighing(dict.fromkeys([FUSION, *backbones], 1.0)) if heads else None
        whole = count_parameters(MultimodalNetwork(backbones, fusion, weighing))
        predicted = costs.predict(found, heads=heads)
        assert predicted.parameters == whole
        assert predicted.latency_ms == pytest.approx(EMPTY + whole / 1000)
        measured = costs.measure(found, heads=heads)
        assert measured.latency_ms == pytest.approx(predicted.latency_ms)


def test_parts_are_timed_once_and_kept_in_a_file(tmp_path: Path, kept: Path) -> None:
    timer = Weights()
    costs, again = (costs_of(kept, tmp_path, timer) for _ in range(2))
    space = space_named("cells").of(("m0.1", "m0.2", "m1.1"), {"length": 4, "channels": 8})
    found = [space.sample(Random(number)) for number in range(20)]
    first = [costs.predict(genotype, heads=False) for genotype in found]
    calls = timer.calls
    # Three backbones and pools, projections, operations, ends of Cells, a head, what is served.
    assert calls < 30
    assert [again.predict(genotype, heads=False) for genotype in found] == first
    assert timer.calls == calls
    file = tmp_path / "latencies.json"
    content = json.loads(file.read_text())
    assert any(name.startswith("ConcatFC 4x8 4x8") for name in content["parts"])
    assert any(name.startswith("m0 to stage 1") for name in content["parts"])
    # Of another machine nothing counts.
    content["machine"]["processor"] = "another"
    file.write_text(json.dumps(content))
    costs_of(kept, tmp_path, timer).predict(found[0], heads=False)
    assert timer.calls > calls


def test_whole_networks_correct_what_parts_say(tmp_path: Path, kept: Path) -> None:
    class Slower(Weights):
        def __call__(self, module: nn.Module, inputs: Sequence[Tensor]) -> float:
            whole = any(isinstance(inner, MultimodalNetwork) for inner in module.modules())
            return (1.25 if whole else 1.0) * super().__call__(module, inputs)

    costs = costs_of(kept, tmp_path, Slower())
    space = space_named("cells").of(("m0.1", "m0.2", "m1.1"), {"length": 4, "channels": 8})
    one, other = (space.sample(Random(number)) for number in range(2))
    uncorrected = costs.predict(other, heads=False).latency_ms
    costs.compare([(one, True)])
    assert uncorrected is not None
    assert costs.predict(other, heads=False).latency_ms == pytest.approx(1.25 * uncorrected)


def test_a_trace_tells_parts_from_what_is_between() -> None:
    linear, other = nn.Linear(3, 3), nn.Linear(3, 3)

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return other(linear(x).relu() + x)

    trace = Trace()
    x = torch.ones(1, 3)
    assert trace.run(Network(), [linear, other], (x,)).shape == (1, 3)
    assert trace.between == 2
    # What runs the same is one part of the table.
    assert [part.module for part in trace.parts] == [linear, other]
    assert len({part.key for part in trace.parts}) == 1
    assert not linear._forward_hooks


class Lengths:
    """Costs by the number of features that are read."""

    def predict(self, architecture: Architecture, *, heads: bool) -> Cost:
        count = len(architecture.live_features())
        return Cost(count + 0.5 * heads, 100 * count)

    measure = predict


def aim(most: float, *, parameters: float | None = None, heads: bool = True) -> Aim:
    target = Target(1.05 * most, parameters, Weights())  # latencies have 5 % of room
    return Aim(target, Lengths(), lambda found: found, (True, False) if heads else (False,))


FEATURES = ("m0.1", "m0.2", "m1.1", "m1.2")


@pytest.mark.parametrize("name", ["cells", "trees", "mfas"])
def test_what_is_left_of_a_space_is_within_the_limits(name: str) -> None:
    whole = space_named(name).of(FEATURES, {})
    left, draw = Within.of(whole, aim(2)), Random(0)

    def few(genotype: Any) -> bool:
        return len(genotype.live_features()) <= 2

    found = [left.sample(draw) for _ in range(20)]
    assert all(map(few, found))
    assert not all(few(whole.sample(draw)) for _ in range(20))
    around = left.neighbours(found[0])
    assert around
    assert around == [g for g in whole.neighbours(found[0]) if few(g)]
    assert all(few(left.mutated(genotype, draw)) for genotype in found)
    pairs = zip(found[::2], found[1::2], strict=True)
    assert all(few(child) for one, other in pairs for child in left.crossed(one, other, draw))
    assert left.sizes() == whole.sizes()
    if left.levels:
        assert all(map(few, left.unfold([], 0)))


def test_unimodal_logits_are_added_where_there_is_room() -> None:
    space = space_named("trees").of(FEATURES, {})
    found = space.sample(Random(0))
    count = len(found.live_features())
    assert aim(count + 0.5).form(found) is True
    assert aim(count + 0.4).form(found) is False
    assert aim(count - 0.1).form(found) is None
    assert aim(count + 1, parameters=100 * count - 1).form(found) is None
    assert aim(count + 1, heads=False).form(found) is False


def test_what_no_network_keeps_is_refused_with_the_least_there_is() -> None:
    space = space_named("cells").of(FEATURES, {})
    aim(2).check(space)
    with pytest.raises(UserError, match=r"--max-latency-ms 1\.995: .* the fastest takes 2 ms"):
        aim(1.9).check(space)
    with pytest.raises(UserError, match=r"--max-parameters 50: .* smallest has 200 weights"):
        aim(9, parameters=50).check(space)
    with pytest.raises(UserError, match=r"of 6,000 networks that were drawn none is within it"):
        Within.of(space, aim(1.9)).sample(Random(0))


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_more_than_zero(limit: float) -> None:
    with pytest.raises(UserError, match=r"--max-parameters: .* expected more than 0"):
        Target(max_parameters=limit)


def test_a_limit_of_latency_needs_a_timer() -> None:
    with pytest.raises(UserError, match=r"bmnas_export\.time_module"):
        Target(2.0)


Search = Callable[..., Any]


@pytest.fixture
def searched(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Searches in a folder for a target, with backbones that are there."""
    monkeypatch.setattr(module_of_rerank, "SCREENED", 30)
    config = CONFIG.override("search", rerank=1)
    config = config.override("train", unimodal_logits=True, freeze_backbones=True)

    def run(folder: Path, target: Target | None, strategy: str, **options: Any) -> Any:
        given = {"strategy": strategy, "config": config, "target": target, **options}
        return search(tiny_task(), run=folder, backbones=kept, runtime=CPU, **given)

    return run


@pytest.mark.parametrize("strategy", ["bmnas", "random", "mfas", "evolution", "regularised"])
def test_every_strategy_keeps_limits(
    tmp_path: Path, kept: Path, strategy: str, searched: Search
) -> None:
    costs = costs_of(kept, tmp_path, Weights())
    features = list(channels_of(backbones_of(tiny_task(), kept.parent)))
    sizes = {**dataclasses.asdict(CONFIG.search), "final_inner_size": 8, "width": 6}
    space = space_named(strategy_named(strategy).SPACE).of(features, sizes)
    drawn = [space.final(space.sample(Random(n))) for n in range(50)]
    each = sorted(costs.predict(genotype, heads=False).latency_ms or 0 for genotype in drawn)
    limit = 1.2 * each[0]
    # Networks of MFAS all read the last features, which is most of what they take.
    assert limit < each[-1] or strategy == "mfas"
    found = searched(tmp_path / "limited", Target(limit, timer=Weights()), strategy)
    served = found.metrics["search"]["target"]
    assert 1.05 * served["measured_ms"] <= limit
    assert served["predicted_ms"] == pytest.approx(served["measured_ms"])
    if strategy != "random":
        return
    trained = train(found.run / "genotype.json", tiny_task(), runtime=CPU)
    assert EMPTY + sum(trained.metrics["parameters"].values()) / 1000 <= limit + 1e-9
    assert load_run(found.run).metrics.search is not None


def test_a_search_that_goes_on_times_nothing_anew(tmp_path: Path, searched: Search) -> None:
    timer = Weights()
    whole = searched(tmp_path, Target(1e9, timer=timer), "random")
    calls = timer.calls
    (tmp_path / "genotype.json").unlink()
    with pytest.raises(UserError, match=r"target\.max_latency_ms 1000000000\.0, received null"):
        searched(tmp_path, None, "random", existing="resume")
    resumed = searched(tmp_path, Target(1e9, timer=timer), "random", existing="resume")
    assert timer.calls == calls
    assert resumed.genotype == whole.genotype


def test_a_network_that_turns_out_slower_is_passed_over(tmp_path: Path, searched: Search) -> None:
    class Slower(Weights):
        """Whole networks of the best candidate take longer than their parts say."""

        def __call__(self, module: nn.Module, inputs: Sequence[Tensor]) -> float:
            found = super().__call__(module, inputs)
            whole = any(isinstance(inner, MultimodalNetwork) for inner in module.modules())
            return 1e7 if whole and count_parameters(module) == self.slow else found

        slow = -1

    free = searched(tmp_path / "free", Target(1e6, timer=Weights()), "random")
    timer = Slower()
    timer.slow = free.metrics["search"]["target"]["parameters"]
    found = searched(tmp_path / "other", Target(1e6, timer=timer), "random")
    assert found.genotype != free.genotype
    assert found.metrics["search"]["target"]["measured_ms"] <= 1e6


def test_without_room_a_training_adds_no_unimodal_logits(tmp_path: Path, searched: Search) -> None:
    target = Target(max_parameters=1e9)
    free = searched(tmp_path / "free", target, "random")
    assert free.metrics["search"]["target"]["unimodal_logits"]
    # Heads of unimodal networks have 132 weights each, and the last stages some thousands.
    target = Target(max_parameters=free.metrics["search"]["target"]["parameters"] - 5000)
    found = searched(tmp_path / "limited", target, "random")
    served = found.metrics["search"]["target"]
    assert not served["unimodal_logits"]
    recorded = json.loads((found.run / "config.json").read_text())
    assert not recorded["train"]["unimodal_logits"]
    wanted = CONFIG.override("train", unimodal_logits=True)
    with pytest.raises(UserError, match="no room for unimodal logits"):
        train(found.run / "genotype.json", tiny_task(), config=wanted, runtime=CPU)
    trained = train(found.run / "genotype.json", tiny_task(), runtime=CPU)
    assert sum(trained.metrics["parameters"].values()) <= target.limits["max_parameters"]


def test_a_supernet_alone_keeps_no_limit(tmp_path: Path) -> None:
    config = CONFIG.override("search", rerank=0)
    with pytest.raises(UserError, match=r"search\.rerank: received 0 with limits"):
        search(
            tiny_task(),
            run=tmp_path,
            config=config,
            target=Target(max_parameters=1e6),
            runtime=CPU,
        )
    assert not (tmp_path / "config.json").exists()


def test_spaces_of_limits_keep_to_what_is_final() -> None:
    """A candidate of MFAS is narrower than what is trained in the end."""
    space = space_named("mfas").of(FEATURES, {"inner_size": 4, "final_inner_size": 64})
    found = space.sample(Random(0))

    class Widths(Lengths):
        def predict(self, architecture: Architecture, *, heads: bool) -> Cost:
            return Cost(float(dataclasses.asdict(architecture)["inner_size"]), 1)  # type: ignore[call-overload]

    wide = Aim(Target(66, timer=Weights()), Widths(), space.final, (False,))
    assert not wide.keeps(found)
    assert dataclasses.replace(wide, target=Target(1.05 * 64, timer=Weights())).keeps(found)
    assert space_of(found).NAME == "mfas"


def test_a_front_is_of_networks_that_train_as_they_were_judged(
    tmp_path: Path, searched: Search
) -> None:
    found = searched(tmp_path / "run", Target(timer=Weights(), pareto=True), "random")
    front = found.metrics["search"]["front"]
    values = [(-p["score"], p["latency_ms"], p["parameters"]) for p in front]
    assert ranks(values) == [0] * len(front)
    assert {point["unimodal_logits"] for point in front} == {True, False}
    for number in {1, len(front)}:
        point, run = front[number - 1], found.run / "front" / str(number)
        trained = train(run / "genotype.json", tiny_task(), runtime=CPU)
        assert (trained.metrics.get("weighing") is not None) == point["unimodal_logits"]
        assert sum(trained.metrics["parameters"].values()) <= point["parameters"]
        if not point["unimodal_logits"]:
            assert sum(trained.metrics["parameters"].values()) == point["parameters"]
    titles = [table.title for table in run_tables(load_run(found.run).metrics)]
    assert "Front, validation" in titles
    searched(tmp_path / "run", None, "random", existing="overwrite")
    assert not (tmp_path / "run" / "front").exists()


def test_a_front_keeps_limits(tmp_path: Path, searched: Search) -> None:
    free = searched(tmp_path / "free", Target(timer=Weights(), pareto=True), "random")
    fastest, *_, slowest = free.metrics["search"]["front"]
    limit = 1.2 * fastest["latency_ms"]
    assert slowest["latency_ms"] > limit
    target = Target(limit, timer=Weights(), pareto=True)
    found = searched(tmp_path / "limited", target, "random")
    points = found.metrics["search"]["front"]
    assert points
    assert all(1.05 * point["latency_ms"] <= limit for point in points)


def test_a_search_for_a_front_trains_what_leads_to_it(
    tmp_path: Path, searched: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the few networks of least loss, and among them the fastest of those screened."""
    monkeypatch.setattr(module_of_rerank, "_FRONT", 5)
    costs: list[float] = []
    predict = Aim.predict

    def noted(self: Aim, candidate: Architecture, *, heads: bool) -> Cost:
        found = predict(self, candidate, heads=heads)
        costs.append(found.latency_ms or 0)
        return found

    monkeypatch.setattr(Aim, "predict", noted)
    found = searched(tmp_path, Target(timer=Weights(), pareto=True), "bmnas")
    assert found.metrics["search"]["candidates"] == 5
    lines = (tmp_path / "rerank.jsonl").read_text().splitlines()
    forms = [form for line in lines for form in json.loads(line)["forms"]]
    assert min(form["latency_ms"] for form in forms) == min(costs)


@pytest.mark.parametrize("boxes", [False, True])
def test_networks_of_tokens_are_limited_too(
    tmp_path: Path, boxes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_rerank, "SCREENED", 30)
    task = tiny_questions(images_by="windows" if boxes else None)
    config = CONFIG.override("search", rerank=1)
    found = search(
        task,
        run=tmp_path,
        strategy="mmnas",
        config=config,
        target=Target(1e9, timer=Weights()),
        runtime=CPU,
    )
    served = found.metrics["search"]["target"]
    assert served["measured_ms"] == pytest.approx(EMPTY + served["parameters"] / 1000)
    assert served["predicted_ms"] == pytest.approx(served["measured_ms"])
    parts = json.loads((tmp_path / "latencies.json").read_text())["parts"]
    # Of the many blocks of a network, as many rows as there are operations.
    assert 2 <= sum(name.startswith("Block") for name in parts) <= 9
