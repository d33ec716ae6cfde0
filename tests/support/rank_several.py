"""Run by every rank: a search of several seeds alone, then together; prints how far apart."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_problems import tiny_problem
from torch import Tensor

from bmnas.machine.distribution import ranks
from bmnas.machine.distribution.launch import together
from bmnas.strategies import STRATEGIES, Outcome


def searched() -> tuple[Outcome, list[Tensor]]:
    """Return what three seeds find, and of every epoch and seed the losses and alpha."""
    with tempfile.TemporaryDirectory() as folder:
        # A batch of 15 does not divide by two.
        problem = tiny_problem(Path(folder), dropout=0.3, epochs=2, rerank=1, batch_size=15)
        outcome = STRATEGIES["bmnas"](replace(problem, seeds=3))
        lines = (Path(folder) / "history.jsonl").read_text() if ranks.writer() else ""
    records = [json.loads(line) for line in lines.splitlines()]
    return outcome, [_numbers(member) for record in records for member in record["members"]]


def _numbers(member: dict[str, Any]) -> Tensor:
    losses = [member[f"{name}_loss"] for name in ("train", "architecture", "validation")]
    return torch.tensor([*losses, *(x for row in member["alpha"] for x in row)])


def main() -> None:
    outcome, alone = searched()
    with together():
        found, numbers = searched()
        assert found == outcome
        if ranks.writer():
            assert len(alone) == len(numbers) == 6
            pairs = zip(alone, numbers, strict=True)
            print(max(float((a - b).abs().max()) for a, b in pairs))


if __name__ == "__main__":
    main()
