from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bmnas_serve.errors import BundleError, InferenceError, ServeError
from bmnas_serve.manifest import InputSpec, TensorSpec
from bmnas_serve.runner import CPU, PROVIDERS, _without_stderr, check_one_runtime
from bmnas_serve.session import Session, Source
from onnx import TensorProto, helper
from tiny_bundles import (
    classifier_manifest,
    sample,
    save_bundle,
    save_classifier,
    save_model,
    value,
)


def test_bundle_runs_as_onnxruntime_does(tmp_path):
    folder = save_bundle(tmp_path / "b")
    session = Session.open(folder, intra_op_threads=1)
    inputs = sample(5)
    expected = ort.InferenceSession(folder / "model.onnx").run(None, inputs)
    received = session.run(inputs)
    assert list(received) == ["logits", "probabilities"]
    for array, reference in zip(received.values(), expected, strict=True):
        np.testing.assert_array_equal(array, reference)
    assert session.name == "pets"
    assert session.manifest is not None
    assert session.runner.describe().threads == 1
    assert session.runner.describe().providers == (CPU,)


def test_bare_model_describes_itself(tmp_path):
    session = Session.open(save_classifier(tmp_path / "net.onnx"))
    assert session.name == "net"
    assert session.manifest is None
    assert session.inputs == (
        InputSpec("image", (-1, 2, 3), "uint8"),
        InputSpec("sound", (-1, 4), "float32"),
    )
    assert session.outputs[0] == TensorSpec("logits", (-1, 3), "float32")


@pytest.mark.parametrize("make", [save_bundle, lambda path: save_classifier(path)])
def test_what_was_verified_is_what_is_opened(tmp_path, make):
    path = make(tmp_path / "net.onnx")
    listed = (path / "manifest.json" if path.is_dir() else path).read_bytes()
    source = Source.read(path)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    session = Session.of_source(source, intra_op_threads=1)
    assert list(session.run(sample(2))) == ["logits", "probabilities"]
    assert session.sha256 == hashlib.sha256(listed).hexdigest()


def test_a_bare_model_keeps_tensors_beside_it(tmp_path):
    path = save_classifier(tmp_path / "net.onnx")
    expected = Session.open(path).run(sample(2))
    onnx.save(
        convert_constants(onnx.load(path)),
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    np.testing.assert_array_equal(Session.open(path).run(sample(2))["logits"], expected["logits"])
    assert (tmp_path / "weights").stat().st_size


def convert_constants(model):
    """Return the model with its weights as initializers, which can lie in another file."""
    constants = [node for node in model.graph.node if node.output[0].startswith("w_")]
    for node in constants:
        (tensor,) = (one.t for one in node.attribute)
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    return model


def test_threads_default_to_the_usable_cpus(tmp_path):
    session = Session.open(save_classifier(tmp_path / "net.onnx"))
    assert session.runner.describe().threads == len(os.sched_getaffinity(0))


def test_run_reports_a_wrong_array_in_one_line(tmp_path):
    session = Session.open(save_classifier(tmp_path / "net.onnx"))
    with pytest.raises(InferenceError, match="net: onnxruntime failed") as caught:
        session.run({**sample(1), "sound": np.zeros((1, 5), np.float32)})
    assert "\n" not in str(caught.value)


def test_unknown_provider_is_an_error(tmp_path):
    model = save_classifier(tmp_path / "net.onnx")
    with pytest.raises(BundleError, match="has no MoonExecutionProvider, expected one of"):
        Session.open(model, providers=["MoonExecutionProvider"])


def test_silent_fallback_to_the_cpu_is_an_error(tmp_path, monkeypatch):
    # What onnxruntime-gpu does where the driver is missing: it offers CUDA and then runs on CPU.
    model = save_classifier(tmp_path / "net.onnx")
    offered = ["CUDAExecutionProvider", CPU]
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "get_available_providers", lambda: offered)
    monkeypatch.setattr(
        ort, "InferenceSession", lambda path, options, **given: real(path, options, [CPU])
    )
    with pytest.raises(BundleError, match="runs on CPUExecutionProvider, expected CUDA"):
        Session.open(model, providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_provider_that_fails_is_not_replaced_by_the_cpu(tmp_path, monkeypatch, capfd, device):
    # onnxruntime's own way is to say "EP Error" on standard output and to go on without.
    model = save_classifier(tmp_path / "net.onnx")
    create = ort.InferenceSession._create_inference_session

    def refuse(self, providers, *more):
        if CPU not in providers:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")
        create(self, providers, *more)

    monkeypatch.setattr(ort.InferenceSession, "_create_inference_session", refuse)
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*PROVIDERS[device], CPU])
    with pytest.raises(BundleError, match=r"cannot open the model: libcudnn\.so\.9: cannot open"):
        Session.open(model, providers=PROVIDERS[device])
    assert capfd.readouterr() == ("", "")


def test_what_onnxruntime_writes_itself_is_kept_off_standard_error(capfd):
    with _without_stderr():
        os.write(2, b"[W:onnxruntime:Default] GPU device discovery failed")
    os.write(2, b"ours")
    assert capfd.readouterr().err == "ours"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"inputs": (InputSpec("image", (-1, 2, 3), "uint8"),)},
            "the model has the inputs image, sound, the manifest lists image",
        ),
        (
            {
                "inputs": (
                    InputSpec("image", (-1, 2, 4), "uint8"),
                    InputSpec("sound", (-1, 4), "float32"),
                )
            },
            r"input 'image' is uint8 \[-1, 2, 3\], the manifest says uint8 \[-1, 2, 4\]",
        ),
        (
            {"outputs": (TensorSpec("logits", (-1, 3), "float64"),)},
            "the model has the outputs logits, probabilities",
        ),
    ],
)
def test_model_and_manifest_must_agree(tmp_path, changes, message):
    folder = save_bundle(tmp_path / "b", **changes)
    with pytest.raises(BundleError, match=message):
        Session.open(folder)


def test_output_dtypes_must_agree(tmp_path):
    outputs = tuple(
        TensorSpec(tensor.name, tensor.shape, "float64") for tensor in classifier_manifest().outputs
    )
    with pytest.raises(BundleError, match="output 'logits' is float32"):
        Session.open(save_bundle(tmp_path / "b", outputs=outputs))


def test_changed_model_is_not_opened(tmp_path):
    folder = save_bundle(tmp_path / "b")
    shutil.copy(save_classifier(tmp_path / "other.onnx", work=2), folder / "model.onnx")
    with pytest.raises(BundleError, match="damaged or changed after export"):
        Session.open(folder)


def test_paths_that_hold_no_model(tmp_path, capfd):
    with pytest.raises(BundleError, match="there is no such file or folder"):
        Session.open(tmp_path / "absent")
    (tmp_path / "text.onnx").write_text("not a model\n")
    with pytest.raises(BundleError, match="onnxruntime cannot open the model") as caught:
        Session.open(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(BundleError, match=r"empty\.onnx"):
        Session.open(tmp_path / "empty.onnx")
    # onnxruntime must not print beside the exception.
    assert capfd.readouterr() == ("", "")


def test_strings_are_not_served(tmp_path):
    model = save_model(
        tmp_path / "s.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.STRING, ["batch"])],
        [value("y", TensorProto.STRING, ["batch"])],
    )
    with pytest.raises(BundleError, match=r"'x' has the type tensor\(string\), expected a tensor"):
        Session.open(model)


def test_two_builds_of_onnxruntime_are_an_error(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: object())
    with pytest.raises(ServeError, match="both onnxruntime and onnxruntime-gpu"):
        check_one_runtime()


def test_one_build_of_onnxruntime_is_right(monkeypatch):
    def only_gpu(name):
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", only_gpu)
    check_one_runtime()


def test_rows_of_a_bundle_are_joined_and_of_a_bare_file_not(tmp_path):
    folder = save_bundle(tmp_path / "b")
    assert Session.open(folder).joins
    assert not Session.open(folder / "model.onnx").joins
