"""Run by every rank: each case alone first, then together; prints how far the two are apart."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_problems import CPU, tiny_problem
from torch import Tensor, nn

from bmnas.backbones.masking import SpectrogramMasking
from bmnas.features.samples import Batch
from bmnas.machine.distribution import ranks
from bmnas.machine.distribution.launch import together
from bmnas.machine.progress import Silent
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.registry import build_fusion
from bmnas.strategies import STRATEGIES
from bmnas.training.fit import Group, Recipe, fit
from bmnas.training.heads import head_for
from bmnas.training.metrics import evaluate


class Pictures:
    """Eleven pictures of three classes in float64, which leaves no room for rounding."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pictures = torch.randn(11, 3, 6, 6, generator=generator, dtype=torch.float64)
        self.labels = torch.arange(11) % 3

    def __len__(self) -> int:
        return 11

    def batch(self, chosen: Tensor) -> Batch:
        return Batch([self.pictures[chosen]], self.labels[chosen])


class Net(nn.Module):
    """BatchNorm over pictures and rows, with a momentum and without, dropout, random masks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.masking = SpectrogramMasking()
        self.drop = nn.Dropout(0.3)
        self.rows = nn.BatchNorm1d(16, momentum=None, affine=False)
        self.linear = nn.Linear(16, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean(1)
        x = self.drop(self.masking(x)).flatten(1)
        y: Tensor = self.linear(self.rows(x))
        return y


def fitted() -> list[Tensor]:
    torch.manual_seed(0)
    net = Net().double()
    head, samples = head_for("multiclass"), Pictures()
    records = fit(
        net,
        lambda inputs: net(inputs[0]),
        [Group(list(net.parameters()), 1e-2)],
        samples,
        head,
        Recipe(3, 5, 1e-6, 1e-2),
        device=CPU.device,
        checkpoint=None,
        progress=Silent(),
        stage="case",
    )
    found = evaluate(net, lambda inputs: net(inputs[0]), samples, head, CPU.device)
    scores = [[r["train_loss"], r["train_score"]] for r in records] + [[found.loss, found.score]]
    assert all("forward" not in vars(module) for module in net.modules())
    return [torch.tensor(scores), found.logits, *net.state_dict().values()]


class PooledPairs:
    """Eleven pairs of pooled features of three classes in float64."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.x = torch.randn(2, 11, 4, 3, generator=draw, dtype=torch.float64)
        self.labels = torch.arange(11) % 3

    def __len__(self) -> int:
        return 11

    def batch(self, chosen: Tensor) -> Batch:
        return Batch([self.x[0, chosen], self.x[1, chosen]], self.labels[chosen])


def fused() -> list[Tensor]:
    """Fusions with losses of their own, which a share of a batch alone does not know."""
    found, head = [], head_for("multiclass")
    for name in ("centralnet", "mtut"):
        torch.manual_seed(0)
        what = NamedFusion(name, 4, 4)
        fusion = build_fusion(what, {"a.1": 3, "b.1": 3}, classes=3, dropout=0.3).double()
        records = fit(
            fusion,
            fusion,
            [Group(list(fusion.parameters()), 1e-2)],
            PooledPairs(),
            head,
            Recipe(3, 5, 1e-6, 1e-2),
            device=CPU.device,
            checkpoint=None,
            progress=Silent(),
            stage="case",
            loss=functools.partial(fusion.loss, head),
        )
        losses = torch.tensor([record["train_loss"] for record in records])
        found += [losses, *fusion.state_dict().values()]
    return found


def searched() -> list[Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        # A batch of 15 does not divide by two.
        problem = tiny_problem(Path(folder), dropout=0.2, epochs=2, rerank=1, batch_size=15)
        outcome = STRATEGIES["bmnas"].search(problem)
        lines = (Path(folder) / "history.jsonl") if ranks.writer() else None
        records = [json.loads(x) for x in lines.read_text().splitlines()] if lines else []
        numbers = [
            [r[key] for key in ("train_loss", "architecture_loss", "validation_loss")]
            + [x for row in r["alpha"] for x in row]
            for r in records
        ]
        assert len(list(Path(folder).iterdir())) == (4 if ranks.writer() else 0)
        chosen = torch.tensor(list(json.dumps(outcome.genotype.to_dict()).encode()))
        return [torch.tensor(numbers), torch.tensor(outcome.validation), chosen]


def told() -> list[Tensor]:
    """What ranks tell each other, from unequal parts."""
    own = ranks.span(7)
    part = torch.arange(7)[own.start : own.stop]
    text = ranks.agreed_text("Zürich" if ranks.writer() else "")
    rows = torch.cat([part, torch.full((ranks.rank(),), -1)])
    return [ranks.gathered(part), torch.tensor(list(text.encode())), (rows >= 0).sum() * 0]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "fit": fitted,
    "search": searched,
    "told": told,
    "fusions": fused,
}


def main() -> None:
    alone = {name: case() for name, case in CASES.items()}
    with together():
        apart = {}
        for name, case in CASES.items():
            # Files, and so the history of a search, are the writer's.
            pairs = zip(alone[name], case(), strict=True)
            if ranks.writer():
                apart[name] = max(float((a - b).abs().max()) for a, b in pairs)
        if ranks.writer():
            print(json.dumps(apart))


if __name__ == "__main__":
    main()
