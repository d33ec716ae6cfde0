"""Unimodal logits beside those of a found network: the sum, its losses, and what a file keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
import torch.nn.functional as F
from backbone_cases import TinyNet, modality
from tiny_tasks import CONFIG, tiny_task
from torch import nn

import bmnas
from bmnas.backbones import Backbone, build_backbone
from bmnas.backbones.base import PooledHead
from bmnas.backbones.words import MaskedHead
from bmnas.machine.costs import count_parameters
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork, raw_samples
from bmnas.pipeline.run_folder import Run
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.mfas.genotype import Layer, MFASGenotype
from bmnas.spaces.registry import takes_unimodal_logits
from bmnas.tasks.kinds import LabelScale
from bmnas.tasks.task import Modality
from bmnas.training.heads import head_for
from bmnas.training.metrics import evaluate
from bmnas.training.settings import Weighing

FAMILIES = ("image", "waveform", "sequence", "vector", "text", "clip", "tokens")


def by_hand(backbone: Backbone, x: torch.Tensor) -> torch.Tensor:
    """Return the logits of the pooled or masked head from the last feature."""
    feature, head = backbone.features(x)[-1], backbone.head
    if isinstance(head, MaskedHead):
        content = x != (-1 if backbone.pad is None else backbone.pad)
        lengths = content.sum(1, keepdim=True)
        pooled = torch.cat([feature.sum(-1) / lengths.clamp(min=1), feature.amax(-1)], dim=1)
        return head.linear(pooled)  # type: ignore[no-any-return]
    assert isinstance(head, PooledHead)
    return head.linear(feature.flatten(2).mean(-1) if feature.dim() > 2 else feature)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_and_logits_come_from_one_pass(kind: str) -> None:
    part = tiny_networks.tiny_modality("m", kind, 12, np.random.default_rng(0))
    backbone = build_backbone(part, classes=3, rows=part.data).eval()
    x = torch.from_numpy(backbone.encode(part.data))
    features, logits = backbone.features_and_logits(x)
    torch.testing.assert_close(features, backbone.features(x))
    torch.testing.assert_close(logits, by_hand(backbone, x))
    assert logits.shape == (12, 3)


def users(network: nn.Module, rows: np.ndarray, classes: int) -> Backbone:
    part = Modality("p", "image", rows, backbone=network, features=("first", "second"))
    return build_backbone(part, classes=classes, rows=rows).eval()


def test_a_users_module_gives_its_own_logits() -> None:
    rows, network = modality("image").data, TinyNet()
    backbone = users(network, rows, classes=3)
    assert isinstance(backbone.head, nn.Identity)
    x = torch.from_numpy(backbone.encode(rows))
    features, logits = backbone.features_and_logits(x)
    torch.testing.assert_close(features, backbone.features(x))
    torch.testing.assert_close(logits, network.eval()(backbone.prepare(x)))  # type: ignore[operator]
    before = count_parameters(backbone)
    backbone.drop_unused()
    assert count_parameters(backbone) == before


def test_of_a_users_module_with_a_new_head_nothing_stays_that_the_head_does_not_need() -> None:
    rows = modality("image").data
    backbone = users(TinyNet(), rows, classes=5)
    assert isinstance(backbone.head, PooledHead)
    x = torch.from_numpy(backbone.encode(rows))
    before, logits = count_parameters(backbone), backbone(x)
    backbone.drop_unused()
    assert count_parameters(backbone) < before
    torch.testing.assert_close(backbone(x), logits)


def test_a_backbone_without_a_head_has_no_logits_to_add() -> None:
    network = tiny_networks.tiny_network(tiny_networks.tiny_task()).network
    parts = {name: network.backbone(name) for name in network.modalities}
    with pytest.raises(ValueError, match="the backbone of m0 has no head of its own"):
        MultimodalNetwork(parts, network.fusion, Weighing({FUSION: 1.0, "m0": 1.0}))


def joined(task: bmnas.Task) -> MultimodalNetwork:
    """Return a network that reads images and vectors, and not the text, of ``task``."""
    return tiny_networks.tiny_network(task, unimodal_logits=True).network


def inputs(network: MultimodalNetwork, task: bmnas.Task) -> list[torch.Tensor]:
    test = task.samples("test")[:9]
    return [
        torch.from_numpy(network.backbone(m.name).encode(m.data[m.rows_of(test)]))
        for m in task.modalities
    ]


def test_logits_of_all_modalities_are_added_also_of_one_that_no_cell_reads() -> None:
    task = tiny_networks.tiny_task(("image", "vector", "text"))
    network = joined(task)
    assert network.modalities == ("m0", "m1", "m2")
    assert {name.partition(".")[0] for name in network.features} == {"m0", "m1"}
    x = inputs(network, task)
    plain = MultimodalNetwork(dict(network.backbones.items()), network.fusion)  # type: ignore[arg-type]
    expected = plain.eval()(*x[:2])
    for name, each in zip(network.modalities, x, strict=True):
        expected = expected + network.backbone(name)(each)
    torch.testing.assert_close(network(*x), expected)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_in_training_each_head_has_a_loss_of_its_own(kind: str) -> None:
    task = tiny_networks.tiny_task(("vector", "vector"))
    network = joined(task).train()
    total, *heads = network(*inputs(network, task))
    torch.testing.assert_close(total, torch.stack(heads).sum(0))
    assert len(heads) == 3
    labels = torch.arange(9) % 3
    head = head_for(kind, scale=LabelScale((0.0,) * 3, (1.0,) * 3))
    if kind == "regression":
        labels = torch.eye(3)[labels]
        losses = [F.huber_loss(head, labels) for head in heads]
    elif kind == "multilabel":
        labels = torch.eye(3)[labels]
        losses = [F.binary_cross_entropy_with_logits(head, labels) for head in heads]
    else:
        losses = [F.cross_entropy(head, labels) for head in heads]
    assert network.loss(head, (total, *heads), labels).item() == pytest.approx(sum(losses).item())  # type: ignore[union-attr]


def test_hand_made_fusions_and_those_with_heads_of_their_own_take_none() -> None:
    cells = known_genotype("sum", ("a.1", "b.1"), channels=4, length=2)
    assert takes_unimodal_logits(cells)
    assert not takes_unimodal_logits(NamedFusion("gmu", 8, 2))
    layers = (Layer(("a.1", "b.1"), "relu"),)
    assert not takes_unimodal_logits(MFASGenotype(("a.1", "b.1"), 2, 4, layers))


@pytest.mark.parametrize("freeze", [True, False])
def test_a_training_adds_them_and_its_file_keeps_them(freeze: bool, tmp_path: Path) -> None:
    task, config = tiny_task(), CONFIG.override("train", freeze_backbones=freeze)
    found = bmnas.search(task, run=tmp_path / "run", config=config)
    file = found.run / "genotype.json"
    adding = config.override("train", unimodal_logits=True)
    result = bmnas.train(file, task, run=tmp_path / "adding", config=adding)
    plain = bmnas.train(file, task, run=tmp_path / "plain", config=config)

    loaded = bmnas.load_network(result.network, task)
    network = loaded.network
    assert network.weighing is not None
    assert set(network.modalities) <= {"m0", "m1"}
    # After so short a training the backbones may do as well alone: then nothing else is left.
    stays = FUSION in network.weighing.weights
    assert isinstance(loaded.genotype, Genotype) is stays
    assert stays or not freeze
    without = bmnas.load_network(plain.network, task).network
    assert without.weighing is None
    fusion, alone = network.fusion.state_dict(), without.fusion.state_dict()
    # Frozen backbones and heads have nothing to learn: the fusion is trained as without.
    if freeze:
        assert all(torch.equal(fusion[name], alone[name]) for name in alone)

    metrics = Run(result.run).read_metrics().to_dict()
    score = evaluate(
        network,
        lambda given: network(*given),
        raw_samples(task, network, "test"),
        head_for(task.kind),
        torch.device("cpu"),
    ).score
    assert score == metrics["test"]["score"]
