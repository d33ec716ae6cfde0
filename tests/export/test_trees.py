"""A fusion tree goes through the same bundle as a genotype of BM-NAS."""

from __future__ import annotations

from pathlib import Path

from bmnas_export import export_bundle
from bmnas_serve import manifest as manifests
from engine_builds import build_engine
from tiny_networks import tiny_network, tiny_task

from bmnas.pipeline.trained import load_network
from bmnas.report.record import load_bundle
from bmnas.spaces.trees.fusion_tree import FusionTree

FEATURES = tuple(f"m{m}.{n}" for m in range(3) for n in (1, 2, 3))
# Every operation.
TOKENS = "m0.2 m1.1 mul m2.3 max m0.3 m1.2 concat_dense average m2.2 add"


def test_a_tree_matches_in_onnxruntime(tmp_path: Path) -> None:
    task = tiny_task(("sequence", "vector", "vector"), kind="multilabel")
    tree = FusionTree(FEATURES, 6, 4, tuple(TOKENS.split()))
    trained = tiny_network(task, tree)
    bundle = export_bundle(trained, task, tmp_path / "bundle")
    assert bundle.parity.passed
    build_engine(bundle.folder / "model.onnx")
    manifest = manifests.load(tmp_path / "bundle")
    assert manifest.genotype == tree.to_dict()
    assert load_bundle(tmp_path / "bundle").genotype == tree


def test_its_weights_know_the_tree(tmp_path: Path) -> None:
    tree = FusionTree(FEATURES[:6], 6, 4, ("m0.1", "m1.2", "concat_dense"))
    trained = tiny_network(tiny_task(("vector", "vector")), tree)
    trained.save(tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors")
    assert again.architecture == again.genotype == tree
    assert again.network.features == ("m0.1", "m1.2")
