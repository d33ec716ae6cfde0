"""The formats that a network can be written in, by the name that ``--target`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from bmnas_serve.manifest import MODEL_FILE, TensorSpec
from torch import nn

from bmnas.machine.errors import UserError, close
from bmnas_export.graph import export_graph

#: Writes a network, from the inputs to the outputs that are described, to a folder, with metadata
#: where there is room for it, and returns the names of the files. Raises ExportError when the
#: target cannot hold the network.
Target = Callable[
    [Path, nn.Module, Sequence[TensorSpec], Sequence[TensorSpec], Mapping[str, str]],
    tuple[str, ...],
]


def write_onnx(
    folder: Path,
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metadata: Mapping[str, str],
) -> tuple[str, ...]:
    """Write one ONNX graph, which onnxruntime runs."""
    (folder / MODEL_FILE).write_bytes(export_graph(network, inputs, outputs, metadata))
    return (MODEL_FILE,)


TARGETS: dict[str, Target] = {"onnx": write_onnx}


def target_named(name: str) -> Target:
    """Return the target called ``name``; raises UserError that lists those there are."""
    if name not in TARGETS:
        known = list(TARGETS)
        raise UserError(
            f"received target {name!r}, expected one of {', '.join(known)}{close(name, known)}"
        )
    return TARGETS[name]
