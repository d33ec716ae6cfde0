"""What the server tells about itself and its model, as JSON-ready plain data."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from bmnas_serve.codec import encode_tensor
from bmnas_serve.datatypes import BY_NUMPY
from bmnas_serve.manifest import InputSpec, TensorSpec
from bmnas_serve.session import Session

#: A bundle holds one version of a model.
MODEL_VERSION = "1"


def server_metadata() -> dict[str, Any]:
    """Return the protocol's metadata of the server."""
    return {"name": "bmnas", "version": _package_version(), "extensions": []}


def model_metadata(session: Session) -> dict[str, Any]:
    """Return the protocol's metadata of the model.

    Beyond the protocol, ``parameters`` holds what the bundle says: task, class names, threshold,
    and for each tensor its meaning and preprocessing.
    """
    metadata: dict[str, Any] = {
        "name": session.name,
        "versions": [MODEL_VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor_metadata(tensor) for tensor in session.inputs],
        "outputs": [_tensor_metadata(tensor) for tensor in session.outputs],
    }
    if (manifest := session.manifest) is not None:
        metadata["parameters"] = {
            "task": manifest.task.name,
            "kind": manifest.task.kind,
            "decision": manifest.task.decision,
            "class_names": list(manifest.class_names),
            "threshold": manifest.threshold,
        }
    return metadata


def example_request(session: Session) -> dict[str, Any]:
    """Return a request of zeros that the model accepts: one sample, every input."""
    shapes = {spec.name: [max(axis, 1) for axis in spec.shape] for spec in session.inputs}
    return {
        "inputs": [
            encode_tensor(spec.name, np.zeros(shapes[spec.name], spec.dtype))
            for spec in session.inputs
        ]
    }


def _tensor_metadata(tensor: TensorSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": tensor.name,
        "datatype": BY_NUMPY[tensor.dtype].protocol,
        "shape": list(tensor.shape),
    }
    about: dict[str, Any] = {"meaning": tensor.meaning}
    about |= {"preprocessing": dict(tensor.preprocessing)} if isinstance(tensor, InputSpec) else {}
    parameters = {key: value for key, value in about.items() if value}
    return {**metadata, "parameters": parameters} if parameters else metadata


def _package_version() -> str:
    try:
        return version("bmnas")
    except PackageNotFoundError:  # run from a source folder
        return "unknown"
