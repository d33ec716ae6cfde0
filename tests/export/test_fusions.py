"""Every hand-made fusion goes through the same bundle as a found network."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from bmnas_export import export_bundle
from bmnas_serve import manifest as manifests
from tiny_networks import tiny_network, tiny_task

from bmnas.architecture import NamedFusion
from bmnas.baselines import FUSIONS
from bmnas.drawing.record import load_bundle
from bmnas.drawing.tables import bundle_tables
from bmnas.genotype import FUSION_MODULES, known_genotype
from bmnas.trained import load_network, read_description

TWO = ("sequence", "vector")
THREE = ("sequence", "vector", "tokens")


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_matches_in_onnxruntime(name: str, tmp_path: Path) -> None:
    # Three modalities in every other case: the gates of a GMU differ.
    number = list(FUSIONS).index(name)
    task = tiny_task(THREE if number % 2 else TWO, kind="multilabel" if number % 3 else "multiclass")
    what = NamedFusion(name, 6, 4)
    trained = tiny_network(task, what)
    bundle = export_bundle(trained, task, tmp_path / "bundle")
    assert bundle.parity.passed
    manifest = manifests.load(tmp_path / "bundle")
    assert manifest.genotype is None
    assert manifest.fusion == what.to_dict() == {"name": name, "channels": 6, "length": 4}
    assert [spec.name for spec in manifest.inputs] == [m.name for m in task.modalities]
    model = onnx.load(tmp_path / "bundle" / "model.onnx")
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found["bmnas.fusion"]) == what.to_dict()
    assert "bmnas.genotype" not in found
    (facts, *_) = bundle_tables(load_bundle(tmp_path / "bundle"))
    assert ("fusion", name) in facts.rows


def test_a_gmu_of_three_modalities_matches(tmp_path: Path) -> None:
    task = tiny_task(THREE)
    bundle = export_bundle(tiny_network(task, NamedFusion("gmu", 6, 4)), task, tmp_path / "bundle")
    assert bundle.parity.passed


@pytest.mark.parametrize("module", FUSION_MODULES)
def test_a_known_module_matches_in_onnxruntime(module: str, tmp_path: Path) -> None:
    task = tiny_task(TWO)
    genotype = known_genotype(module, ("m0.2", "m1.2"), channels=6, length=4)
    bundle = export_bundle(tiny_network(task, genotype), task, tmp_path / "bundle")
    assert bundle.parity.passed
    data = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    # Servers that know no fusions read it.
    assert "fusion" not in data


@pytest.mark.parametrize("name", FUSIONS)
def test_a_file_says_which_fusion_it_is(name: str, tmp_path: Path) -> None:
    what = NamedFusion(name, 6, 4)
    trained = tiny_network(tiny_task(TWO), what)
    trained.save(tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors")
    assert again.architecture == again.fusion == what
    assert again.genotype is None
    assert read_description(tmp_path / "network.safetensors") == (what, trained.task)
    again.save(tmp_path / "again")
    first, second = (tmp_path / file for file in ("network.safetensors", "again"))
    assert first.read_bytes() == second.read_bytes()
