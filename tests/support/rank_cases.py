"""Run by every rank: trainings and searches, and what ranks tell each other; prints what differs.

Printed by rank zero as JSON: of each case the largest difference between the ranks.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tiny_problems import CPU, tiny_problem
from torch import Tensor, nn

from bmnas.features.samples import Batch
from bmnas.machine.distributed import (
    barrier,
    broadcast,
    gather,
    gather_rows,
    is_rank_zero,
    joined,
    mean,
    rank,
    split_batches,
)
from bmnas.strategies import STRATEGIES
from bmnas.training.fit import fit
from bmnas.training.heads import head_for
from bmnas.training.metrics import evaluate
from bmnas.training.settings import Recipe


class Pictures:
    """Eleven pictures of three classes; a batch of five leaves one sample out of two parts."""

    at_once = 11

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(11) % 3
        self.pictures = torch.randn(11, 3, 6, 6, generator=generator)
        self.pictures += 2.0 * self.labels[:, None, None, None]

    def __len__(self) -> int:
        return 11

    def batch(self, chosen: Tensor, device: torch.device | None = None) -> Batch:
        return Batch([self.pictures[chosen]], self.labels[chosen])


class Net(nn.Module):
    """BatchNorm, dropout, and a layer that no forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 3))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x))
        return y


def fitted() -> list[Tensor]:
    torch.manual_seed(rank())  # each begins elsewhere, all go on from rank zero's
    net = Net()
    head, samples = head_for("multiclass"), Pictures()
    records = fit(
        net,
        lambda inputs: net(inputs[0]),
        samples,
        head,
        Recipe(20, 5, 1e-2, 1e-6, 1e-2),
        stage="case",
    )
    found = evaluate(net, lambda inputs: net(inputs[0]), samples, head, CPU.device)
    assert found.logits.shape == (11, 3)
    # Chance is a third; one process alone reaches the same.
    assert found.score > 0.7
    scores = [[r["train_loss"], r["train_score"]] for r in records] + [[found.loss, found.score]]
    return [torch.tensor(scores), found.logits, *net.state_dict().values()]


def searched(seeds: int) -> list[Tensor]:
    with tempfile.TemporaryDirectory() as own:
        folder = Path(broadcast(own))
        problem = tiny_problem(folder, dropout=0.2, epochs=2, rerank=1, batch_size=15)
        outcome = STRATEGIES["bmnas"].search(replace(problem, seeds=seeds))
        chosen = torch.tensor(list(json.dumps(outcome.genotype.to_dict()).encode()))
        barrier()
        return [torch.tensor(outcome.validation), chosen]


def told() -> list[Tensor]:
    """What ranks tell each other, from unequal parts."""
    rows = gather_rows(torch.full((rank() + 1,), rank()))
    assert rows.tolist() == [0, 1, 1]
    assert gather(f"rank {rank()}") == ["rank 0", "rank 1"]
    assert broadcast("Zürich" if is_rank_zero() else None) == "Zürich"
    assert float(mean(torch.tensor(float(rank())))) == 0.5
    order = torch.randperm(10) if is_rank_zero() else torch.zeros(10, dtype=torch.int64)
    own = torch.cat(list(split_batches(order.split(5))))
    assert len(own) == 4
    assert len(gather_rows(own).unique()) == 8
    draws = gather(torch.rand(8))
    assert not torch.equal(*draws)  # other masks on every rank
    return [rows]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "told": told,
    "fit": fitted,
    "search": lambda: searched(1),
    "seeds": lambda: searched(2),
}


def main() -> None:
    with joined():
        apart = {}
        for name, case in CASES.items():
            one, two = gather(case())
            apart[name] = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
        if is_rank_zero():
            print(json.dumps(apart), flush=True)
    os._exit(0)  # as the command line does: gloo's threads may abort a process that ends slowly


if __name__ == "__main__":
    main()
