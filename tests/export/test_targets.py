from __future__ import annotations

from pathlib import Path
from typing import Any

import bmnas_export.targets
import numpy as np
import onnx
import pytest
import torch
from bmnas_export import (
    TARGETS,
    Bundle,
    Exported,
    ExportError,
    PrecisionError,
    Target,
    export_bundle,
    precision,
)
from bmnas_serve import manifest as manifests
from bmnas_serve.errors import BundleError
from bmnas_serve.manifest import TargetSpec
from bmnas_serve.session import Session
from onnx import TensorProto, helper
from tiny_networks import tiny_network, tiny_task

from bmnas.machine.errors import UserError
from bmnas.pipeline.multimodal import raw_samples
from bmnas.pipeline.trained import TrainedNetwork
from bmnas.tasks.task import Task

# Vectors where nothing else is asked: an untrained network of images rounds to 1.1e-5 of a logit
# without vector instructions, a hair above what an export allows.
VECTORS = "vector", "vector"


def test_a_target_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(exported: Exported) -> TargetSpec:
        assert set(exported.made) == {"first"}
        assert exported.file_of("onnx").is_file()
        (exported.folder / "own").mkdir()
        (exported.folder / "own" / "notes.txt").write_text("a file of its own")
        return TargetSpec("own/notes.txt", "text", {"me": "1"}, measured={"lines": 1})

    def first(exported: Exported) -> TargetSpec:
        return TargetSpec("model.onnx", "float32", {})

    monkeypatch.setitem(TARGETS, "own", Target(own, source="first"))
    monkeypatch.setitem(TARGETS, "first", Target(first))
    task = tiny_task(VECTORS)
    bundle = export_bundle(tiny_network(task), task, tmp_path / "bundle", targets=["own", "onnx"])
    found = manifests.load(bundle.folder)
    assert list(found.targets) == ["first", "own"]
    assert found.targets["own"] == TargetSpec(
        "own/notes.txt", "text", {"me": "1"}, {}, {"lines": 1}
    )
    assert len(found.files["own/notes.txt"]) == 64
    with pytest.raises(BundleError, match=r"'own', expected one .* for onnxruntime: onnx, first"):
        Session.open(bundle.folder, target="own")
    # A second export may replace it, with its folder.
    export_bundle(tiny_network(task), task, bundle.folder)
    assert not (bundle.folder / "own").exists()


def test_a_target_that_cannot_hold_a_network_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(exported: Exported) -> TargetSpec:
        raise ExportError("no such operator")

    monkeypatch.setitem(TARGETS, "own", Target(fails))
    task = tiny_task(VECTORS)
    with pytest.raises(ExportError, match="no such operator"):
        export_bundle(tiny_network(task), task, tmp_path / "bundle", targets=["own"])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_made_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "own", Target(len, package="nothing_of_it", install="make it"))
    task = tiny_task(VECTORS)
    for name, expected in (
        ("onx", r"received target 'onx', expected one of onnx, onnx-fp16, .* did you mean"),
        ("own", "target own needs the package nothing_of_it, .*: run make it"),
    ):
        with pytest.raises(UserError, match=expected):
            export_bundle(tiny_network(task), task, tmp_path / "bundle", targets=[name])


def answered(kinds: tuple[str, str]) -> tuple[Task, TrainedNetwork]:
    """Return a task whose labels of validation are what its network says."""
    task = tiny_task(kinds, test=5)
    trained = tiny_network(task)
    samples = raw_samples(task, trained.network, "validation")
    with torch.no_grad():
        logits = trained.network(*samples.batch(torch.arange(len(samples))).inputs)
    task.labels[task.samples("validation")] = logits.argmax(1).numpy()
    return task, trained


ONNX_TARGETS = ("onnx-fp16", "onnx-int8", "onnx-int8-trt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    task = tiny_task(("image", "waveform"), names=("photo", "sound"), test=5)
    folder = tmp_path_factory.mktemp("made") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        # Six samples: one that falls otherwise is worth 17 points.
        patch.setattr(bmnas_export.targets, "_INT8_POINTS", 50)
        return export_bundle(tiny_network(task), task, folder, targets=ONNX_TARGETS)


def model_of(bundle: Bundle, target: str) -> onnx.ModelProto:
    return onnx.load(bundle.folder / bundle.manifest.targets[target].file)


@pytest.mark.parametrize(
    ("target", "apart"), [("onnx-fp16", 0.01), *((t, 0.5) for t in ONNX_TARGETS[1:])]
)
def test_a_target_in_fewer_bits_answers_alike_and_says_how_well(
    made: Bundle, target: str, apart: float
) -> None:
    spec = made.manifest.targets[target]
    assert spec.precision == {"onnx-fp16": "float16"}.get(target, "int8")
    assert spec.producer["onnxruntime"]
    measured = spec.measured
    assert measured["samples"] == 6
    assert 0 < measured["max_scaled_difference"] < apart
    plain = Session.open(made.folder)
    session = Session.open(made.folder, target=target)
    draw = np.random.default_rng(0)
    for rows in (1, 3):
        batch = {
            "photo": draw.integers(0, 256, (rows, 9, 7), dtype=np.uint8),
            "sound": draw.integers(-3000, 3000, (rows, 1000), dtype=np.int16),
        }
        expected, received = plain.run(batch), session.run(batch)
        assert {array.dtype for array in received.values()} == {np.dtype(np.float32)}
        scale = np.abs(expected["logits"]).max()
        np.testing.assert_allclose(
            received["logits"] / scale, expected["logits"] / scale, atol=apart, rtol=0
        )
        assert not np.array_equal(received["logits"], expected["logits"])


def test_weights_take_fewer_bytes(made: Bundle) -> None:
    def kinds(target: str) -> set[int]:
        return {tensor.data_type for tensor in model_of(made, target).graph.initializer}

    assert TensorProto.FLOAT16 in kinds("onnx-fp16")
    # Values are UINT8 besides where the way that is fastest on this machine is a static one.
    assert TensorProto.INT8 in kinds("onnx-int8")
    # TensorRT quantises weights itself, by what stands in front of them.
    assert TensorProto.UINT8 not in kinds("onnx-int8-trt")


@pytest.mark.parametrize("target", ONNX_TARGETS)
def test_what_stands_before_a_log_stays_in_float32(made: Bundle, target: str) -> None:
    model = model_of(made, target)
    names = set(precision.before_log(model))
    assert names
    before = [node for node in model.graph.node if node.name in names]
    kinds = [node.op_type for node in before]
    assert "Log" in kinds
    assert kinds.count("MatMul") == 3  # cosines, sines, mel bands
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in before}
    halves = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    assert not halves & {name for node in before for name in node.input}


@pytest.mark.parametrize("target", ["onnx-int8", "onnx-int8-trt"])
def test_convolutions_of_few_channels_stay_in_float32(made: Bundle, target: str) -> None:
    source = onnx.load(made.folder / "model.onnx")
    first = {"backbones.photo.stem.entry.1/Conv", "backbones.sound.stem.entry.1/Conv"}
    few = precision.narrow_convolutions(source, precision.FEW)
    assert first == set(few) - set(precision.before_log(source))
    weights = {tensor.name: tensor for tensor in model_of(made, target).graph.initializer}
    read = {n.name: n.input[1] for n in model_of(made, target).graph.node if n.op_type == "Conv"}
    assert all(weights[read[name]].data_type == TensorProto.FLOAT for name in first)
    assert set(read) > first


def test_tensorrt_is_spared_int16(made: Bundle) -> None:
    assert made.manifest.targets["onnx-int8-trt"].dtypes == {"sound": "int32"}
    kinds = {
        entry.name: entry.type.tensor_type.elem_type
        for entry in model_of(made, "onnx-int8-trt").graph.input
    }
    assert kinds == {"photo": TensorProto.UINT8, "sound": TensorProto.INT32}
    assert made.manifest.targets["onnx-int8"].dtypes == {}


def test_int16_that_more_than_a_cast_reads_is_told() -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.INT16, [1]) for name in "xy"]
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Cast", ["x"], ["z"], to=1)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]))
    with pytest.raises(ExportError, match=r"input 'x' is int16, .* and Neg reads it"):
        precision.widened(model)


@pytest.mark.parametrize("points", [1.0, 100.0])
def test_of_the_ways_to_int8_the_fastest_that_loses_nothing_is_taken(
    points: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, trained = answered(("image", "text"))
    monkeypatch.setattr(bmnas_export.targets, "_INT8_POINTS", points)
    times = iter((5.0, 4.0, 3.0, 2.0, 1.0))
    monkeypatch.setattr(bmnas_export.targets, "_latency", lambda *arguments: next(times))
    # The fastest is bad.
    monkeypatch.setattr(precision, "quantize_static", spoiled(precision.quantize_static, 4))
    bundle = export_bundle(trained, task, tmp_path / "bundle", targets=["onnx-int8"])
    measured = bundle.manifest.targets["onnx-int8"].measured
    assert list(measured["tried"]) == [
        "static Conv, MatMul, Gemm",
        "static Conv",
        "static Conv of more than 16 channels",
        "dynamic MatMul",
        "static Conv, dynamic MatMul",
    ]
    assert measured["method"] == "dynamic MatMul"
    assert measured["score"] == measured["reference"]
    assert measured["tried"]["static Conv, dynamic MatMul"]["score"] < measured["reference"]
    assert set(bundle.sizes) == {path.name for path in bundle.folder.iterdir()}


def test_a_product_that_loses_the_score_stays_in_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, trained = answered(("image", "text"))
    right = precision.quantize_static

    def wrong(source: Path, out: Path, batches: Any, operators: Any, **options: Any) -> None:
        right(source, out, batches, operators, **options)
        if "Gemm" in operators:
            out.write_bytes(turned(out))

    monkeypatch.setattr(precision, "quantize_static", wrong)
    bundle = export_bundle(trained, task, tmp_path / "bundle", targets=["onnx-int8-trt"])
    measured = bundle.manifest.targets["onnx-int8-trt"].measured
    assert measured["method"] == "static Conv"
    assert measured["tried"]["static Conv, MatMul, Gemm"]["score"] < measured["score"]


def spoiled(write: Any, call: int) -> Any:
    """Return ``write``, whose file number ``call`` says something else."""
    calls = []

    def wrong(source: Path, out: Path, *arguments: Any, **options: Any) -> None:
        write(source, out, *arguments, **options)
        calls.append(out)
        if len(calls) >= call:
            out.write_bytes(turned(out))

    return wrong


def turned(path: Path) -> bytes:
    """Return the model in ``path`` with logits of the opposite sign."""
    model = onnx.load(path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "logits":
                    names[place] = "straight"
    model.graph.node.append(helper.make_node("Neg", ["straight"], ["logits"], "turn"))
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("onnx-fp16", r"model\.fp16\.onnx: scores [\d.]+ on 6 .* lose at most 0\.2 points; 0 are"),
        (
            "onnx-int8",
            r"model\.int8\.onnx: scores on 6 .* are static .*; dynamic MatMul: 0.00, in",
        ),
        (
            "onnx-int8-trt",
            r"model\.int8-trt\.onnx: .* are static .*; static MatMul: 0.00, in",
        ),
    ],
)
def test_a_target_that_answers_worse_is_refused_with_figures(
    target: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = precision.to_float16

    def to_float16(source: Path) -> bytes:
        path = tmp_path / "half.onnx"
        path.write_bytes(half(source))
        return turned(path)

    monkeypatch.setattr(precision, "to_float16", to_float16)
    for name in ("quantize_static", "quantize_dynamic"):
        monkeypatch.setattr(precision, name, spoiled(getattr(precision, name), 1))
    task, trained = answered(VECTORS)
    with pytest.raises(PrecisionError, match=expected):
        export_bundle(trained, task, tmp_path / "bundle", targets=[target])
    assert not (tmp_path / "bundle").exists()
