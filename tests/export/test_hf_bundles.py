"""A pretrained network of each modality: exported, compared with torch, served."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from bmnas_export import export_bundle
from bmnas_serve.app import create_app
from bmnas_serve.codec import encode_tensor
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from hf_families import RATE, TEXTS, save_family
from starlette.testclient import TestClient
from tiny_networks import tiny_network, tiny_task

from bmnas.pipeline.multimodal import raw_samples
from bmnas.tasks.task import Modality, Task

FAMILIES = {"photo": "clip", "words": "bert", "sound": "wav2vec2", "film": "videomae"}
#: Pictures and sounds are sent as they are: the network resizes, crops and scales them.
SHAPES = {"photo": (41, 35, 3), "sound": (1203,), "film": (6, 23, 38, 3)}


def hub_task(folder: Path, names: tuple[str, ...]) -> Task:
    task, draw = tiny_task(test=9), np.random.default_rng(0)
    rows = len(task.part)
    data = {
        "photo": draw.integers(0, 256, (rows, *SHAPES["photo"]), dtype=np.uint8),
        "words": TEXTS[draw.integers(0, len(TEXTS), rows)],
        "sound": draw.integers(-9000, 9000, (rows, *SHAPES["sound"]), dtype=np.int16),
        "film": draw.integers(0, 256, (rows, *SHAPES["film"]), dtype=np.uint8),
    }
    data["sound"][::2, 1001:] = 0  # shorter ones
    modalities = tuple(
        Modality(
            name,
            save_family(family, folder / name),
            data[name],
            backbone=f"hf:{folder / name}",
            sample_rate=RATE if name == "sound" else None,
        )
        for name, family in FAMILIES.items()
        if name in names
    )
    return dataclasses.replace(task, modalities=modalities)


@pytest.mark.slow
@pytest.mark.parametrize("names", [("photo", "words"), ("sound", "film")])
def test_what_is_served_is_what_was_trained(names: tuple[str, ...], tmp_path: Path) -> None:
    task = hub_task(tmp_path, names)
    trained = tiny_network(task)
    made = export_bundle(trained, task, tmp_path / "bundle")
    assert [batch.batch for batch in made.parity.batches][:3] == [1, 2, 7]
    assert made.parity.batches[0].difference < 1e-5
    samples = raw_samples(task, trained.network, "test")
    inputs = samples.batch(torch.arange(2)).inputs
    with torch.inference_mode():
        expected = trained.network(*inputs).softmax(1).numpy()
    session = Session.open(tmp_path / "bundle")
    body = {
        "inputs": [
            encode_tensor(name, x.numpy())
            for name, x in zip(trained.network.modalities, inputs, strict=True)
        ]
    }
    with TestClient(create_app(Repository.of_session(session))) as client:
        answer = client.post(f"/v2/models/{session.name}/infer", json=body).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    found = np.reshape(outputs["probabilities"]["data"], expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert trained.network.modalities == names
    for spec in session.inputs:
        assert spec.shape[1:] == SHAPES.get(spec.name, spec.shape[1:])
