"""A table with empty cells, from task.toml to answers without an input."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bmnas_export.measure import SampleInputs
from bmnas_export.prepare import reference_network
from bmnas_serve.errors import FormatError, RequestError
from bmnas_serve.forms import Given
from bmnas_serve.inference import GivenTensor, fit_inputs
from bmnas_serve.raw_model import Asked, RawModel
from bmnas_serve.session import Session
from command_line import bmnas_command, one_line_error, write_tiny_preset
from media_files import CLASSES, TASK_WITH_GAPS, media_table, write_table

from bmnas.pipeline.trained import load_network
from bmnas.tasks import load_task

for package in ("PIL", "tokenizers"):
    pytest.importorskip(package)


def run(*words: object) -> str:
    printed = bmnas_command(*words)
    assert printed.status == 0, printed
    return printed.out


def predictions(text: str) -> np.ndarray[Any, Any]:
    rows = csv.DictReader(io.StringIO(text))
    return np.array([[float(row[name]) for name in CLASSES] for row in rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("missing")
    rows = media_table(folder, 40)
    for number, row in enumerate(rows):
        if number % 5 == 0:
            row["photo"] = ""
        elif number % 5 == 2:
            row["title"] = ""
    write_table(folder / "pets.csv", rows)
    (folder / "task.toml").write_text(TASK_WITH_GAPS, "utf-8")
    preset = ("--preset", write_tiny_preset(folder))
    where = ("--task", folder / "task.toml", "--run", folder / "run")
    told = run("train", "--fusion", "concat", *where, *preset)
    assert "fused, without photo" in told
    run("export", "--genotype", folder / "run", "--out", folder / "bundle")
    return folder


def test_the_manifest_says_which_inputs_may_be_left_out(folder: Path) -> None:
    session = Session.open(folder / "bundle")
    assert {spec.name: spec.optional for spec in session.inputs} == {
        "photo": True,
        "title": True,
        "facts": False,
    }
    assert session.manifest is not None
    assert set(session.manifest.scores["test"]["without"]) == {"photo", "title"}
    assert run("verify", folder / "bundle")


def test_rows_with_empty_cells_are_predicted_as_torch_does(folder: Path) -> None:
    found = predictions(run("predict", folder / "bundle", folder / "pets.csv"))
    task = load_task(folder / "task.toml")
    trained = load_network(folder / "run" / "network.safetensors", task)
    network = reference_network(trained.network)
    for part in ("train", "validation", "test"):
        inputs = SampleInputs(task, trained.task, network, part)
        with torch.inference_mode():
            logits = network(*inputs.rows(torch.arange(len(inputs))).values())
        expected = logits.softmax(1).numpy()
        assert np.abs(found[task.samples(part)] - expected).max() < 1e-5


def test_columns_may_lack_and_one_sample_too(folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "photo": ""} for row in media_table(tmp_path, 6, seed=3)]
    empty = write_table(tmp_path / "empty.csv", rows)
    without = [{k: v for k, v in row.items() if k != "photo"} for row in rows]
    table = write_table(tmp_path / "without.csv", without)
    expected = run("predict", folder / "bundle", empty)
    assert run("predict", folder / "bundle", table) == expected
    words = [w for name in ("title", "age", "weight") for w in (f"--{name}", rows[1][name])]
    one = predictions(run("predict", folder / "bundle", *words))
    assert np.abs(one[0] - predictions(expected)[1]).max() < 1e-5
    for row in without:
        del row["age"]
    write_table(table, without)
    error = one_line_error(bmnas_command("predict", folder / "bundle", table))
    assert "modality facts: " in error
    assert "received no column age, expected age, weight" in error


def test_a_request_may_leave_inputs_out(folder: Path) -> None:
    session = Session.open(folder / "bundle")
    facts = next(spec for spec in session.inputs if spec.name == "facts")
    data = np.ones((2, *facts.shape[1:]), np.float32)
    tensor = GivenTensor("facts", "FP32", data.shape, data.ravel().tolist())
    arrays = fit_inputs([tensor], session.inputs, 8)
    assert [*arrays] == ["photo", "title", "facts"]
    outputs = session.run(arrays)
    assert outputs["probabilities"].shape == (2, len(CLASSES))
    photo = np.zeros((2, 16, 16, 3), np.uint8)
    given = GivenTensor("photo", "UINT8", photo.shape, photo.ravel().tolist())
    same = session.run(fit_inputs([tensor, given], session.inputs, 8))
    assert np.array_equal(same["logits"], outputs["logits"])
    with pytest.raises(FormatError, match='but the model also needs "facts"'):
        fit_inputs([given], session.inputs, 8)
    with pytest.raises(FormatError, match="received none"):
        fit_inputs([], session.inputs, 8)


def test_people_may_leave_inputs_out(folder: Path) -> None:
    session = Session.open(folder / "bundle")
    model = RawModel(session)
    made = model.made({"facts": Given(value={"age": 3, "weight": 2.5})}, Asked())
    assert made.left_out == ("photo", "title")
    assert not made.inputs["photo"].any()
    table = "age,weight\n3,2.5\n"
    (folder / "one.csv").write_text(table, "utf-8")
    expected = predictions(run("predict", folder / "bundle", folder / "one.csv"))
    assert np.abs(session.run(made.inputs)["probabilities"] - expected).max() < 1e-5
    with pytest.raises(RequestError, match="received none of the inputs"):
        model.made({}, Asked())
