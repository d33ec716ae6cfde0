from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from bmnas_export import export_bundle
from engine_builds import build_engine
from tiny_networks import KINDS, random_genotype, tiny_network, tiny_task

from bmnas.features.samples import RawInput


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    whole = metafunc.config.pluginmanager.hasplugin("engine_builds")  # as `make engines` has it
    metafunc.parametrize("seed", range(100 if whole else 24))


@pytest.mark.slow
def test_a_random_genotype_over_mixed_modalities_exports_and_matches(
    seed: int, tmp_path: Path
) -> None:
    draw = np.random.default_rng(seed)
    kinds = draw.permutation(KINDS)[: draw.integers(2, 6)]
    task = tiny_task(list(map(str, kinds)), kind=("multiclass", "multilabel")[seed % 2], seed=seed)
    trained = tiny_network(task, random_genotype(task, draw), seed=seed)
    if seed % 3 == 0:
        trained.network.backbone(trained.network.modalities[0]).allow_absent()
    bundle = export_bundle(trained, task, tmp_path / "bundle")
    assert [batch.batch for batch in bundle.parity.batches] == [1, 2, 7, 64]
    assert bundle.parity.agree == bundle.parity.rows == 74
    build_engine(bundle.folder / "model.onnx")

    # Again from outside: the file alone, other samples, another batch size.
    network = trained.network
    chosen = torch.arange(5)
    train = task.samples("train")
    batch = {
        name: RawInput(task.modality(name), network.backbone(name), train).batch(chosen)
        for name in network.modalities
    }
    with torch.no_grad():
        expected = network(*batch.values()).numpy()
    session = ort.InferenceSession(tmp_path / "bundle" / "model.onnx")
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    assert {node.name for node in session.get_inputs()} == set(arrays)
    logits, probabilities = session.run(["logits", "probabilities"], arrays)
    scale = max(np.abs(expected).max(), bundle.parity.scale)
    np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-5, rtol=0)
    if task.kind == "multiclass":
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    else:
        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits)), atol=1e-6)
