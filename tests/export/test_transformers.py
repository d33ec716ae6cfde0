"""Transformers leave Python as a graph whose parts onnxruntime joins when it loads it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from bmnas_export.bundle import export_bundle
from bmnas_export.measure import SampleInputs
from bmnas_export.precision import quantize_dynamic
from bmnas_export.prepare import reference_network

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from benchmarks.transformer_pair import fuse
from tests.support.transformer_pair import transformer_pair

LAYERS = 2


def optimised(model: Path, out: Path) -> Counter[str]:
    """Return how often each operator is in what onnxruntime makes of ``model`` on a CPU."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(out).graph.node)


@pytest.mark.slow
def test_a_pair_of_transformers_exports_small_and_equal(tmp_path: Path) -> None:
    task, trained = transformer_pair(layers=LAYERS)
    bundle = export_bundle(trained, task, tmp_path / "bundle")
    assert [batch.batch for batch in bundle.parity.batches] == [1, 2, 7, 9]
    assert bundle.parity.difference < 5e-6
    model = bundle.folder / "model.onnx"
    graph = onnx.load(model).graph
    assert {node.domain for node in graph.node} == {""}
    # Only texts are padded: the mask of images would be a sum with zeros in every layer.
    assert [node.op_type for node in graph.node].count("Where") == 1
    attentions = 2 * LAYERS
    found = optimised(model, tmp_path / "optimised.onnx")
    # Softmax of each layer, of the Cell's attention and of the answer.
    assert found["Softmax"] == attentions + 2
    # The scale of Q K^T is part of the product, the bias part of the activation.
    assert found["FusedMatMul"] >= attentions
    assert found["BiasGelu"] == attentions
    assert found["Gelu"] == found["Erf"] == 0

    quantize_dynamic(model, tmp_path / "int8.onnx")
    found = optimised(tmp_path / "int8.onnx", tmp_path / "optimised.onnx")
    # Q, K, V, what follows them and two of the MLP.
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] >= 6 * attentions

    # Rows of the largest batch, whose logits are kept from the comparison.
    inputs = SampleInputs(task, trained.task, reference_network(trained.network))
    session = onnxruntime.InferenceSession(model)
    batch = {name: x.numpy() for name, x in inputs.rows(torch.tensor([3, 0])).items()}
    logits = session.run(["logits"], batch)[0]
    np.testing.assert_allclose(logits, bundle.parity.logits[[3, 0]], atol=1e-5)

    # What the benchmark compares with computes the same.
    for norms in (False, True):
        fuse(model, tmp_path / "fused.onnx", norms=norms)
        found = optimised(tmp_path / "fused.onnx", tmp_path / "optimised.onnx")
        assert found["Attention"] == attentions
        assert (found["SkipLayerNormalization"] > attentions) == norms
        session = onnxruntime.InferenceSession(tmp_path / "fused.onnx")
        np.testing.assert_allclose(session.run(["logits"], batch)[0], logits, atol=1e-5)
