"""What the server tells about itself and its model, as JSON-ready plain data."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import orjson

from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.manifest import InputSpec, TensorSpec
from bmnas_serve.repository import MODEL_VERSION, Served
from bmnas_serve.runner import CPU
from bmnas_serve.session import Session

PLATFORM = "onnxruntime_onnx"
#: What of the protocol's extensions is served.
EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "statistics",
]


def server_metadata() -> dict[str, Any]:
    """Return the protocol's metadata of the server."""
    return {"name": "bmnas", "version": _package_version(), "extensions": EXTENSIONS}


def model_config(session: Session, versions: Sequence[str], max_batch: int) -> dict[str, Any]:
    """Return the model's configuration as Triton would describe it.

    ``dims`` are without the batch where ``max_batch_size`` is not 0.
    """
    tensors = (*session.inputs, *session.outputs)
    batched = all(tensor.shape[:1] == (-1,) for tensor in tensors)

    def described(tensor: TensorSpec) -> dict[str, Any]:
        return {
            "name": tensor.name,
            "data_type": f"TYPE_{PROTOCOL[tensor.dtype]}",
            "dims": list(tensor.shape[1:] if batched else tensor.shape),
            **({"optional": True} if isinstance(tensor, InputSpec) and tensor.optional else {}),
        }

    on_cpu = session.runner.describe().providers[:1] == (CPU,)
    return {
        "name": session.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [int(version) for version in versions]}},
        "max_batch_size": max_batch if batched else 0,
        "input": [described(tensor) for tensor in session.inputs],
        "output": [described(tensor) for tensor in session.outputs],
        "instance_group": [
            {"name": session.name, "kind": "KIND_CPU" if on_cpu else "KIND_GPU", "count": 1}
        ],
    }


def model_metadata(session: Session, versions: Sequence[str] = (MODEL_VERSION,)) -> dict[str, Any]:
    """Return the protocol's metadata of the model, of which ``versions`` are served.

    Beyond the protocol, ``parameters`` holds what the bundle says: task, class names, threshold,
    the SHA-256 of its manifest, and for each tensor its meaning, preprocessing and range. The
    tokenizer of a text is left out.
    """
    metadata: dict[str, Any] = {
        "name": session.name,
        "versions": list(versions),
        "platform": PLATFORM,
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
            "sha256": session.sha256,
        }
    return metadata


def model_statistics(served: Sequence[Served]) -> dict[str, Any]:
    """Return the protocol's statistics of some versions of models."""
    return {
        "model_stats": [
            {"name": one.name, "version": one.version, **one.statistics.to_dict()} for one in served
        ]
    }


def example_json(session: Session) -> bytes:
    """Return a request of zeros that the model accepts, in JSON: one sample, every input."""
    tensors = [
        {
            "name": spec.name,
            "datatype": PROTOCOL[spec.dtype],
            "shape": _smallest(spec),
            "data": np.zeros(math.prod(_smallest(spec)), spec.dtype),
        }
        for spec in session.inputs
    ]
    # A list of a million zeros would stop all threads while it is written.
    return orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)


def example_bytes(session: Session) -> int:
    """Return about how many bytes ``example_json`` has at least."""
    return sum(2 * math.prod(_smallest(spec)) for spec in session.inputs)


def _smallest(spec: TensorSpec) -> list[int]:
    return [max(axis, 1) for axis in spec.shape]


def index_data(served: Sequence[Served], base_url: str) -> dict[str, Any]:
    """Return the index as JSON-ready plain data; ``base_url`` ends without a slash.

    ``example`` is a shell command that sends one sample of zeros to the first model.
    """
    root = "/v2/models/{name}"
    name = served[0].name if served else "NAME"
    sample, infer = (
        shlex.quote(f"{base_url}/v2/models/{name}/{end}") for end in ("example.json", "infer")
    )
    return {
        "models": [model_metadata(one.session, (one.version,)) for one in served],
        "endpoints": {
            "GET /": "a page on which the models are tried, for a browser",
            "GET /openapi.json": "all of these, described",
            "POST /v1/predict": "labels for pictures, sounds, texts and numbers as you have them",
            "GET /v2": "the server: name and version",
            "GET /metrics": "counts and times, for Prometheus",
            "GET /v2/health/live": "200 while the process runs",
            "GET /v2/health/ready": "200 while requests are welcome, 503 while stopping",
            f"GET {root}": "the model: inputs, outputs, class names",
            f"GET {root}/ready": "200 while the model takes requests, 503 while stopping",
            f"GET {root}/example.json": "a request of zeros, to send to infer",
            f"GET {root}/config": "how the model is run, as Triton would say",
            f"GET {root}/stats": "how many requests were answered, and how long it took",
            f"POST {root}/infer": "the outputs for the inputs in the body",
            "POST /v2/repository/index": "every model and version, and whether it is served",
            "POST /v2/repository/models/{name}/load": "serve a model, or serve it anew",
            "POST /v2/repository/models/{name}/unload": "serve a model no more",
        },
        "example": f"curl -s {sample} | curl -s -H 'Content-Type: application/json' -d @- {infer}",
    }


def _tensor_metadata(tensor: TensorSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": tensor.name,
        "datatype": PROTOCOL[tensor.dtype],
        "shape": list(tensor.shape),
    }
    about: dict[str, Any] = {"meaning": tensor.meaning}
    if isinstance(tensor, InputSpec):
        # A tokenizer has hundreds of kilobytes; it is in the bundle's manifest.
        steps = {name: step for name, step in tensor.preprocessing.items() if name != "tokenizer"}
        about |= {"preprocessing": steps, "range": tensor.range}
    parameters = {key: value for key, value in about.items() if value}
    return {**metadata, "parameters": parameters} if parameters else metadata


def _package_version() -> str:
    try:
        return version("bmnas")
    except PackageNotFoundError:  # run from a source folder
        return "unknown"
