from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from bmnas_export import PrecisionError
from bmnas_export.judge import Judge
from bmnas_export.measure import SampleInputs
from bmnas_serve.session import Session
from torch import Tensor

from bmnas.training.heads import head_for


def session(logits: Tensor) -> Session:
    """Return what answers sample i with row i of ``logits``."""

    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        return {"logits": logits[arrays["number"]].numpy()}

    return cast(Session, SimpleNamespace(run=run, manifest=SimpleNamespace()))


def judge(kind: str, logits: Tensor, labels: Tensor) -> Judge:
    class Inputs:
        task, info = SimpleNamespace(kind=kind), SimpleNamespace(head=head_for(kind))

        def __init__(self) -> None:
            self.labels = labels

        def __len__(self) -> int:
            return len(labels)

        def rows(self, chosen: Tensor) -> dict[str, Tensor]:
            return {"number": chosen}

    return Judge(session(logits), cast(SampleInputs, Inputs()))


def test_what_is_lost_and_what_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(200) % 3
    right = torch.eye(3)[labels] * 4
    judged = judge("multiclass", right, labels)
    assert (len(judged), judged.reference) == (200, 1.0)
    wrong = right.clone()
    wrong[7] = torch.tensor([0.0, 0.0, 5.0])  # its class is 1
    wrong[8, 0] = 1.0
    monkeypatch.setattr(judged, "open", lambda model: session(wrong))
    found = judged(Path("model"))
    assert (found.score, found.samples, found.agree) == (0.995, 200, 199)
    assert found.lost == pytest.approx(0.5)
    assert found.max_scaled_difference == 1.25
    assert judged.accept(Path("model"), 0.6) == found.to_dict()
    with pytest.raises(PrecisionError, match=r"model: scores 99\.50 .* 0\.4 points; 199 are"):
        judged.accept(Path("model"), 0.4)


def test_no_number_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.ones(3, dtype=torch.int64)
    judged = judge("multiclass", torch.eye(3)[labels], labels)
    overflown = torch.eye(3)[labels]
    overflown[0, 0] = torch.inf  # the others decide as before
    monkeypatch.setattr(judged, "open", lambda model: session(overflown))
    with pytest.raises(
        PrecisionError, match="of 3 validation samples 1 get logits that are NaN or inf"
    ):
        judged.accept(Path("model"), 100.0)


def test_of_a_gallery_some_pairs_are_judged() -> None:
    first, second = torch.meshgrid(torch.arange(60), torch.arange(50), indexing="ij")
    match = (first % 50 == second).long()
    labels = torch.stack([match, first, second], -1).flatten(0, 1)
    # Every pair that belongs together is found, and a tenth of the others is wrong.
    logits = torch.where((labels[:, 0] > 0) | (torch.arange(3000) % 10 == 3), 1.0, -1.0)[:, None]
    judged = judge("matching", logits, labels)
    assert len(judged) == 512
    assert 0.85 < judged.reference < 0.95
