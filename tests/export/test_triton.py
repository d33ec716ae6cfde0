"""The model repository, read by the protobuf definition that Triton's own client brings."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmnas_export import Bundle, export_bundle, triton
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.session import Session
from google.protobuf import text_format
from tiny_networks import tiny_network, tiny_task

from bmnas.tasks.task import Task


@pytest.fixture(scope="module")
def task() -> Task:
    return tiny_task(("image", "waveform"), names=("photo", "sound"), test=5)


@pytest.fixture(scope="module")
def made(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("made") / "bundle"
    return export_bundle(tiny_network(task), task, folder, targets=["triton", "onnx-fp16"])


def parsed(config: Path) -> Any:
    # Not by import: the package around it needs gRPC.
    client = importlib.util.find_spec("tritonclient")
    assert client is not None
    assert client.submodule_search_locations is not None
    place = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(config.read_text("utf-8"), module.ModelConfig()), module


@pytest.mark.parametrize("target", ["onnx", "onnx-fp16"])
def test_triton_reads_the_model_as_it_is(made: Bundle, task: Task, target: str) -> None:
    name = "tiny" if target == "onnx" else "tiny-onnx-fp16"
    folder = made.folder / "triton" / name
    config, proto = parsed(folder / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 64)
    assert config.HasField("dynamic_batching")
    session = Session.open(folder / "1" / config.default_model_filename)
    for received, expected in ((config.input, session.inputs), (config.output, session.outputs)):
        assert [(t.name, proto.DataType.Name(t.data_type), (-1, *t.dims)) for t in received] == [
            (t.name, f"TYPE_{PROTOCOL[t.dtype]}", t.shape) for t in expected
        ]
    labelled = [(t.name, t.label_filename) for t in config.output if t.label_filename]
    assert labelled == [("probabilities", "labels.txt")]
    assert (folder / "labels.txt").read_text() == "cat\ndog\nowl\n"
    file = "model.onnx" if target == "onnx" else made.manifest.targets[target].file
    assert (folder / "1" / "model.onnx").read_bytes() == (made.folder / file).read_bytes()
    # The warm-up is the first test sample, and the model takes it.
    [warm] = config.model_warmup
    arrays = {
        key: np.frombuffer(
            (folder / "warmup" / value.input_data_file).read_bytes(),
            {"TYPE_UINT8": np.uint8, "TYPE_INT16": np.int16}[proto.DataType.Name(value.data_type)],
        ).reshape(1, *value.dims)
        for key, value in warm.inputs.items()
    }
    first = task.samples("test")[:1]
    for modality in task.modalities:
        np.testing.assert_array_equal(arrays[modality.name], modality.data[first])
    assert session.run(arrays)["logits"].shape == (1, 3)


def test_the_repository_is_in_the_manifest(made: Bundle) -> None:
    spec = made.manifest.targets["triton"]
    assert spec.file == "triton/tiny/config.pbtxt"
    assert spec.measured["models"] == {"tiny": "onnx", "tiny-onnx-fp16": "onnx-fp16"}
    listed = {name for name in made.manifest.files if name.startswith("triton/")}
    found = {
        path.relative_to(made.folder).as_posix()
        for path in (made.folder / "triton").rglob("*")
        if path.is_file()
    }
    assert listed == found


def test_an_engine_runs_in_tensorrts_backend(made: Bundle, tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"an engine")
    sample = {"photo": np.zeros((1, 9, 7), np.uint8), "sound": np.zeros((1, 1000), np.int32)}
    triton.write_model(tmp_path / "m", tmp_path / "model.engine", made.manifest, sample)
    config, proto = parsed(tmp_path / "m" / "config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert (tmp_path / "m" / "1" / "model.plan").read_bytes() == b"an engine"
    assert [proto.DataType.Name(t.data_type) for t in config.input] == ["TYPE_UINT8", "TYPE_INT32"]
    assert (tmp_path / "m" / "warmup" / "1").stat().st_size == 4000


def test_class_names_are_a_line_each(made: Bundle, tmp_path: Path) -> None:
    manifest = dataclasses.replace(made.manifest, class_names=("a\nb", "Käse", "c"))
    sample = {"photo": np.zeros((1, 9, 7), np.uint8), "sound": np.zeros((1, 1000), np.int16)}
    triton.write_model(tmp_path / "m", made.folder / "model.onnx", manifest, sample)
    assert (tmp_path / "m" / "labels.txt").read_text("utf-8") == "a b\nKäse\nc\n"
