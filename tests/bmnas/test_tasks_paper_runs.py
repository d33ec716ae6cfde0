"""Mini data sets in the formats of the paper's, from their files to the answer of a server.

EgoGesture differs from NTU in its files and in its backbone, whose export is tested by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bmnas_serve.app import create_app
from bmnas_serve.codec import encode_tensor
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from command_line import bmnas_command, write_tiny_preset
from mmimdb_files import write_hdf5
from paper_files import make_narrow, write_all_of_ntu
from starlette.testclient import TestClient

from bmnas.pipeline.trained import load_network
from bmnas.pipeline.unimodal import feature_names
from bmnas.tasks import load_task
from bmnas.tasks.ntu import load_ntu


def mmimdb(folder: Path) -> None:
    write_hdf5(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "write"), [("mmimdb", mmimdb), ("ntu", write_all_of_ntu)])
def test_from_the_files_to_an_answer(
    tmp_path: Path, name: str, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_narrow(monkeypatch)
    monkeypatch.setitem(load_ntu.__kwdefaults__, "size", 12)
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    write(data)
    where = ["--task", name, "--data", data, "--device", "cpu"]
    checked = bmnas_command("check", "--task", name, "--data", data)
    assert checked.status == 0, checked
    pretrained = {}
    for modality in load_task(name, data).modalities:
        words = ["pretrain", *where, "--modality", modality.name, "--json"]
        small = ["--epochs", "2", "--batch-size", "16", "--run", tmp_path / modality.name]
        done = bmnas_command(*words, *small)
        assert done.status == 0, done.err
        pretrained[modality.name] = json.loads(done.out)["validation"]
    preset = write_tiny_preset(tmp_path)
    for words in (
        ["search", *where, "--preset", preset, "--run", run],
        ["train", "--genotype", run / "genotype.json", "--device", "cpu"],
        ["export", "--genotype", run / "genotype.json", "--out", tmp_path / "bundle"],
    ):
        done = bmnas_command(*words)
        assert done.status == 0, (words, done.err)
    metrics = json.loads((run / "metrics.json").read_text())
    # Backbones whose weights are given stay as they are.
    alone = {which: found["validation"] for which, found in metrics["unimodal"].items()}
    assert alone == pretrained
    task = load_task(name, data)
    assert len(feature_names(task)) == (6 if name == "mmimdb" else 8)
    expect_answer(
        tmp_path / "bundle",
        run,
        {m.name: m.data[m.rows_of(task.samples("test")[:1])] for m in task.modalities},
    )


def expect_answer(bundle: Path, run: Path, sample: dict[str, np.ndarray]) -> None:
    """Expect that a server of ``bundle`` answers what the network of ``run`` says of a sample."""
    session = Session.open(bundle, intra_op_threads=1)
    network = load_network(run / "network.safetensors").network.eval()
    asked = {spec.name: sample[spec.name] for spec in session.inputs}
    with TestClient(create_app(Repository.of_session(session))) as client:
        inputs = [encode_tensor(name, array) for name, array in asked.items()]
        answer = client.post(f"/v2/models/{session.name}/infer", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    found = {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]}
    with torch.inference_mode():
        logits = network(*(torch.from_numpy(asked[name]) for name in network.modalities))
    np.testing.assert_allclose(found["logits"], logits.flatten(), atol=1e-4)
