"""What a bundle consists of is read as it was exported, and nothing else is read."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from bmnas_serve.errors import BundleError
from bmnas_serve.manifest import load
from bmnas_serve.session import Session
from tiny_bundles import classifier_manifest, sample, save_bundle, save_classifier


def rewrite(folder: Path, **changes: object) -> None:
    """Write the manifest of ``folder`` anew, with its own digests right."""
    files = dict.fromkeys(("model.onnx", *changes.pop("listed", ())))  # type: ignore[misc]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    manifest = classifier_manifest(files=digests, **changes)
    (folder / "manifest.json").write_text(json.dumps(manifest.to_file()))


def keep_weights_outside(folder: Path) -> None:
    """Move the weights of a bundle into weights.bin."""
    model = onnx.load(folder / "model.onnx")
    weights = [node for node in model.graph.node if node.output[0] in ("w_image", "w_sound")]
    for node in weights:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        model.graph.initializer.append(tensor)
        model.graph.node.remove(node)
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )


def test_weights_outside_the_model_are_read_where_the_manifest_lists_them(tmp_path):
    expected = Session.open(save_bundle(tmp_path / "plain")).run(sample(3))
    folder = save_bundle(tmp_path / "b")
    keep_weights_outside(folder)
    rewrite(folder, listed=["weights.bin"])
    received = Session.open(folder).run(sample(3))
    np.testing.assert_array_equal(received["logits"], expected["logits"])
    (folder / "weights.bin").write_bytes(bytes((folder / "weights.bin").stat().st_size))
    with pytest.raises(BundleError, match=r"weights\.bin: damaged or changed after export"):
        Session.open(folder)


def test_weights_that_the_manifest_does_not_list_are_not_read(tmp_path, monkeypatch):
    folder = save_bundle(tmp_path / "b")
    keep_weights_outside(folder)
    rewrite(folder)
    for place in (tmp_path, folder):
        monkeypatch.chdir(place)
        with pytest.raises(BundleError, match=r"weights\.bin not found"):
            Session.open(folder)


def test_class_names_that_were_swapped_are_found(tmp_path):
    folder = save_bundle(tmp_path / "b")
    model = onnx.load(folder / "model.onnx")
    contract = load(folder).contract()
    model.metadata_props.add(key="bmnas.contract", value=contract)
    onnx.save(model, folder / "model.onnx")
    rewrite(folder)
    Session.open(folder)
    rewrite(folder, class_names=("dog", "cat", "owl"))
    with pytest.raises(BundleError, match="was exported for other inputs, outputs, class names"):
        Session.open(folder)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused(tmp_path, name):
    folder = save_bundle(tmp_path / "b")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match=f"{name}: cannot be read: not a regular file"):
        Session.open(folder)


def test_a_folder_in_the_place_of_a_file_is_refused_and_not_kept_open(tmp_path):
    folder = save_bundle(tmp_path / "b")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BundleError, match=r"model\.onnx: cannot be read: not a regular file"):
            Session.open(folder)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pipe_in_the_place_of_a_bare_model_is_refused(tmp_path):
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="cannot be read: not a regular file"):
        Session.open(tmp_path / "model.onnx")


def test_a_link_to_a_file_is_read(tmp_path):
    model = save_classifier(tmp_path / "net.onnx")
    (tmp_path / "link.onnx").symlink_to(model)
    assert Session.open(tmp_path / "link.onnx").name == "link"
