"""Nodes that need not be computed: norms before a linear layer, masks that mask nothing."""

from __future__ import annotations

import numpy as np
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

_LINEAR = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def fold_norms(model: ir.Model) -> None:
    """Fold each BatchNormalization that one Gemm alone reads into that Gemm.

    W (g (x - m) / sqrt(v + e) + h) + b is W' x + b' with s = g / sqrt(v + e), W' = W diag(s) and
    b' = b + W (h - s m), in float64 until the end. Those after a linear layer or a convolution are
    folded by torch's exporter and ``prepare``.
    """
    graph = model.graph
    for norm in [node for node in graph if node.op_type == "BatchNormalization"]:
        readers = [node for node, _ in norm.outputs[0].uses()]
        if [node.op_type for node in readers] != ["Gemm"]:
            continue
        gemm = readers[0]
        constants = [graph.initializers.get(value.name) for value in norm.inputs[1:]]
        layer = [graph.initializers.get(value.name) for value in gemm.inputs[1:]]
        # As torch exports a linear layer; another Gemm stays.
        plain = all(_attribute(gemm, name, value) == value for name, value in _LINEAR.items())
        if None in (*constants, *layer) or not plain or _attribute(gemm, "transB", 0) != 1:
            continue
        gain, shift, mean, variance, weight, *biases = (
            value.const_value.numpy().astype(np.float64) for value in (*constants, *layer)
        )
        bias = biases[0] if biases else 0.0
        scale = gain / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
        folded = {"weight": weight * scale, "bias": bias + weight @ (shift - scale * mean)}
        gemm.resize_inputs(3)
        gemm.replace_input_with(0, norm.inputs[0])
        for place, (kind, array) in enumerate(folded.items(), start=1):
            name = f"{gemm.outputs[0].name}.folded_{kind}"
            value = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
            graph.register_initializer(value)
            gemm.replace_input_with(place, value)
        graph.remove(norm, safe=True)
        # Constants that are equal, of a norm that was not trained, are one.
        for value in dict.fromkeys((*constants, *layer)):
            if not value.uses():
                graph.initializers.pop(value.name)


def drop_open_masks(model: ir.Model) -> None:
    """Remove each Add of an attention mask that is open everywhere, as those of images are.

    Such a mask is Where(condition, 0, ...) with a condition that is a constant of nothing but true,
    perhaps expanded. Its Add stays where it is what makes the shape larger.
    """
    graph = model.graph
    for where in [node for node in graph if node.op_type == "Where"]:
        condition, chosen = where.inputs[0], graph.initializers.get(where.inputs[1].name)
        maker = condition.producer()
        if maker is not None and maker.op_type == "Expand":
            condition = maker.inputs[0]
        allowed = graph.initializers.get(condition.name)
        if allowed is None or chosen is None:
            continue
        if not allowed.const_value.numpy().all() or chosen.const_value.numpy().any():
            continue
        for add, place in list(where.outputs[0].uses()):
            if add.op_type != "Add" or add.outputs[0].is_graph_output():
                continue
            other, shape = add.inputs[1 - place], add.outputs[0].shape
            if shape is not None and not shape.has_unknown_dim() and other.shape == shape:
                add.outputs[0].replace_all_uses_with(other)
                graph.remove(add, safe=True)
    RemoveUnusedNodesPass()(model)


def _attribute(node: ir.Node, name: str, default: float) -> float:
    found = node.attributes.get(name)
    return default if found is None else float(found.value)
