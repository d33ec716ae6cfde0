from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from bmnas_serve.errors import BundleError
from bmnas_serve.manifest import TargetSpec, TaskSpec, TensorSpec, load, parse, verify_files
from tiny_bundles import classifier_manifest, save_bundle


def test_manifest_survives_a_round_trip_through_json():
    manifest = classifier_manifest(
        genotype={"format": "bmnas.genotype/1"}, versions={"torch": "2.13"}
    )
    assert parse(json.loads(json.dumps(manifest.to_dict()))) == manifest


def test_multilabel_manifest_has_a_threshold():
    manifest = classifier_manifest(task=TaskSpec("icons", "multilabel"), threshold=0.35)
    assert parse(manifest.to_dict()).threshold == 0.35


def test_another_kind_states_its_decision_and_may_have_other_logits():
    task = TaskSpec("icons", "grades", "argmax")
    two = TensorSpec("logits", (-1, 2), "float32")
    plain = classifier_manifest()
    manifest = classifier_manifest(task=task, outputs=(two, *plain.outputs[1:]))
    written = manifest.to_dict()
    assert written["task"] == {"name": "icons", "kind": "grades", "decision": "argmax"}
    assert parse(written) == manifest
    assert plain.task.decision == "argmax"


@pytest.mark.parametrize(
    ("kind", "decision", "message"),
    [
        (
            "grades",
            "",
            r"task\.kind: received \"grades\", expected one of multiclass, multilabel, or",
        ),
        ("grades", "most", r"task\.decision: received \"most\", expected one of argmax, threshold"),
        ("multiclass", "threshold", r"task\.decision: received \"threshold\", expected argmax"),
    ],
)
def test_a_decision_that_is_not_known_is_told(kind, decision, message):
    task = {"name": "icons", "kind": kind, **({"decision": decision} if decision else {})}
    with pytest.raises(BundleError, match=message):
        parse({**classifier_manifest().to_dict(), "task": task})


def test_targets_name_files_of_the_bundle():
    target = TargetSpec("fp16/model.onnx", "float16", {"bmnas": "1"}, {"sound": "int32"}, {"a": 1})
    files = {"model.onnx": "0" * 64, "fp16/model.onnx": "1" * 64}
    manifest = classifier_manifest(files=files, targets={"onnx-fp16": target})
    written = json.loads(json.dumps(manifest.to_dict()))
    assert parse(written) == manifest
    del written["files"]["fp16/model.onnx"]
    with pytest.raises(BundleError, match=r"onnx-fp16\.file: received .*, expected one of files"):
        parse(written)


@pytest.mark.parametrize("name", ["../model.onnx", "a/../b", "/etc/passwd", "a//b", "a/"])
def test_files_lie_in_the_folder(name):
    files = {"model.onnx": "0" * 64, name: "1" * 64}
    with pytest.raises(BundleError, match="expected the plain path of a file in the bundle"):
        parse({**classifier_manifest().to_dict(), "files": files})


def test_load_reads_a_bundle(tmp_path):
    folder = save_bundle(tmp_path / "b")
    manifest = load(folder)
    assert manifest.inputs[1].preprocessing == {"sample_rate": 8000}
    verify_files(manifest, folder)


DEFECTS: list[tuple[tuple[Any, ...], Any, str]] = [
    (("format",), "bmnas.bundle/9", 'format: received "bmnas.bundle/9", expected \'bmnas.bundle'),
    (("name",), "a/b", 'name: received "a/b"'),
    (("name",), 3, "name: received 3"),
    (("task",), [], "task: received [], expected a JSON object"),
    (("task",), {"name": "a", "kind": "b"}, "expected one of multiclass, multilabel"),
    (("task", "name"), "", "task.name: received"),
    (("inputs",), [], "inputs: received [], expected at least one tensor"),
    (("inputs",), {}, "inputs: received {}, expected a list"),
    (("inputs", 0), 7, "inputs[0]: received 7, expected a JSON object"),
    (("inputs", 0, "shape"), [2, 3], "inputs[0].shape: received [2, 3], expected the batch axis"),
    (("inputs", 0, "shape"), [-1, -1], "inputs[0].shape: received [-1, -1]"),
    (("inputs", 0, "shape"), [-1, True], "inputs[0].shape: received [-1, true]"),
    (("inputs", 0, "shape"), [-1, 0], "inputs[0].shape: received [-1, 0]"),
    (("inputs", 0, "shape"), "x", "inputs[0].shape: received"),
    (("inputs", 0, "dtype"), "bfloat16", 'inputs[0].dtype: received "bfloat16"'),
    (("inputs", 0, "dtype"), ["u1"], "inputs[0].dtype: received"),
    (("inputs", 0, "colour"), 1, 'inputs[0]: has the unknown field "colour"'),
    (("inputs", 0, "name"), "sound", "inputs: received"),
    (("inputs", 0, "preprocessing"), 1, "inputs[0].preprocessing: received 1"),
    (("inputs", 0, "range"), [1, 0], "inputs[0].range: received [1, 0], expected two numbers"),
    (("inputs", 0, "range"), [0], "inputs[0].range: received [0]"),
    (("inputs", 0, "range"), ["a", "b"], "inputs[0].range: received"),
    (("outputs", 0, "shape"), [-1, 4], "outputs[0].shape: received [-1, 4], expected [-1, 3]"),
    (("outputs", 0, "preprocessing"), {}, "unknown field"),
    (("class_names",), ["a", "a", "b"], "names that differ"),
    (("class_names",), ["a", 1, "b"], "class_names[1]: received 1"),
    (("class_names",), [], "class_names: received []"),
    (("threshold",), 0.5, "threshold: received 0.5, expected null"),
    (("genotype",), [], "genotype: received []"),
    (("scores",), None, "scores: received null"),
    (("files",), {}, "with 'model.onnx' in it"),
    (("files", "model.onnx"), "12", "files.model.onnx: received"),
    (("files", "../x"), "0" * 64, 'files: received "../x", expected the plain path'),
    (("extra",), 1, 'has the unknown field "extra"'),
]


@pytest.mark.parametrize(("place", "found", "message"), DEFECTS)
def test_each_defect_is_named_in_one_line(place, found, message):
    data = json.loads(json.dumps(classifier_manifest().to_dict()))
    spot = data
    for key in place[:-1]:
        spot = spot[key]
    spot[place[-1]] = found
    with pytest.raises(BundleError) as caught:
        parse(data, "b/manifest.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("b/manifest.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threshold", [None, 1.5, float("nan"), True, "0.5", 10**400])
def test_multilabel_threshold_is_a_probability(threshold):
    with pytest.raises(BundleError, match="a number from 0 to 1"):
        parse(
            classifier_manifest(task=TaskSpec("icons", "multilabel"), threshold=threshold).to_dict()
        )


def test_a_scale_is_of_finite_numbers():
    data = classifier_manifest().to_dict()
    with pytest.raises(BundleError, match=r"mean\[0\]: received .*, expected a finite number"):
        parse({**data, "scale": {"mean": [10**400], "deviation": [1.0]}})


@pytest.mark.parametrize("missing", ["format", "task", "files"])
def test_missing_fields_are_named(missing):
    data = classifier_manifest().to_dict()
    del data[missing]
    with pytest.raises(BundleError, match=f"lacks '{missing}'"):
        parse(data)


def test_what_is_not_json_cannot_be_written():
    with pytest.raises(BundleError, match="scores: not plain JSON data"):
        parse(classifier_manifest(scores={"accuracy": np.float32(0.5)}).to_dict())
    with pytest.raises(BundleError, match="scores: not plain JSON data"):
        parse(classifier_manifest(scores={"accuracy": float("nan")}).to_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b'{"format": ', "not a JSON file"),
        (b"\xff\xfe", "not a JSON file"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN stands where a finite number is expected"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b"[]", "the document: received [], expected a JSON object"),
    ],
)
def test_load_of_a_broken_file(tmp_path, content, message):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError) as caught:
        load(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "manifest.json"))


def test_a_member_that_was_changed_is_named(tmp_path):
    folder = save_bundle(tmp_path / "b")
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    for changed in (
        {**data, "class_names": ["cat", "dog", "fox"]},
        {**data, "sha256": {**data["sha256"], "class_names": "0" * 64}},
        {key: value for key, value in data.items() if key != "sha256"},
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=r"(class_names|format): changed after export: its"):
            load(folder)
    # The order of keys and white space say nothing.
    path.write_text(json.dumps(data, sort_keys=True, indent=4))
    assert load(folder).class_names == ("cat", "dog", "owl")


def test_a_manifest_of_the_earlier_version_is_read(tmp_path):
    folder = save_bundle(tmp_path / "b")
    data = {**load(folder).to_dict(), "format": "bmnas.bundle/1"}
    (folder / "manifest.json").write_text(json.dumps(data))
    assert load(folder).class_names == ("cat", "dog", "owl")


def test_load_of_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"not a bundle: it has no manifest\.json"):
        load(tmp_path)
    with pytest.raises(BundleError, match=r"nowhere: there is none; expected a folder"):
        load(tmp_path / "nowhere")
    bundle = save_bundle(tmp_path / "run" / "bundle")
    with pytest.raises(BundleError, match=re.escape(f"; did you mean {bundle}?")):
        load(bundle.parent)


def test_load_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("bmnas_serve.manifest._LIMIT", 100)
    with pytest.raises(BundleError, match="more than the 100 bytes"):
        load(save_bundle(tmp_path / "b"))


def test_changed_and_missing_files_are_found(tmp_path):
    folder = save_bundle(tmp_path / "b")
    manifest = load(folder)
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="damaged or changed after export"):
        verify_files(manifest, folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx: cannot be read"):
        verify_files(manifest, folder)
