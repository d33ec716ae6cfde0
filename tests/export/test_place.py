from __future__ import annotations

import json
from pathlib import Path

import pytest
from bmnas_export.place import checked_target

from bmnas.machine.errors import UserError


def write_bundle(folder: Path, version: str = "bmnas.bundle/1") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"")
    manifest = {"format": version, "files": {"model.onnx": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_absent_empty_or_a_bundle_is_good(tmp_path: Path) -> None:
    assert checked_target(tmp_path / "deep" / "new") == tmp_path / "deep" / "new"
    (tmp_path / "empty").mkdir()
    assert checked_target(tmp_path / "empty") == tmp_path / "empty"
    bundle = write_bundle(tmp_path / "bundle")
    assert checked_target(bundle) == bundle
    older = write_bundle(tmp_path / "older", "bmnas.bundle/0")
    assert checked_target(older) == older


def test_a_link_to_a_bundle_is_its_folder(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "v1")
    (tmp_path / "current").symlink_to(bundle)
    assert checked_target(tmp_path / "current") == bundle


def test_a_link_in_a_circle_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="a: cannot be used: ") as caught:
        checked_target(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is a file, expected a folder that is new or"):
        checked_target(tmp_path / "file")
    with pytest.raises(UserError, match=r"out: cannot be made: .*file is a file"):
        checked_target(tmp_path / "file" / "deep" / "out")


@pytest.mark.parametrize(
    "manifest",
    [None, "not JSON", "[]", '{"name": "an app of a browser"}', '{"format": "bmnas.genotype/1"}'],
)
def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, manifest: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="holds no bundle, and nothing there is deleted"):
        checked_target(tmp_path)


def test_a_bundle_with_a_file_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', which is not part of its bundle"):
        checked_target(bundle)


def test_files_of_a_bundle_may_lie_in_folders(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["triton/model/config.pbtxt"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "triton" / "model").mkdir(parents=True)
    (bundle / "triton" / "model" / "config.pbtxt").touch()
    assert checked_target(bundle) == bundle
    (bundle / "triton" / "mine").mkdir()
    with pytest.raises(UserError, match=r"holds 'triton/mine', which is not part"):
        checked_target(bundle)


def test_a_folder_is_not_a_file_of_the_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(UserError, match=r"holds 'model\.onnx', which is not part of its bundle"):
        checked_target(bundle)
