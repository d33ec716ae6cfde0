"""Where an exported graph begins to differ from torch: node by node, on the same batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from bmnas_serve.manifest import TensorSpec
from numpy.typing import NDArray
from torch import Tensor, nn

from bmnas_export.graph import translate
from bmnas_export.measure import TOLERANCE


class _Values(torch.fx.Interpreter):
    """Runs a graph and keeps every tensor in it by name."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, NDArray[Any]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n.name] = result.detach().numpy()
        return result


def first_difference(
    network: nn.Module, inputs: Sequence[TensorSpec], model: Path, batch: Mapping[str, Tensor]
) -> str:
    """Tell which node of ``model`` is the first whose value is not that of ``network``.

    ``network`` and ``inputs`` are what ``model`` was exported from, ``batch`` its inputs by name.
    """
    program = translate(network, inputs).exported_program
    assert program is not None
    torch_values = _Values(program.module())
    with torch.inference_mode():
        torch_values.run(*batch.values())
    graph = onnx.load(model).graph
    makers = {name: node for node in graph.node for name in node.output}
    shared = [name for name in makers if name in torch_values.found]
    values = _onnx_values(model, shared, batch)
    for name in shared:
        apart = _difference(values[name], torch_values.found[name])
        if not apart <= TOLERANCE:
            node = makers[name]
            return (
                f"the first node that differs is {node.op_type} {node.name!r}, by {apart:.2g} of"
                " its largest value"
            )
    return "no node differs by itself: look at what onnxruntime fuses"


def _onnx_values(
    model: Path, names: Sequence[str], batch: Mapping[str, Tensor]
) -> dict[str, NDArray[Any]]:
    """Return the values called ``names`` of a run of ``model`` without fusions."""
    opened = onnx.load(model)
    given = {output.name for output in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        opened.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results = session.run(list(names), {name: x.numpy() for name, x in batch.items()})
    return dict(zip(names, map(np.asarray, results), strict=True))


def _difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the largest difference as a share of the largest value; NaN where one is."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    wanted = expected.astype(np.float64)
    apart = np.where(found == expected, 0.0, np.abs(found.astype(np.float64) - wanted))
    return float(apart.max() / (np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0) or 1.0))
