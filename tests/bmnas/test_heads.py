"""Heads of the modalities: their formula, their losses, and that a file gives them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.architecture import NamedFusion, build_fusion
from bmnas.cost import count_parameters
from bmnas.errors import UserError
from bmnas.genotype import known_genotype
from bmnas.heads import ModalityHeads
from bmnas.metrics import Objective
from bmnas.network import FusionNetwork
from bmnas.runs import Run

RAW = {"a.1": 3, "a.2": 4, "b.1": 5, "b.2": 6}
# It reads a.1 and b.2; the heads read the last features, a.2 and b.2.
GENOTYPE = known_genotype("concat_fc", ("a.1", "b.2"), channels=7, length=2)


def network(classes: int = 3) -> ModalityHeads:
    torch.manual_seed(0)
    built = build_fusion(GENOTYPE, RAW, classes=classes, dropout=0.0, modality_heads=True)
    assert isinstance(built, ModalityHeads)
    return built


def test_logits_are_those_of_the_fusion_and_of_each_modality_summed() -> None:
    built = network().eval()
    assert built.features == ("a.1", "a.2", "b.2")
    pooled = [torch.randn(4, 2, RAW[name]) for name in built.features]
    plain = FusionNetwork(GENOTYPE, RAW, classes=3, dropout=0.0).eval()
    plain.load_state_dict(built.fusion.state_dict())

    expected = plain([pooled[0], pooled[2]]).detach().numpy()
    for head, feature in zip(built.heads, (pooled[1], pooled[2]), strict=True):
        weight, bias = (p.detach().numpy() for p in head.parameters())
        expected = expected + feature.numpy().reshape(4, -1) @ weight.T + bias
    logits = built(pooled)
    assert isinstance(logits, torch.Tensor)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert count_parameters(built.classifier) == (7 * 2 + 1 + 4 * 2 + 1 + 6 * 2 + 1) * 3


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_each_head_has_a_loss_of_its_own(kind: str) -> None:
    built = network().train()
    output = built([torch.randn(4, 2, RAW[name]) for name in built.features])
    objective = built.objective(Objective(kind))  # type: ignore[arg-type]
    total, *heads = output
    assert torch.allclose(total, torch.stack(heads).sum(0))
    labels = torch.tensor([0, 2, 1, 0])
    if kind == "multilabel":
        labels = torch.eye(3)[labels]
        losses = [F.binary_cross_entropy_with_logits(head, labels) for head in heads]
    else:
        losses = [F.cross_entropy(head, labels) for head in heads]
    assert objective.loss(output, labels).item() == pytest.approx(sum(losses).item())  # type: ignore[union-attr]


def test_hand_made_fusions_and_those_with_heads_of_their_own_stay_what_they_are() -> None:
    gmu = build_fusion(NamedFusion("gmu", 8, 2), RAW, classes=3, dropout=0.0, modality_heads=True)
    assert not isinstance(gmu, ModalityHeads)


def test_one_modality_has_nothing_to_be_set_beside() -> None:
    one = known_genotype("sum", ("a.1", "a.2"), channels=4, length=2)
    with pytest.raises(UserError, match="received the modalities a, expected two or more"):
        build_fusion(one, {"a.1": 3, "a.2": 4}, classes=2, dropout=0.0, modality_heads=True)


def test_a_trained_network_keeps_its_heads(tmp_path: Path) -> None:
    task, config = tiny_task(), CONFIG.override("train", modality_heads=True)
    found = bmnas.search(task, run=tmp_path / "run", config=config)
    result = bmnas.train(found.run / "genotype.json", task)
    loaded = bmnas.load_network(result.network, task)

    assert loaded.modality_heads
    assert isinstance(loaded.network.fusion, ModalityHeads)
    assert loaded.network.modalities == ("m0", "m1")
    read = Run(result.run).read_metrics()["parameters"]["classifier"]
    assert read == count_parameters(loaded.network.fusion.classifier)
