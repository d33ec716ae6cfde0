from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bmnas_export.bundle
import numpy as np
import onnx
import pytest
import torch
from bmnas_export import Bundle, ExportError, ParityError, export_bundle
from bmnas_serve import manifest as manifests
from bmnas_serve.codec import decode_request, encode_response
from bmnas_serve.session import Session
from tiny_networks import tiny_network, tiny_task

from bmnas.features.samples import RawInput
from bmnas.machine.errors import UserError
from bmnas.pipeline.trained import TrainedNetwork
from bmnas.tasks.task import Task

SCORES = {"metric": "accuracy", "test": {"score": 0.5, "samples": 7}}


@dataclasses.dataclass(frozen=True)
class Made:
    task: Task
    trained: TrainedNetwork
    bundle: Bundle

    @property
    def folder(self) -> Path:
        return self.bundle.folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    task = tiny_task(("image", "tokens", "vector"), names=("photo", "words", "numbers"))
    trained = tiny_network(task)
    genotype = dataclasses.replace(trained.architecture, provenance={"run": "/somewhere/private"})
    trained = dataclasses.replace(trained, architecture=genotype)
    folder = tmp_path_factory.mktemp("made") / "bundle"
    return Made(task, trained, export_bundle(trained, task, folder, scores=SCORES))


@pytest.fixture
def quick(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Let a further export of the same network take the graph from the first one."""
    content = (made.folder / "model.onnx").read_bytes()
    monkeypatch.setattr(bmnas_export.bundle, "export_graph", lambda *arguments: content)
    return made


def test_a_bundle_is_what_its_manifest_says(made: Made) -> None:
    names = {"model.onnx", "example.json", "example.expected.json", "manifest.json"}
    names |= {"samples.safetensors", "pipeline.onnx"}
    assert {path.name for path in made.folder.iterdir()} == names
    manifest = manifests.load(made.folder)
    manifests.verify_files(manifest, made.folder)
    assert manifest == made.bundle.manifest
    assert manifest.files.keys() == names - {"manifest.json"}
    assert made.bundle.sizes == {name: (made.folder / name).stat().st_size for name in names}
    assert (manifest.name, manifest.task.kind) == ("tiny", "multiclass")
    assert manifest.class_names == ("cat", "dog", "owl")
    assert manifest.threshold is None
    measured = manifest.scores["exported"]
    assert manifest.scores == {**SCORES, "exported": measured}
    assert (measured["samples"], measured["by"]) == (70, "onnxruntime")
    assert manifest.graph.keys() == {"opset", "ir", "bytes", "nodes", "parts"}
    backbones = {f"backbones.{spec.name}" for spec in manifest.inputs}
    assert {*backbones, "pool"} < manifest.graph["parts"].keys()
    assert sum(manifest.graph["parts"].values()) == manifest.graph["nodes"]
    assert (manifest.graph["opset"], manifest.graph["ir"]) == (20, 10)
    assert manifest.graph["bytes"] == made.bundle.sizes["model.onnx"]
    assert manifest.genotype == made.trained.genotype.to_dict()
    assert {"bmnas", "torch", "onnx", "onnxruntime", "python"} <= manifest.versions.keys()


def test_the_manifest_describes_every_tensor(made: Made) -> None:
    manifest = manifests.load(made.folder)
    # Nothing reads the third modality: it is no input.
    assert [(s.name, s.shape, s.dtype) for s in manifest.inputs] == [
        ("photo", (-1, 9, 7), "uint8"),
        ("words", (-1, 6), "int64"),
    ]
    assert all(spec.meaning for spec in (*manifest.inputs, *manifest.outputs))
    data = made.task.modality("photo").data[made.task.samples("train", "validation")]
    assert manifest.inputs[0].range == (data.min(), data.max())
    assert manifest.inputs[1].range is None
    assert "value_range" not in manifest.inputs[0].preprocessing
    assert [(s.name, s.shape) for s in manifest.outputs] == [
        ("logits", (-1, 3)),
        ("probabilities", (-1, 3)),
    ]


def test_what_was_measured_is_in_the_manifest(made: Made) -> None:
    manifest = manifests.load(made.folder)
    assert manifest.parity["passed"]
    assert list(manifest.parity["batches"]) == ["1", "2", "7", "64"]
    assert manifest.parity["agree"] == manifest.parity["compared"] == 74
    assert manifest.latency["onnxruntime"]["batch_64"]["median_ms"] > 0
    assert manifest.latency["onnxruntime"]["batch_1"]["p99_ms"] > 0
    assert manifest.latency["threads"] == len(os.sched_getaffinity(0))
    assert manifest.latency["hardware"]["processor"]
    shown = made.bundle.to_dict()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["parameters"]["backbones"] > shown["parameters"]["classifier"] > 0


def test_the_model_tells_what_it_is_and_not_where_it_was_made(made: Made) -> None:
    content = (made.folder / "model.onnx").read_bytes()
    root = Path(bmnas_export.bundle.__file__).parents[2]
    for place in ("site-packages", ".py", "private", "stack_trace"):
        assert place.encode() not in content
    for path in (Path.home(), Path(tempfile.gettempdir()), root):
        assert f"{path}/".encode() not in content
    found = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    assert found["bmnas.format"] == manifests.FORMAT
    assert json.loads(found["bmnas.class_names"]) == ["cat", "dog", "owl"]
    assert json.loads(found["bmnas.genotype"])["cells"] == made.trained.genotype.to_dict()["cells"]


def batch_of(made: Made, size: int) -> dict[str, torch.Tensor]:
    network = made.trained.network
    samples = made.task.samples("train", "validation", "test")
    return {
        name: RawInput(made.task.modality(name), network.backbone(name), samples).batch(
            torch.arange(size)
        )
        for name in network.modalities
    }


@pytest.mark.parametrize("size", [1, 3, 64, 88])
def test_a_session_answers_as_torch_does(made: Made, size: int) -> None:
    batch = batch_of(made, size)
    assert [tensor.dtype for tensor in batch.values()] == [torch.uint8, torch.int64]
    with torch.no_grad():
        expected = made.trained.network(*batch.values())
    session = Session.open(made.folder, intra_op_threads=1)
    outputs = session.run({name: tensor.numpy() for name, tensor in batch.items()})
    scale = made.bundle.parity.scale
    np.testing.assert_allclose(outputs["logits"] / scale, expected.numpy() / scale, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"], expected.softmax(-1), atol=1e-5)
    assert {array.dtype for array in outputs.values()} == {np.dtype(np.float32)}


def test_the_example_can_be_sent_and_is_answered_as_written(made: Made) -> None:
    session = Session.open(made.folder)
    body = (made.folder / "example.json").read_bytes()
    request = decode_request(body, session.inputs, session.outputs, 1)
    arrays = request.inputs
    first = made.task.samples("test")[:1]
    np.testing.assert_array_equal(arrays["photo"], made.task.modality("photo").data[first])
    answer, _ = encode_response(session.name, "1", request, session.run(arrays))
    expected = json.loads((made.folder / "example.expected.json").read_text())
    assert json.loads(json.dumps(answer)) == expected


def test_two_exports_are_equal_and_the_second_replaces_the_first(made: Made) -> None:
    before = (made.folder / "model.onnx").read_bytes()
    again = export_bundle(made.trained, made.task, made.folder, scores=SCORES)
    assert (made.folder / "model.onnx").read_bytes() == before
    assert again.manifest.files == made.bundle.manifest.files
    assert list(made.folder.parent.iterdir()) == [made.folder]


def test_the_trained_network_stays_as_it_is(quick: Made, tmp_path: Path) -> None:
    network = quick.trained.network
    network.train()
    try:
        export_bundle(quick.trained, quick.task, tmp_path / "out")
        assert all(module.training for module in network.modules())
        assert all(parameter.requires_grad for parameter in network.fusion.parameters())
    finally:
        network.eval()


@pytest.fixture
def wrong_session(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Session.run

    def run(self: Session, inputs: Any) -> Any:
        outputs = right(self, inputs)
        return {**outputs, "logits": outputs["logits"] * 1.001}

    monkeypatch.setattr(Session, "run", run)


@pytest.mark.usefixtures("wrong_session")
def test_a_failing_comparison_leaves_no_bundle(quick: Made, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"batch 64: logits 0\.001"):
        export_bundle(quick.trained, quick.task, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("wrong_session")
def test_a_failing_comparison_keeps_the_bundle_that_was_there(
    quick: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(quick.folder)
    # To look for the place translates the network once more, as in the test above.
    monkeypatch.setattr(bmnas_export.bundle, "first_difference", lambda *_: "at a node")
    with pytest.raises(ParityError, match="at a node; no bundle was written"):
        export_bundle(quick.trained, quick.task, quick.folder)
    assert contents(quick.folder) == before
    assert list(quick.folder.parent.iterdir()) == [quick.folder]


def test_a_full_disk_is_one_line_and_keeps_the_bundle(
    quick: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(quick.folder)

    def full(self: Path, *arguments: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        export_bundle(quick.trained, quick.task, quick.folder)
    monkeypatch.undo()
    assert contents(quick.folder) == before
    assert list(quick.folder.parent.iterdir()) == [quick.folder]


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder where root cannot write"
)
def test_a_place_where_nobody_can_write_is_one_line(quick: Made) -> None:
    with pytest.raises(UserError, match=r"^/proc/bmnas: cannot be written: "):
        export_bundle(quick.trained, quick.task, Path("/proc/bmnas"))


def test_a_folder_of_the_user_is_refused_before_any_work(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(bmnas_export.bundle, "export_graph")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds no bundle, and nothing there is deleted"):
        export_bundle(made.trained, made.task, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_broken_graph_is_an_export_error(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas_export.bundle, "export_graph", lambda *arguments: b"nonsense")
    with pytest.raises(ExportError, match="onnxruntime cannot open the model"):
        export_bundle(made.trained, made.task, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_labels_have_a_threshold_and_sigmoids(tmp_path: Path) -> None:
    task = tiny_task(("vector", "vector"), kind="multilabel", test=5)
    bundle = export_bundle(tiny_network(task), task, tmp_path / "out")
    assert bundle.manifest.threshold == 0.4
    assert bundle.manifest.task.kind == "multilabel"
    assert "sigmoid" in bundle.manifest.outputs[1].meaning
    assert [batch.batch for batch in bundle.parity.batches] == [1, 2, 5]
    assert bundle.manifest.parity["test_samples"] == 5
    # Latency is measured at 64 all the same, on repeated samples.
    assert set(bundle.latency) == {1, 64}


def test_unimodal_logits_are_in_the_graph(tmp_path: Path) -> None:
    """Of three kinds of head, one of a modality that no Cell reads."""
    task = tiny_task(("image", "vector", "text"), test=5)
    trained = tiny_network(task, unimodal_logits=True)
    bundle = export_bundle(trained, task, tmp_path / "out")
    assert bundle.parity.passed
    assert [spec.name for spec in bundle.manifest.inputs] == ["m0", "m1", "m2"]


def test_a_modality_with_the_name_of_an_output_is_refused(tmp_path: Path) -> None:
    task = tiny_task(("vector", "vector"), names=("logits", "other"))
    with pytest.raises(
        UserError, match="a modality called 'logits', which is the name of an output"
    ):
        export_bundle(tiny_network(task), task, tmp_path / "out")


def test_scores_that_are_not_finite_are_refused(quick: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be described for serving: .*scores"):
        export_bundle(quick.trained, quick.task, tmp_path / "out", scores={"test": float("nan")})


class Recorded:
    """Notes the stages, their messages and how far they came."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.units = 0

    @contextlib.contextmanager
    def stage(self, name: str, units: int) -> Iterator[Recorded]:
        self.name, self.expected = name, units
        yield self

    def advance(self, units: int = 1) -> None:
        self.units += units

    def message(self, text: str) -> None:
        self.messages.append(text)

    def note(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_is_told_stage_by_stage(quick: Made, tmp_path: Path) -> None:
    progress = Recorded()
    export_bundle(quick.trained, quick.task, tmp_path / "out", progress=progress)
    assert progress.messages == ["samples", "graph", "check", "parity", "score", "latency", "write"]
    assert progress.units == progress.expected == 7
