"""A request that can be sent to the server as it is, and the answer to expect."""

from __future__ import annotations

from typing import Any

from bmnas_serve.codec import InferRequest, encode_response, encode_tensor
from bmnas_serve.metadata import MODEL_VERSION
from bmnas_serve.session import Session

from bmnas_export.samples import SampleInputs

REQUEST_FILE = "example.json"
RESPONSE_FILE = "example.expected.json"


def example(session: Session, inputs: SampleInputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return request and response of the first test sample, bodies of the inference protocol."""
    arrays = {name: tensor.numpy() for name, tensor in inputs.batch(1).items()}
    request = {"inputs": [encode_tensor(name, array) for name, array in arrays.items()]}
    asked = InferRequest(id=None, inputs=arrays, outputs=None)
    return request, encode_response(session.name, MODEL_VERSION, asked, session.run(arrays))
