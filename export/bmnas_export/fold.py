"""Nodes that need not be computed: norms beside a linear layer, masks that mask nothing."""

from __future__ import annotations

import numpy as np
from onnxscript import ir
from onnxscript.ir.passes.common import RemoveUnusedNodesPass

_LINEAR = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def fold_norms(model: ir.Model) -> None:
    """Fold each BatchNormalization that one Gemm alone reads, or that alone reads a convolution.

    W (g (x - m) / sqrt(v + e) + h) + b is W' x + b' with s = g / sqrt(v + e), W' = W diag(s) and
    b' = b + W (h - s m); after a layer W' = diag(s) W and b' = s (b - m) + h. All in float64 until
    the end. Those right after a linear layer or a convolution are folded by torch's exporter and
    ``prepare``; here they come after the convolution's channels were made the last axis.
    """
    graph = model.graph
    for norm in [node for node in graph if node.op_type == "BatchNormalization"]:
        after = _gemm_after(norm)
        layer = after or _convolution_before(norm)
        if layer is None:
            continue
        constants = [graph.initializers.get(value.name) for value in norm.inputs[1:]]
        layers = [graph.initializers.get(value.name) for value in layer.inputs[1:] if value]
        if None in (*constants, *layers):
            continue
        gain, shift, mean, variance, weight, *biases = (
            value.const_value.numpy().astype(np.float64) for value in (*constants, *layers)
        )
        bias = biases[0] if biases else 0.0
        scale = gain / np.sqrt(variance + _attribute(norm, "epsilon", 1e-5))
        if after:
            folded = {"weight": weight * scale, "bias": bias + weight @ (shift - scale * mean)}
            layer.replace_input_with(0, norm.inputs[0])
        else:
            rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
            folded = {"weight": rows * weight, "bias": scale * (bias - mean) + shift}
            norm.outputs[0].replace_all_uses_with(norm.inputs[0])
        layer.resize_inputs(3)
        for place, (kind, array) in enumerate(folded.items(), start=1):
            name = f"{layer.outputs[0].name}.folded_{kind}"
            value = ir.Value(name=name, const_value=ir.tensor(array.astype(np.float32), name=name))
            graph.register_initializer(value)
            layer.replace_input_with(place, value)
        graph.remove(norm, safe=True)
        # Constants that are equal, of a norm that was not trained, are one.
        for value in dict.fromkeys((*constants, *layers)):
            if not value.uses():
                graph.initializers.pop(value.name)


def _gemm_after(norm: ir.Node) -> ir.Node | None:
    """Return the Gemm that alone reads ``norm``, as torch exports a linear layer."""
    readers = [node for node, _ in norm.outputs[0].uses()]
    if norm.outputs[0].is_graph_output() or [node.op_type for node in readers] != ["Gemm"]:
        return None
    plain = all(_attribute(readers[0], name, value) == value for name, value in _LINEAR.items())
    return readers[0] if plain and _attribute(readers[0], "transB", 0) == 1 else None


def _convolution_before(norm: ir.Node) -> ir.Node | None:
    """Return the Conv whose outputs, as rows with the channels last, ``norm`` alone reads."""
    value, path = norm.inputs[0], []
    for kind in ("Reshape", "Transpose", "Conv"):
        maker = value.producer()
        if maker is None or maker.op_type != kind or len(value.uses()) != 1:
            return None
        path.append(maker)
        value = maker.inputs[0]
    _, transpose, layer = path
    channels = layer.inputs[1].shape[0]
    last = transpose.outputs[0].shape
    moved = list(transpose.attributes["perm"].value)[-1] == 1
    rows = norm.inputs[0].shape
    known = rows is not None and last is not None
    same = known and len(rows) == 2 and rows[1] == last[-1] == channels
    outputs = any(node.outputs[0].is_graph_output() for node in (*path, norm))
    return layer if moved and same and not outputs else None


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
