"""Ensembles: the mean of several networks, their losses, their file, where they come from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import tiny_network, tiny_task
from tiny_problems import tiny_problem

from bmnas.machine.costs import count_parameters
from bmnas.machine.errors import UserError
from bmnas.pipeline.multimodal import MultimodalNetwork, parameter_counts
from bmnas.pipeline.run_folder import best_cells
from bmnas.pipeline.trained import TrainedNetwork, load_network
from bmnas.spaces.architecture import Architecture, GenotypeError
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.ensembles.space import Ensemble
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.mmnas.known import known_sequence
from bmnas.spaces.registry import architecture_from_dict, build_fusion, describe
from bmnas.strategies import rerank
from bmnas.strategies.bilevel import search_bilevel
from bmnas.strategies.problem import SearchProblem
from bmnas.strategies.target import Aim, Cost, Target
from bmnas.training.heads import head_for

CHANNELS = {"m0.1": 3, "m0.2": 5, "m1.1": 4}
CELLS = known_genotype("sum", ("m0.2", "m1.1"), channels=4, length=2)
# One of each kind: cells, a fusion of one loss, two with losses of their own.
NETWORKS: tuple[Architecture, ...] = (
    CELLS,
    NamedFusion("gmu", 4, 2),
    NamedFusion("mtut", 4, 2),
    NamedFusion("centralnet", 4, 2),
)


def pooled(names: tuple[str, ...]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    drawn = {name: torch.randn(8, 2, width) for name, width in CHANNELS.items()}
    return [drawn[name] for name in names]


def test_the_logits_are_the_mean_of_all_networks() -> None:
    fusion = build_fusion(Ensemble(NETWORKS), CHANNELS, classes=3, dropout=0.5).eval()
    each = [network(pooled(network.features)) for network in fusion.networks]  # type: ignore[union-attr, operator]
    torch.testing.assert_close(fusion(pooled(fusion.features)), torch.stack(each).mean(0))
    assert count_parameters(fusion) == sum(map(count_parameters, fusion.networks))  # type: ignore[arg-type]


def test_each_network_learns_by_its_own_loss_as_if_it_were_alone() -> None:
    head, labels = head_for("multiclass"), torch.arange(8) % 3
    torch.manual_seed(0)
    fusion = build_fusion(Ensemble(NETWORKS), CHANNELS, classes=3, dropout=0.0).train()
    fusion.loss(head, fusion(pooled(fusion.features)), labels).backward()
    for network in fusion.networks:  # type: ignore[union-attr]
        joint = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        network.zero_grad()
        network.loss(head, network(pooled(network.features)), labels).backward()  # type: ignore[operator]
        alone = [p.grad for p in network.parameters() if p.grad is not None]
        assert len(joint) == len(alone) > 0
        for one, other in zip(joint, alone, strict=True):
            torch.testing.assert_close(one * len(NETWORKS), other)


TASK = tiny_task(("vector", "vector"))


def joined(*, unimodal_logits: bool) -> TrainedNetwork:
    cells = known_genotype("sum", ("m0.1", "m1.2"), channels=4, length=2)
    found = Ensemble((cells, NamedFusion("mtut", 4, 2)))
    return tiny_network(TASK, found, unimodal_logits=unimodal_logits)


def six(network: MultimodalNetwork) -> list[torch.Tensor]:
    test = TASK.samples("test")[:6]
    return [
        torch.from_numpy(network.backbone(m.name).encode(m.data[m.rows_of(test)]))
        for m in TASK.modalities
    ]


def test_in_a_weighted_whole_all_losses_stay() -> None:
    network = joined(unimodal_logits=True).network
    x, head, labels = six(network), head_for("multiclass"), torch.arange(6) % 3
    torch.manual_seed(3)
    found = network.train().loss(head, network(*x), labels)
    torch.manual_seed(3)
    features, alone = network.read(*x)
    output = network.fusion([features[name] for name in network.features])
    own = network.fusion.loss(head, output, labels)
    torch.testing.assert_close(found, own + head.summed_loss(tuple(alone.values()), labels))


def test_a_trained_one_is_kept_in_its_file(tmp_path: Path) -> None:
    trained = joined(unimodal_logits=False)
    trained.save(tmp_path / "network.safetensors")
    loaded = load_network(tmp_path / "network.safetensors", TASK)
    assert loaded.architecture == trained.architecture
    x = six(trained.network)
    torch.testing.assert_close(loaded.network(*x), trained.network(*x))
    assert parameter_counts(loaded.network) == parameter_counts(trained.network)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([CELLS], "networks: received 1, expected 2 to 16 of them"),
        ([CELLS] * 17, "networks: received 17, expected 2 to 16"),
        (
            [CELLS, NamedFusion("gmu", 4, 3)],
            r"networks: received \[2, 3\], expected networks of one",
        ),
        ([CELLS, known_sequence("mcan", ("m0.1", "m1.1"))], r"networks\[1\].format: received"),
        ([CELLS, Ensemble((CELLS, CELLS))], r"networks\[1\].format: received 'bmnas.ensemble/1'"),
        ([CELLS, 3], r"networks\[1\]: received 3, expected an object"),
    ],
)
def test_what_cannot_be_averaged_is_refused_in_one_line(networks: Any, message: str) -> None:
    data = {
        "format": "bmnas.ensemble/1",
        "networks": [n.to_dict() if isinstance(n, Architecture) else n for n in networks],
    }
    with pytest.raises(GenotypeError, match=f"^file.json: .*{message}") as caught:
        architecture_from_dict(data, "file.json")
    assert "\n" not in str(caught.value)


def test_a_wrong_network_is_named_with_its_place() -> None:
    data = Ensemble(NETWORKS).to_dict()
    data["networks"][1]["name"] = "gmo"
    with pytest.raises(GenotypeError, match=r"^file.json: networks\[1\]: received fusion 'gmo'"):
        architecture_from_dict(data, "file.json")


def test_a_drawing_shows_every_network_on_the_same_features() -> None:
    nodes = describe(Ensemble((CELLS, CELLS, NamedFusion("gmu", 4, 2)))).nodes
    assert [node.name for node in nodes if node.kind == "feature"] == ["m0.2", "m1.1"]
    assert nodes[-1].reads == ("network1", "network2", "network3")


def test_a_search_returns_the_best_of_its_last_comparison_together(tmp_path: Path) -> None:
    settings = {"rerank": 1, "rivals": True, "candidate_epochs": 2}
    single = search_bilevel(tiny_problem(tmp_path / "one", **settings))
    outcome = search_bilevel(tiny_problem(tmp_path / "three", ensemble=3, **settings))
    found = outcome.genotype
    assert isinstance(found, Ensemble)
    assert len(found.networks) == 3
    assert found.networks[0] == single.genotype
    assert outcome.validation == single.validation


def test_as_many_networks_as_a_limit_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirms(_: SearchProblem, genotype: Architecture) -> bool:
        return not isinstance(genotype, Ensemble) or len(genotype.networks) < 3

    monkeypatch.setattr(SearchProblem, "confirms", confirms)
    problem = tiny_problem(tmp_path, ensemble=3, rerank=1, rivals=True, candidate_epochs=2)
    assert len(search_bilevel(problem).genotype.networks) == 2  # type: ignore[attr-defined]


def test_within_limits_none_loses_the_unimodal_logits_it_was_compared_with(
    tmp_path: Path,
) -> None:
    class Costs:
        """A millisecond for each network, five for all unimodal ones."""

        def predict(self, architecture: Architecture, *, heads: bool) -> Cost:
            each = architecture.networks if isinstance(architecture, Ensemble) else (architecture,)
            return Cost(len(each) + 5.0 * heads, 1)

        measure = predict

    def averaged(limit: float) -> tuple[int, bool | None]:
        target = Target(max_latency_ms=limit, timer=lambda *_: 0.0)
        aim = Aim(target, Costs(), lambda found: found, (True, False))
        problem = dataclasses.replace(tiny_problem(tmp_path), aim=aim)
        found = rerank._averaged(problem, NETWORKS[:3])
        each = found.networks if isinstance(found, Ensemble) else (found,)
        return len(each), aim.form(found)

    assert averaged(6.5) == (1, True)
    assert averaged(7.5) == (2, True)
    assert averaged(3.5) == (3, False)


@pytest.mark.parametrize("found", [Ensemble((NamedFusion("gmu", 4, 2), CELLS)), NETWORKS[1]])
def test_cells_of_a_search_that_found_something_else(found: Architecture, tmp_path: Path) -> None:
    found.save(tmp_path / "genotype.json")
    records = [
        {"worth": 0.9, "genotype": NETWORKS[1].to_dict()},
        {"worth": 0.5, "genotype": CELLS.to_dict()},
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "rerank.jsonl").write_text(text)
    assert best_cells(tmp_path / "genotype.json") == CELLS


def test_a_search_without_cells_is_told(tmp_path: Path) -> None:
    NETWORKS[1].save(tmp_path / "genotype.json")
    with pytest.raises(UserError, match=r"genotype.json: received fusion gmu.*expected Cells"):
        best_cells(tmp_path / "genotype.json")
