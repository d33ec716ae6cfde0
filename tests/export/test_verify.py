"""Bundles that are broken on purpose, as they came or with every digest made right again."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bmnas_export.bundle
import numpy as np
import onnx
import pytest
import torch
import typer
from bmnas_export import ExportError, ParityError, export_bundle
from bmnas_export.graph import export_graph
from bmnas_export.verify import verify_bundle
from bmnas_serve import manifest as manifests
from bmnas_serve.errors import BundleError
from bmnas_serve.manifest import MODEL_FILE
from bmnas_serve.session import Session
from onnx import TensorProto, external_data_helper, numpy_helper
from tiny_networks import tiny_network, tiny_task

from bmnas.cli.verify import verify
from bmnas.machine.errors import UserError
from bmnas.machine.files import sha256_file
from bmnas.machine.tensor_file import read_tensors
from bmnas.pipeline.trained import TrainedNetwork, load_network
from bmnas.tasks.task import Task

MODEL, MANIFEST = "model.onnx", "manifest.json"


@pytest.fixture(scope="module")
def trained() -> tuple[TrainedNetwork, Task]:
    # Two modalities of one shape, so that they can be swapped.
    task = tiny_task(("vector", "vector"))
    return tiny_network(task), task


@pytest.fixture(scope="module")
def exported(
    trained: tuple[TrainedNetwork, Task], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "bundle"
    export_bundle(*trained, folder)
    return folder


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "bundle")


def weights(model: onnx.ModelProto) -> Any:
    """Return the largest weights of a model."""
    floats = [x for x in model.graph.initializer if x.data_type == TensorProto.FLOAT]
    return max(floats, key=lambda tensor: int(np.prod(tensor.dims)))


def change_model(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / MODEL)
    change(model)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def make_digests_right(folder: Path) -> None:
    """Do what somebody would who wants a change to go unnoticed."""
    manifest = manifests.parse(json.loads((folder / MANIFEST).read_text()))
    size = (folder / MODEL).stat().st_size
    files = {name: sha256_file(folder / name) for name in manifest.files}
    graph = {**manifest.graph, "bytes": size}
    fixed = dataclasses.replace(manifest, files=files, graph=graph)
    (folder / MANIFEST).write_text(json.dumps(fixed.to_file()))
    assert manifests.load(folder) == fixed


def one_value(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(weights(model)).copy()
        array.flat[0] += 0.5
        weights(model).CopyFrom(numpy_helper.from_array(array, weights(model).name))

    change_model(folder, change)


def zeroed_bytes(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        array = numpy_helper.to_array(weights(model))
        weights(model).raw_data = bytes(min(4000, array.nbytes)) + array.tobytes()[4000:]

    change_model(folder, change)


def swapped_in_the_model(folder: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        other = {"m0": "m1", "m1": "m0"}
        for node in model.graph.node:
            names = [other.get(name, name) for name in node.input]
            node.input[:] = names

    change_model(folder, change)


def swapped_in_the_manifest(folder: Path) -> None:
    change_manifest(folder, lambda data: data["inputs"].reverse())


def wrong_constant(folder: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["inputs"][0]["preprocessing"]["scaling"] = "divide by 255"

    change_manifest(folder, change)


def edited_class_name(folder: Path) -> None:
    change_manifest(folder, lambda data: data["class_names"].__setitem__(0, "fox"))


def problems_of(folder: Path) -> list[str]:
    found = verify_bundle(folder).problems
    assert all(problem.startswith(str(folder)) and "\n" not in problem for problem in found)
    return [problem.removeprefix(f"{folder}/") for problem in found]


def test_a_bundle_as_it_was_exported_has_no_problem(exported: Path) -> None:
    found = verify_bundle(exported)
    assert found.problems == ()
    assert found.parity is not None
    assert [batch.batch for batch in found.parity.batches] == [1, 2, 7, 64]
    assert found.parity.rows == found.parity.agree == 74


@pytest.mark.parametrize(
    ("breaking", "digest", "deeper"),
    [
        (one_value, "model.onnx: damaged or changed", "model.onnx: does not say what torch said"),
        (zeroed_bytes, "model.onnx: damaged or changed", "model.onnx: does not say what torch"),
        (swapped_in_the_model, "model.onnx: damaged or changed", "model.onnx: does not say what"),
        (swapped_in_the_manifest, "manifest.json: inputs: changed", "was exported for other in"),
        (wrong_constant, "manifest.json: inputs: changed", "was exported for other inputs, outp"),
        (edited_class_name, "manifest.json: class_names: changed", "was exported for other inp"),
    ],
)
def test_what_was_broken_is_told(
    bundle: Path, breaking: Callable[[Path], None], digest: str, deeper: str
) -> None:
    breaking(bundle)
    first, *others = problems_of(bundle)
    assert first.startswith(digest)
    assert any(deeper in problem for problem in others)
    # Also where somebody made the digests right.
    make_digests_right(bundle)
    (only,) = problems_of(bundle)
    assert deeper in only


def test_what_is_told_has_the_tolerance_that_was_meant(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verify_bundle(bundle).parity
    assert report is not None
    assert report.to_dict()["tolerance"] == 1e-4
    monkeypatch.setattr(bmnas_export.verify, "_TOLERANCE", -1.0)
    assert "differ by more than -1 on logits" in problems_of(bundle)[0]


def test_a_target_that_decides_otherwise_is_told(
    trained: tuple[TrainedNetwork, Task], tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    export_bundle(*trained, folder, targets=("onnx-fp16", "triton"))
    found = verify_bundle(folder)
    assert found.problems == ()
    assert re.fullmatch(r"decides 6\d of 64 .* as torch did", found.targets["onnx-fp16"])
    assert found.targets["triton"].startswith("its digest alone")
    path = folder / "model.fp16.onnx"
    model = onnx.load(path)
    _, stored = read_tensors(folder / "samples.safetensors", described="bmnas.samples/1")
    bias = np.zeros(3, np.float16)
    bias[int(stored["logits"].mean(0).argmin())] = 1000
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and list(tensor.dims) == [3]:
            tensor.CopyFrom(numpy_helper.from_array(bias, tensor.name))
    path.write_bytes(model.SerializeToString())
    assert problems_of(folder)[0].startswith("model.fp16.onnx: damaged or changed after export")
    make_digests_right(folder)
    (only,) = problems_of(folder)
    assert re.match(r"model\.fp16\.onnx: decides \d+ of 64 stored samples as torch did", only)


def test_a_server_does_not_open_a_broken_bundle(bundle: Path) -> None:
    edited_class_name(bundle)
    with pytest.raises(BundleError, match="class_names: changed after export"):
        Session.open(bundle)


def external(folder: Path) -> None:
    """Move the weights of the model to a file of their own, as large models have them."""

    def change(model: onnx.ModelProto) -> None:
        external_data_helper.set_external_data(weights(model), "weights.bin")
        external_data_helper.write_external_data_tensors(model, str(folder))

    change_model(folder, change)


def test_external_data_is_covered(bundle: Path) -> None:
    external(bundle)
    make_digests_right(bundle)
    (only,) = problems_of(bundle)
    assert only.startswith("model.onnx: keeps tensors in 'weights.bin', which manifest.json does")
    change_manifest(bundle, lambda data: data["files"].__setitem__("weights.bin", "0" * 64))
    make_digests_right(bundle)
    assert problems_of(bundle) == []
    content = bytearray((bundle / "weights.bin").read_bytes())
    content[2] ^= 0xFF
    (bundle / "weights.bin").write_bytes(content)
    assert problems_of(bundle)[0].startswith("weights.bin: damaged or changed after export")


@pytest.mark.parametrize("name", [MODEL, "samples.safetensors", "example.json"])
def test_files_that_are_cut_or_missing_are_told(bundle: Path, name: str) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[:100])
    assert problems_of(bundle)[0].startswith(f"{name}: damaged or changed after export")
    path.unlink()
    assert problems_of(bundle)[0].startswith(f"{name}: cannot be read: No such file")


def test_an_earlier_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    earlier = Path(__file__).parents[1] / "data" / "earlier" / "cells.bundle"
    with pytest.raises(BundleError, match="holds nothing to verify it by: export again"):
        verify_bundle(earlier)


def test_the_command_has_a_status(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(bundle)
    assert "those of 4 files and of the manifest are right" in capsys.readouterr().out
    edited_class_name(bundle)
    wrong_constant(bundle)
    with pytest.raises(typer.Exit) as refused:
        verify(bundle)
    assert refused.value.exit_code == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split(": ")[2] for line in shown.err.splitlines()][:2] == ["inputs", "class_names"]
    with pytest.raises(UserError, match="not a bundle"):
        verify(bundle.parent)
    with pytest.raises(typer.Exit):
        verify(bundle, as_json=True)
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 3


def breaking(change: Callable[[Path], None], folder: Path) -> Callable[..., bytes]:
    def export(*arguments: Any) -> bytes:
        model = folder / MODEL_FILE
        model.write_bytes(export_graph(*arguments))
        change(folder)
        return model.read_bytes()

    return export


def test_an_export_names_the_first_node_that_differs(
    trained: tuple[TrainedNetwork, Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas_export.bundle, "export_graph", breaking(one_value, tmp_path))
    with pytest.raises(ParityError) as caught:
        export_bundle(*trained, tmp_path / "out")
    message = str(caught.value)
    assert re.search(
        r"the first node that differs is \w+ 'backbones\.m0\.[\w.]+/\w+', by \S+ of", message
    )
    assert message.endswith("; no bundle was written")
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def scores(score: float, samples: int) -> dict[str, Any]:
    return {"test": {"score": score, "samples": samples}}


def test_a_score_that_is_not_the_trained_networks_is_an_error(
    trained: tuple[TrainedNetwork, Task], exported: Path, tmp_path: Path
) -> None:
    right = manifests.load(exported).scores["exported"]["score"]
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=rf"scores {right:.4f} on 70 test samples, but scored"):
        export_bundle(*trained, out, scores=scores(right + 0.1, 70))
    assert not out.exists()
    export_bundle(*trained, out, scores=scores(right, 70))
    with pytest.raises(ExportError, match=r"expected at most 0\.0144 between them"):
        export_bundle(*trained, out, scores={"test": {"score": right - 0.1}})
    # Of other data: there is nothing to compare.
    export_bundle(*trained, out, scores=scores(right + 0.1, 71))


def test_damaged_weights_are_told_before_the_export(
    trained: tuple[TrainedNetwork, Task], tmp_path: Path
) -> None:
    path = tmp_path / "network.safetensors"
    trained[0].save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-4000] + bytes(4000))
    with pytest.raises(UserError, match=r"damaged: the sha256 of its \d+ tensors is"):
        load_network(path)


def test_the_score_is_that_of_torch(trained: tuple[TrainedNetwork, Task], exported: Path) -> None:
    network, task = trained[0].network, trained[1]
    rows = task.samples("test")
    inputs = [torch.tensor(m.data[rows], dtype=torch.float32) for m in task.modalities]
    with torch.inference_mode():
        right = (network(*inputs).argmax(1).numpy() == task.labels[rows]).mean()
    assert manifests.load(exported).scores["exported"]["score"] == pytest.approx(right)
