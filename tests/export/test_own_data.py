"""The steps of docs/your-own-data.md, on forty rows."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from bmnas_export.measure import SampleInputs
from bmnas_export.prepare import reference_network
from bmnas_serve.app import create_app
from bmnas_serve.manifest import Manifest, TaskSpec
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from command_line import bmnas_command, one_line_error, write_tiny_preset
from media_files import CLASSES, media_table, write_table

from bmnas.cli.predict import _answers
from bmnas.pipeline.trained import load_network
from bmnas.tasks import load_task
from bmnas.training.heads import MultilabelHead

for package in ("PIL", "soundfile", "soxr", "tokenizers"):
    pytest.importorskip(package)


def run(*words: object) -> str:
    printed = bmnas_command(*words)
    assert printed.status == 0, printed
    return printed.out


def predictions(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Init, check, search, train and export on a table of forty rows."""
    folder = tmp_path_factory.mktemp("own")
    rows = [{k: v for k, v in row.items() if k != "part"} for row in media_table(folder, 40)]
    write_table(folder / "pets.csv", rows)
    task, runs = folder / "task.toml", folder / "run"
    run("init", folder / "pets.csv", "--out", task)
    run("check", "--task", task, "--out", folder / "samples.png")
    # A hand-made fusion takes every modality.
    preset = ("--preset", write_tiny_preset(folder))
    run("search", "--task", task, "--run", runs, *preset)
    genotype = json.loads((runs / "genotype.json").read_text("utf-8"))
    assert genotype["format"]
    run("train", "--fusion", "concat", "--task", task, "--run", runs / "concat", *preset)
    run("export", "--genotype", runs / "concat", "--out", folder / "bundle")
    return folder


def test_predictions_of_files_are_those_of_the_pipeline_that_trained(folder: Path) -> None:
    found = predictions(run("predict", folder / "bundle", folder / "pets.csv"))
    assert [int(row["row"]) for row in found] == [*range(40)]
    task = load_task(folder / "task.toml")
    trained = load_network(folder / "run" / "concat" / "network.safetensors", task)
    network = reference_network(trained.network)
    for part in ("train", "validation", "test"):
        inputs = SampleInputs(task, trained.task, network, part)
        with torch.inference_mode():
            logits = network(*inputs.rows(torch.arange(len(inputs))).values())
        expected = logits.softmax(1).numpy()
        rows = [found[sample] for sample in task.samples(part)]
        received = np.array([[float(row[name]) for name in CLASSES] for row in rows])
        assert np.abs(received - expected).max() < 1e-5
        assert [row["label"] for row in rows] == [CLASSES[k] for k in expected.argmax(1)]


def test_new_rows_lie_elsewhere_and_have_no_labels(folder: Path, tmp_path: Path) -> None:
    rows = media_table(tmp_path / "new", 6, seed=5)
    for row in rows:
        del row["label"], row["part"], row["patient"]
    rows[2]["city"] = "Lima"  # no category of train
    whole = write_table(tmp_path / "new" / "new.csv", rows)
    apart = write_table(tmp_path / "new.csv", rows)
    expected = run("predict", folder / "bundle", whole)
    assert run("predict", folder / "bundle", apart, "--folder", tmp_path / "new") == expected
    out = tmp_path / "found.csv"
    assert run("predict", folder / "bundle", whole, "--out", out) == ""
    assert out.read_text("utf-8") == expected
    # One sample at a time says the same.
    row = {**rows[1], "photo": tmp_path / "new" / rows[1]["photo"]}
    row["sound"] = tmp_path / "new" / rows[1]["sound"]
    words = [word for name, value in row.items() for word in (f"--{name}", value)]
    (one,) = predictions(run("predict", folder / "bundle", *words))
    other = predictions(expected)[1]
    assert one["label"] == other["label"]
    assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)


def test_what_cannot_be_predicted_is_told(folder: Path, tmp_path: Path) -> None:
    rows = media_table(tmp_path, 4)
    (tmp_path / rows[1]["photo"]).write_bytes(b"none")
    (tmp_path / rows[2]["sound"]).unlink()
    table = write_table(tmp_path / "new.csv", rows)
    error = one_line_error(bmnas_command("predict", folder / "bundle", table))
    assert "cannot be read (2): row 1: " in error
    assert "row 2: " in error
    assert "--broken skip" in error
    printed = bmnas_command("predict", folder / "bundle", table, "--broken", "skip")
    assert [row["row"] for row in predictions(printed.out)] == ["0", "3"]
    assert "rows that are left out: 2" in printed.err
    for row in rows:
        (tmp_path / row["photo"]).write_bytes(b"none")
    error = one_line_error(bmnas_command("predict", folder / "bundle", table, "--broken", "skip"))
    assert "no row is left: all have files that cannot be read: row 0: " in error
    del rows[0]["weight"]
    write_table(table, [{k: v for k, v in row.items() if k != "weight"} for row in rows])
    error = one_line_error(bmnas_command("predict", folder / "bundle", table))
    assert "received no column weight, expected age, weight, height, visits, city (a" in error
    assert "did you mean" not in error
    for words in ((), (table, "--age", "3"), ("--age",), ("--age", "3", "x")):
        assert "expected" in one_line_error(bmnas_command("predict", folder / "bundle", *words))


def test_labels_are_given_above_the_threshold_as_training_does() -> None:
    manifest = Manifest(
        "tags", TaskSpec("tags", "multilabel", "threshold"), (), (), CLASSES, {}, threshold=0.5
    )
    logits = torch.tensor([[0.0, 0.01, -0.01]])
    outputs = {"probabilities": logits.sigmoid().numpy()}
    header, (line,) = _answers(manifest, outputs)
    assert header == ["labels", *CLASSES]
    decided = MultilabelHead(0.5).decide(logits)[0].tolist()
    assert line[0] == "|".join(name for name, own in zip(CLASSES, decided, strict=True) if own)
    assert line[0] == CLASSES[1]


def test_the_probability_of_a_pair_is_one_column_of_that_name() -> None:
    manifest = Manifest("pairs", TaskSpec("pairs", "matching", "none"), (), (), (), {})
    pair = np.array([[0.5]], np.float32)
    assert _answers(manifest, {"logits": 0 * pair, "probability": pair}) == (
        ["probability"],
        [["0.5"]],
    )


def test_a_table_that_has_changed_since_training_is_not_exported(
    folder: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    words = ("export", "--genotype", own / "run" / "concat", "--task", own / "task.toml")
    run(*words, "--out", tmp_path / "same")
    manifests = [
        json.loads((at / "manifest.json").read_text("utf-8"))
        for at in (folder / "bundle", tmp_path / "same")
    ]
    assert manifests[0]["inputs"] == manifests[1]["inputs"]
    text = (own / "pets.csv").read_text("utf-8")
    with (own / "pets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, text.splitlines()[0].split(","))
        writer.writeheader()
        for row in csv.DictReader(io.StringIO(text)):
            writer.writerow({**row, "weight": 1000} if row["weight"] else row)
    error = one_line_error(bmnas_command(*words, "--out", tmp_path / "changed"))
    assert "modality table: the task makes its rows otherwise than in training" in error
    assert not (tmp_path / "changed").exists()


def test_the_example_of_the_bundle_is_answered(folder: Path) -> None:
    session = Session.open(folder / "bundle", intra_op_threads=1)
    app = create_app(Repository.of_session(session))

    async def ask() -> Any:
        transport = httpx.ASGITransport(app)
        content = (folder / "bundle" / "example.json").read_bytes()
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://pets.test") as client,
        ):
            return await client.post("/v2/models/pets/infer", content=content)

    answer = asyncio.run(ask())
    expected = json.loads((folder / "bundle" / "example.expected.json").read_text("utf-8"))
    assert answer.status_code == 200
    assert answer.json()["outputs"] == expected["outputs"]


def test_the_server_says_of_files_what_predict_says(folder: Path) -> None:
    expected = predictions(run("predict", folder / "bundle", folder / "pets.csv"))[:12]
    rows = predictions((folder / "pets.csv").read_text("utf-8"))[:12]
    app = create_app(Repository.of_session(Session.open(folder / "bundle", intra_op_threads=1)))

    def parts(row: dict[str, str]) -> dict[str, Any]:
        files = {name: (folder / row[name]).read_bytes() for name in ("photo", "sound")}
        columns = [one["column"] for one in source["vector"]]
        fields = json.dumps({name: row[name] for name in columns})
        texts = {name: (None, row[name]) for name in taken if name in row and name not in files}
        return {**files, **texts, "table": (None, fields)}

    manifest = json.loads((folder / "bundle" / "manifest.json").read_text("utf-8"))
    taken = {one["name"]: one["preprocessing"] for one in manifest["inputs"]}
    source = taken["table"]["source"]

    async def ask() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://pets.test") as client,
        ):
            return [(await client.post("/v1/predict", files=parts(row))).json() for row in rows]

    for found, row in zip(asyncio.run(ask()), expected, strict=True):
        assert found["left_out"] == []
        assert found["labels"] == [row["label"]]
        for name in CLASSES:
            assert found["probabilities"][name] == pytest.approx(float(row[name]), abs=1e-5)


def test_predictions_need_no_torch(folder: Path) -> None:
    without = (
        "import sys; sys.modules |= dict.fromkeys(('torch', 'sklearn', 'scipy', 'onnx'));"
        "from bmnas.cli import main; main()"
    )
    words = [sys.executable, "-c", without, "predict", folder / "bundle", folder / "pets.csv"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("predict", folder / "bundle", folder / "pets.csv")
