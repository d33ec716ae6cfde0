"""Every hand-made fusion goes through the same bundle as a found network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bmnas_export import export_bundle
from bmnas_export.graph import export_graph
from bmnas_export.measure import TOLERANCE
from bmnas_export.prepare import prepare, reference_network
from bmnas_serve import manifest as manifests
from bmnas_serve.errors import BundleError
from bmnas_serve.manifest import TensorSpec
from engine_builds import build_engine
from tiny_networks import roughen, tiny_network, tiny_task
from torch import Tensor, nn

from bmnas.pipeline.multimodal import MultimodalNetwork, channels_of
from bmnas.pipeline.trained import load_network, read_description
from bmnas.report.record import load_bundle
from bmnas.report.tables import bundle_tables
from bmnas.spaces.architecture import Architecture
from bmnas.spaces.cells.known import FUSION_MODULES, late_pairs, module_genotype
from bmnas.spaces.fusion import Fusion
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.spaces.registry import build_fusion
from bmnas.training.heads import head_for

CLASSES = 3


class SideBySide(Fusion):
    """Several fusions of the same features as one network: one export tries them all."""

    def __init__(self, architectures: Sequence[Architecture], raw: Mapping[str, int]) -> None:
        super().__init__(raw, 4)
        self.parts = nn.ModuleList(
            build_fusion(each, raw, classes=CLASSES, dropout=0.1) for each in architectures
        )

    @property
    def classifier(self) -> nn.Module:
        return self.parts

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return the logits of all parts, (B, parts * K)."""
        given = dict(zip(self.features, pooled, strict=True))
        return torch.cat([part([given[n] for n in part.features]) for part in self.parts], dim=1)


def test_every_fusion_of_three_modalities_matches_in_onnxruntime(tmp_path: Path) -> None:
    task = tiny_task(("sequence", "vector", "vector"))
    whole = tiny_network(task, NamedFusion("centralnet", 6, 4)).network
    backbones = {name: whole.backbone(name) for name in whole.modalities}
    raw = channels_of(backbones)
    pairs = late_pairs(list(raw))
    architectures: list[Architecture] = [NamedFusion(name, 6, 4) for name in FUSIONS]
    architectures += [
        module_genotype(module, pairs, list(raw), channels=6, length=4, pairs_name="late")
        for module in FUSION_MODULES
    ]
    network = MultimodalNetwork(backbones, SideBySide(architectures, raw)).eval()
    roughen(network.fusion)
    torch.manual_seed(1)
    inputs = {
        name: torch.randn(5, *network.backbone(name).input_spec.shape)
        for name in network.modalities
    }
    with torch.inference_mode():
        expected = network(*inputs.values()).numpy()
    given = [TensorSpec(name, (-1, *x.shape[1:]), "float32") for name, x in inputs.items()]
    named = [TensorSpec(n, (-1, expected.shape[1]), "float32") for n in ("logits", "probabilities")]
    prepared = prepare(reference_network(network), head_for(task.kind))
    model = tmp_path / "model.onnx"
    model.write_bytes(export_graph(prepared, given, named, {}))
    build_engine(model)
    session = onnxruntime.InferenceSession(model)
    (found,) = session.run(["logits"], {name: x.numpy() for name, x in inputs.items()})
    for n in range(len(architectures)):
        own = slice(CLASSES * n, CLASSES * (n + 1))
        # On its own scale: the largest logits of all would hide a difference of small ones.
        scale = np.abs(expected[:, own]).max()
        assert np.abs(found[:, own] - expected[:, own]).max() <= TOLERANCE * scale


def test_a_bundle_says_which_fusion_it_is(tmp_path: Path) -> None:
    task, what = tiny_task(("vector", "vector"), kind="multilabel"), NamedFusion("gmu", 6, 4)
    bundle = export_bundle(tiny_network(task, what), task, tmp_path / "bundle")
    assert bundle.parity.passed
    manifest = manifests.load(tmp_path / "bundle")
    assert manifest.genotype is None
    assert manifest.fusion == {"name": "gmu", "channels": 6, "length": 4}
    assert [spec.name for spec in manifest.inputs] == ["m0", "m1"]
    model = onnx.load(tmp_path / "bundle" / "model.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found["bmnas.fusion"]) == manifest.fusion
    assert "bmnas.genotype" not in found
    tables = bundle_tables(load_bundle(tmp_path / "bundle").manifest)
    assert ("name", "gmu") in {table.title: table for table in tables}["Bundle fusion"].rows


def test_a_manifest_may_be_without_a_fusion() -> None:
    data = {
        "format": manifests.EARLIER,
        "name": "x",
        "task": {"name": "x", "kind": "multiclass"},
        "inputs": [{"name": "a", "shape": [-1, 2], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [-1, 1], "dtype": "float32"}],
        "class_names": ["one"],
        "files": {"model.onnx": "0" * 64},
    }
    assert manifests.parse(data).to_dict()["fusion"] is None
    with pytest.raises(BundleError, match='fusion: received "gmu", expected a JSON object'):
        manifests.parse({**data, "fusion": "gmu"})


@pytest.mark.parametrize("name", FUSIONS)
def test_a_file_says_which_fusion_it_is(name: str, tmp_path: Path) -> None:
    what = NamedFusion(name, 6, 4)
    trained = tiny_network(tiny_task(("vector", "vector")), what)
    trained.save(tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors")
    assert again.architecture == what
    assert again.genotype is None
    assert read_description(tmp_path / "network.safetensors") == (what, trained.task)
    again.save(tmp_path / "again")
    first, second = (tmp_path / file for file in ("network.safetensors", "again"))
    assert first.read_bytes() == second.read_bytes()
