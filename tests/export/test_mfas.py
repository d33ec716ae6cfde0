"""What strategy ``mfas`` finds goes through the same bundle as any other network."""

from __future__ import annotations

import json
from pathlib import Path

from bmnas_export import export_bundle
from bmnas_serve import manifest as manifests
from engine_builds import build_engine
from tiny_networks import tiny_network, tiny_task

from bmnas.pipeline.trained import load_network
from bmnas.report.record import load_bundle
from bmnas.spaces.mfas.genotype import Layer, MFASGenotype


def test_a_bundle_equals_torch(tmp_path: Path) -> None:
    task = tiny_task(("image", "sequence", "vector"), kind="multilabel")
    features = tuple(f"m{m}.{n}" for m in (0, 1, 2) for n in (1, 2, 3))
    layers = (
        Layer(("m0.1", "m1.3", "m2.2"), "sigmoid"),
        Layer(("m0.2", "m1.1", "m2.2"), "relu"),
    )
    what = MFASGenotype(features, 4, 6, layers, scalars=True)
    trained = tiny_network(task, what)
    trained.save(tmp_path / "network.safetensors")
    again = load_network(tmp_path / "network.safetensors")
    assert again.genotype == what
    bundle = export_bundle(again, task, tmp_path / "bundle")
    assert bundle.parity.passed
    build_engine(bundle.folder / "model.onnx")
    manifest = manifests.load(tmp_path / "bundle")
    assert json.loads(json.dumps(manifest.genotype)) == what.to_dict()
    assert load_bundle(tmp_path / "bundle").genotype == what
