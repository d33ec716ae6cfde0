"""A search space of one's own, in this file alone: searched, trained, exported, drawn.

A weighted sum: each feature that is chosen gets a linear layer, and their outputs are added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pytest
import torch
from bmnas_export import export_bundle
from command_line import bmnas_command
from tiny_tasks import CONFIG, tiny_task
from torch import Tensor, nn

import bmnas
from bmnas.machine.errors import UserError
from bmnas.spaces.architecture import Architecture, wrong
from bmnas.spaces.description import Description, Node, feature_nodes
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.registry import SPACES, register_space
from bmnas.spaces.space import Encoded, SearchSpace


@dataclass(frozen=True)
class Chosen(Architecture):
    """The features that are added up."""

    FORMAT: ClassVar[str] = "weighted-sum/1"

    features: tuple[str, ...]
    length: int
    chosen: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if len(self.chosen) < 2 or not set(self.chosen) <= set(self.features):
            raise wrong("chosen", list(self.chosen), "two or more of the features")

    def live_features(self) -> tuple[str, ...]:
        return self.chosen

    def summary(self) -> str:
        return f"sum of {len(self.chosen)} features"


class WeightedSum(Fusion):
    CLASSIFIER = "layers"

    def __init__(self, genotype: Chosen, raw: Mapping[str, int], classes: int) -> None:
        super().__init__(genotype.chosen, genotype.length)
        self.layers = nn.ModuleList(nn.Linear(raw[name], classes) for name in self.features)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        each = [layer(x.mean(1)) for layer, x in zip(self.layers, pooled, strict=True)]
        return torch.stack(each).sum(0)


@dataclass(frozen=True)
class SumSpace(SearchSpace[Chosen]):
    NAME: ClassVar[str] = "sums"
    GENOTYPE: ClassVar[type[Architecture]] = Chosen
    READS_MEANS: ClassVar[bool] = True

    features: tuple[str, ...]
    length: int = 8

    @classmethod
    def build(
        cls, genotype: Chosen, channels_raw: Mapping[str, int], *, classes: int, dropout: float
    ) -> Fusion:
        return WeightedSum(genotype, channels_raw, classes)

    @classmethod
    def describe(cls, genotype: Chosen) -> Description:
        nodes = feature_nodes(genotype.features, genotype.chosen)
        head = Node("sum", "Weighted sum", "linear", "output", reads=genotype.chosen)
        return Description(genotype.summary(), genotype.features, (*nodes, head))

    def sample(self, draw: Random) -> Chosen:
        count = draw.randint(2, len(self.features))
        return self._made(draw.sample(self.features, count))

    def neighbours(self, genotype: Chosen) -> list[Chosen]:
        changed = [set(genotype.chosen) ^ {name} for name in self.features]
        return [self._made(names) for names in changed if len(names) > 1]

    def encode(self, genotype: Chosen) -> Encoded:
        return (tuple(int(name in genotype.chosen) for name in self.features),)

    def _made(self, names: Any) -> Chosen:
        chosen = tuple(name for name in self.features if name in names)
        return Chosen(self.features, self.length, chosen)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_space(SumSpace)
    yield
    del SPACES["sums"]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("strategy", ["random", "evolution"])
def test_a_space_of_its_own_goes_all_the_way(tmp_path: Path, strategy: str) -> None:
    task, run = tiny_task(), tmp_path / "run"
    found = bmnas.search(task, run=run, config=CONFIG, strategy=strategy, space="sums")
    assert isinstance(found.genotype, Chosen)
    assert (run / "architecture.svg").is_file()
    shown = bmnas_command("show", run)
    assert shown.status == 0
    assert "sum of " in shown.out
    if strategy == "random":
        trained = bmnas.train(run / "genotype.json", task, run=run)
        network = bmnas.load_network(trained.network)
        assert network.genotype == found.genotype
        assert export_bundle(network, task, tmp_path / "bundle").parity.passed


def test_a_space_without_levels_is_told_to_those_that_need_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received space sums, which has no levels"):
        bmnas.search(tiny_task(), run=tmp_path, config=CONFIG, strategy="mfas", space="sums")


def test_a_name_or_format_that_is_taken_is_refused() -> None:
    class Other(SumSpace):
        NAME = "other"

    with pytest.raises(UserError, match="the format 'weighted-sum/1' is taken"):
        register_space(Other)


def test_a_genotype_of_a_space_that_nobody_registered_is_told(tmp_path: Path) -> None:
    genotype = SumSpace(("a.1", "b.1")).sample(Random(0))
    genotype.save(tmp_path / "genotype.json")
    space = SPACES.pop("sums")
    printed = bmnas_command("show", tmp_path / "genotype.json")
    SPACES["sums"] = space
    assert printed.status == 2
    assert "format: received 'weighted-sum/1', expected 'bmnas.genotype/1' or" in printed.err
