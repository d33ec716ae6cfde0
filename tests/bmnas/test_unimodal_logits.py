"""Unimodal logits beside those of a found network: the sum, its losses, and what a file keeps."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import tiny_networks
import torch
import torch.nn.functional as F
from backbone_cases import TinyNet, modality
from tiny_tasks import CONFIG, tiny_task

import bmnas
from bmnas.architecture import NamedFusion, takes_unimodal_logits
from bmnas.backbones import build_backbone
from bmnas.genotype import Genotype, known_genotype
from bmnas.joint import raw_samples
from bmnas.metrics import Objective, evaluate
from bmnas.mfas.space import Layer, MFASGenotype
from bmnas.network import MultimodalNetwork
from bmnas.runs import Run
from bmnas.tasks.task import Modality

FAMILIES = ("image", "waveform", "sequence", "vector", "text", "clip", "tokens")


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_and_logits_are_those_of_two_passes(kind: str) -> None:
    part = tiny_networks.tiny_modality("m", kind, 12, np.random.default_rng(0))
    backbone = build_backbone(part, classes=3, rows=part.data).eval()
    x = torch.from_numpy(backbone.encode(part.data))
    features, logits = backbone.features_and_logits(x)
    torch.testing.assert_close(features, backbone.features(x))
    torch.testing.assert_close(logits, backbone(x))
    assert logits.shape == (12, 3)


def test_a_users_module_gives_its_own_logits() -> None:
    rows = modality("image").data
    net = TinyNet()
    part = Modality("p", "image", rows, backbone=net, features=("first", "second"))
    backbone = build_backbone(part, classes=3, rows=rows).eval()
    x = torch.from_numpy(backbone.encode(rows))
    features, logits = backbone.features_and_logits(x)
    torch.testing.assert_close(features, backbone.features(x))
    torch.testing.assert_close(logits, backbone(x))


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
    plain = MultimodalNetwork(copy.deepcopy(dict(network.backbones.items())), network.fusion)  # type: ignore[arg-type]
    expected = plain.eval()(*x[:2])
    for name, each in zip(network.modalities, x, strict=True):
        expected = expected + network.backbone(name)(each)
    torch.testing.assert_close(network(*x), expected)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_in_training_each_head_has_a_loss_of_its_own(kind: str) -> None:
    task = tiny_networks.tiny_task(("vector", "vector"))
    network = joined(task).train()
    total, *heads = network(*inputs(network, task))
    torch.testing.assert_close(total, torch.stack(heads).sum(0))
    assert len(heads) == 3
    labels = torch.arange(9) % 3
    objective = network.objective(Objective(kind))  # type: ignore[arg-type]
    if kind == "multilabel":
        labels = torch.eye(3)[labels]
        losses = [F.binary_cross_entropy_with_logits(head, labels) for head in heads]
    else:
        losses = [F.cross_entropy(head, labels) for head in heads]
    assert objective.loss((total, *heads), labels).item() == pytest.approx(sum(losses).item())  # type: ignore[union-attr]


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
    assert network.unimodal_logits
    assert network.modalities == ("m0", "m1")
    assert isinstance(loaded.genotype, Genotype)
    without = bmnas.load_network(plain.network, task).network
    assert not without.unimodal_logits
    fusion, alone = network.fusion.state_dict(), without.fusion.state_dict()
    # The logits of frozen backbones are constants, which no gradient of the fusion knows.
    equal = all(torch.equal(fusion[name], alone[name]) for name in alone)
    assert equal is freeze

    metrics = Run(result.run).read_metrics()
    score = evaluate(
        network,
        lambda given: network(*given),
        raw_samples(task, network, "test"),
        Objective(task.kind),
        torch.device("cpu"),
    ).score
    assert score == metrics["test"]["score"]
