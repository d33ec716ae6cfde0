"""A target of its own: a subclass of ``Runner``, and the session and the server take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmnas_serve import manifest as bundle
from bmnas_serve.app import create_app
from bmnas_serve.codec import encode_tensor
from bmnas_serve.errors import BundleError
from bmnas_serve.manifest import TensorSpec
from bmnas_serve.repository import Repository
from bmnas_serve.runner import Description, OnnxRunner, Runner
from bmnas_serve.session import Session
from starlette.testclient import TestClient
from tiny_bundles import CLASSES, sample, save_bundle


class Even(Runner):
    """Finds every class equally likely."""

    def __init__(self, outputs: tuple[str, ...] = ("logits", "probabilities")) -> None:
        self.outputs = outputs

    @classmethod
    def open(cls, model: Path) -> Even:
        assert model.is_file()
        return cls()

    def describe(self) -> Description:
        inputs = (
            TensorSpec("image", (-1, 2, 3), "uint8"),
            TensorSpec("sound", (-1, 4), "float32"),
        )
        outputs = tuple(TensorSpec(name, (-1, len(CLASSES)), "float32") for name in self.outputs)
        return Description(inputs, outputs, threads=1, providers=("numpy",))

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        shape = len(inputs["image"]), len(CLASSES)
        logits = np.zeros(shape, np.float32)
        return {"logits": logits, "probabilities": logits + np.float32(1 / len(CLASSES))}


def test_a_runner_of_ones_own_is_served(tmp_path):
    folder = save_bundle(tmp_path / "pets")
    model = folder / bundle.MODEL_FILE
    session = Session.of_bundle(Even.open(model), bundle.load(folder), model)
    with TestClient(create_app(Repository.of_session(session))) as client:
        inputs = [encode_tensor(name, array) for name, array in sample(2).items()]
        answer = client.post("/v2/models/pets/infer", json={"inputs": inputs}).json()
    found = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
    assert found["probabilities"] == pytest.approx([1 / len(CLASSES)] * 2 * len(CLASSES))


def test_a_runner_that_gives_something_else_is_refused(tmp_path):
    folder = save_bundle(tmp_path / "pets")
    with pytest.raises(BundleError, match="the model has the outputs logits, the manifest lists"):
        Session.of_bundle(Even(("logits",)), bundle.load(folder), folder / bundle.MODEL_FILE)


def test_the_runner_of_onnxruntime_describes_the_file(tmp_path):
    folder = save_bundle(tmp_path / "pets")
    found = OnnxRunner.open(folder / bundle.MODEL_FILE, threads=1).describe()
    assert found.inputs == Even().describe().inputs
    assert found.outputs == Even().describe().outputs
