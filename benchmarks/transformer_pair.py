"""An exported pair of transformers beside torch: seconds of the export, milliseconds of a batch.

Run as: python -m benchmarks.transformer_pair --out pair.json

ViT at 224 x 224 and BERT over 32 words, 6 layers of 384 channels each. With ``--fused`` the graph
is also tried with operators of onnxruntime that ``model.onnx`` leaves out: Attention for each
attention, SkipLayerNormalization for each sum before a LayerNorm. Forms are timed in turn, so that
other work on the machine meets all of them; the milliseconds are the median, and the processor's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
from bmnas_export.bundle import export_bundle
from bmnas_export.measure import SampleInputs
from bmnas_export.precision import quantize_dynamic
from bmnas_export.prepare import reference_network
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

from bmnas.machine.costs import hardware, versions
from bmnas.machine.files import write_json
from tests.support.transformer_pair import transformer_pair

REPEATS = {1: 21, 8: 7, 64: 3}
_MICROSOFT = "com.microsoft"


def main() -> None:
    """Export the pair, time every form of it, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file for the figures, JSON")
    parser.add_argument("--fused", action="store_true", help="try operators of onnxruntime")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads")
    parser.add_argument("--layers", type=int, default=6, help="layers of both, 6 by default")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], choices=REPEATS)
    chosen = parser.parse_args()
    task, trained = transformer_pair(
        layers=chosen.layers,
        width=384,
        heads=6,
        side=224,
        words=32,
        vocabulary=30522,
        samples=(40, 20, 64),
    )
    network = reference_network(trained.network)
    inputs = SampleInputs(task, trained.task, network)
    with TemporaryDirectory() as folder:
        started, spent = time.perf_counter(), time.process_time()
        bundle = export_bundle(trained, task, Path(folder, "bundle"))
        seconds = time.perf_counter() - started
        export = {"seconds": seconds, "processor_seconds": time.process_time() - spent}
        files = {"onnx": bundle.folder / "model.onnx", "onnx-int8": Path(folder, "int8.onnx")}
        quantize_dynamic(files["onnx"], files["onnx-int8"])
        if chosen.fused:
            for name, norms in (("Attention", False), ("Attention, SkipLayerNorm", True)):
                files[name] = Path(folder, f"fused-{norms}.onnx")
                fuse(files["onnx"], files[name], norms=norms)
        runs = []
        for threads in chosen.threads:
            torch.set_num_threads(threads)
            calls: dict[str, Callable[..., Any]] = {"torch": partial(_torch, network)}
            calls |= {name: partial(_run, _session(file, threads)) for name, file in files.items()}
            for batch in chosen.batches:
                rows = inputs.batch(batch)
                for name, found in _in_turn(calls, rows, REPEATS[batch]).items():
                    runs.append({"form": name, "threads": threads, "batch": batch, **found})
                    print(runs[-1], flush=True)
    parameters = sum(p.numel() for p in network.parameters())
    facts = {"export": export, "parameters": parameters, "parity": bundle.parity.to_dict()}
    machine = {"hardware": hardware(), "versions": versions()}
    write_json(chosen.out, {**facts, "runs": runs, **machine})


def fuse(source: Path, out: Path, *, norms: bool) -> None:
    """Write the model with operators of onnxruntime for attention, and for norms where asked."""
    model = ir.load(source)
    graph = model.graph
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        _fuse_attention(graph, softmax)
    if norms:
        for norm in [node for node in graph if node.op_type == "LayerNormalization"]:
            _fuse_norm(graph, norm)
    RemoveUnusedNodesPass()(model)
    graph.sort()
    model.opset_imports[_MICROSOFT] = 1
    ir.save(model, out)


def _fuse_attention(graph: ir.Graph, softmax: ir.Node) -> None:
    """Replace what leads from one tensor over Q, K and V to the values that ``softmax`` weighs."""
    scores, mask = softmax.inputs[0].producer(), None
    if scores.op_type == "Add":
        scores, mask = scores.inputs[0].producer(), scores.inputs[1]
    if scores.op_type != "Mul":
        return  # the Cell's
    product = scores.inputs[0].producer()
    weighed = next(node for node, _ in softmax.outputs[0].uses())
    parts = (*product.inputs, weighed.inputs[1])
    shapes = [part.producer().inputs[0].producer() for part in parts]
    heads = int(shapes[0].inputs[1].const_value.numpy()[2])
    sums = [shape.inputs[0].producer() for shape in shapes]
    products = [node.inputs[0].producer() for node in sums]
    end = next(node for node, _ in weighed.outputs[0].uses())
    end = next(node for node, _ in end.outputs[0].uses())
    name = end.outputs[0].name
    weight = np.concatenate([node.inputs[1].const_value.numpy() for node in products], axis=1)
    bias = np.concatenate([node.inputs[1].const_value.numpy() for node in sums])
    constants = [_constant(graph, f"{name}.{k}", x) for k, x in (("w", weight), ("b", bias))]
    inputs = [products[0].inputs[0], *constants, None, None, mask]
    joined = ir.Node(_MICROSOFT, "Attention", inputs, [ir.AttrInt64("num_heads", heads)])
    graph.insert_before(end, joined)
    end.outputs[0].replace_all_uses_with(joined.outputs[0])


def _fuse_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """Make one node of a sum of two tensors and the norm over its last axis."""
    add = norm.inputs[0].producer()
    one_axis = len(norm.inputs[1].const_value.shape) == 1
    if add is None or add.op_type != "Add" or not one_axis:
        return
    if any(value.producer() is None for value in add.inputs):
        return  # a bias or an embedding
    inputs, epsilon = [*add.inputs, *norm.inputs[1:]], norm.attributes["epsilon"]
    joined = ir.Node(_MICROSOFT, "SkipLayerNormalization", inputs, [epsilon], num_outputs=4)
    graph.insert_before(norm, joined)
    norm.outputs[0].replace_all_uses_with(joined.outputs[0])
    add.outputs[0].replace_all_uses_with(joined.outputs[3])


def _constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _session(file: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, rows: dict[str, torch.Tensor]) -> None:
    session.run(None, {name: x.numpy() for name, x in rows.items()})


def _torch(network: torch.nn.Module, rows: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        network(*rows.values())


def _in_turn(
    calls: dict[str, Callable[..., Any]], rows: dict[str, torch.Tensor], repeats: int
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each call, after one that does not count."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            started, spent = time.perf_counter(), time.process_time()
            call(rows)
            times[name].append((time.perf_counter() - started, time.process_time() - spent))
    medians = {name: 1e3 * np.median(found[1:], axis=0) for name, found in times.items()}
    return {
        name: {"milliseconds": float(wall), "processor_milliseconds": float(processor)}
        for name, (wall, processor) in medians.items()
    }


if __name__ == "__main__":
    main()
