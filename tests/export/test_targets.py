from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bmnas_export import TARGETS, ExportError, export_bundle
from bmnas_export.targets import write_onnx
from tiny_networks import tiny_network, tiny_task

from bmnas.machine.errors import UserError


def test_a_target_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Vectors: an untrained network of images rounds to 1.1e-5 of a logit without vector
    # instructions, a hair above what an export allows, which is not asked here.
    task = tiny_task(("vector", "vector"))
    asked: list[Mapping[str, str]] = []

    def own(folder: Path, *arguments: Any) -> tuple[str, ...]:
        asked.append(arguments[-1])
        (folder / "notes.txt").write_text("a file of its own")
        return (*write_onnx(folder, *arguments), "notes.txt")

    monkeypatch.setitem(TARGETS, "own", own)
    bundle = export_bundle(tiny_network(task), task, tmp_path / "bundle", target="own")
    assert (bundle.folder / "notes.txt").is_file()
    assert {"model.onnx", "notes.txt"} < set(bundle.manifest.files)
    assert asked[0]["bmnas.task"] == task.name


def test_a_target_that_cannot_hold_a_network_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path, *arguments: Any) -> tuple[str, ...]:
        raise ExportError("no such operator")

    monkeypatch.setitem(TARGETS, "own", fails)
    task = tiny_task()
    with pytest.raises(ExportError, match="no such operator"):
        export_bundle(tiny_network(task), task, tmp_path / "bundle", target="own")
    assert not list(tmp_path.iterdir())


def test_an_unknown_target_is_told(tmp_path: Path) -> None:
    task = tiny_task()
    with pytest.raises(UserError, match="received target 'tensorrt', expected one of onnx"):
        export_bundle(tiny_network(task), task, tmp_path / "bundle", target="tensorrt")
