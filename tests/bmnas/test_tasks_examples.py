from __future__ import annotations

import os
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from bmnas.tasks import Modality, check_task, check_test, load_task, reload_task

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKS = Path(os.environ.get("BMNAS_DATA", "nowhere"))

#: Kind, types, classes and samples, as the packs' own descriptions state them.
EXPECTED = {
    "easy-vqa": ("multiclass", ["image", "text"], 13, [34693, 3882, 9673]),
    "icon-tags": ("multilabel", ["image", "text"], 29, [1035, 162, 502]),
    "mosi-features": ("multiclass", ["vector", "vector", "vector"], 2, [1211, 236, 752]),
    "vqa-rad": ("multiclass", ["image", "text"], 394, [1611, 186, 451]),
}


def test_the_walk_through_works_as_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (EXAMPLES.parent / "docs" / "your-own-data.md").read_text("utf-8")
    blocks = re.findall(r"^```(python|toml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    python = [block for language, block in blocks if language == "python"]
    toml = [block for language, block in blocks if language == "toml"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "make_data.py").write_text(python[0])
    runpy.run_path("make_data.py")
    (tmp_path / "task.toml").write_text(toml[0])
    (tmp_path / "my_tasks.py").write_text(python[2])
    from_file = load_task("task.toml")
    check_task(from_file)
    check_test(from_file)
    from_python = runpy.run_path("my_tasks.py")["phone_watch"]()
    check_task(from_python)
    assert np.array_equal(from_file.labels, from_python.labels)
    assert from_file.class_names == from_python.class_names == ("sit", "walk", "run", "climb")


def test_the_printed_backbone_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bmnas.backbones import build_backbone

    page = (EXAMPLES.parent / "docs" / "your-own-data.md").read_text("utf-8")
    module = next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "nn." in b)
    (tmp_path / "printed_backbones.py").write_text(module)
    network = runpy.run_path(str(tmp_path / "printed_backbones.py"))["PhoneNet"](4)
    rows = np.zeros((5, 50, 6), dtype=np.float32)
    phone = Modality("phone", "sequence", rows, backbone=network, features=("block1", "block2"))
    backbone = build_backbone(phone, classes=4, rows=rows)
    assert backbone.feature_channels == (16, 32)


@pytest.mark.data
@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_reads_its_pack(name: str) -> None:
    if not (PACKS / name).is_dir():
        pytest.skip(f"BMNAS_DATA names no folder with {name}")
    task = load_task(EXAMPLES / f"{name}.toml", PACKS / name)
    check_task(task)
    check_test(task)
    kind, types, classes, samples = EXPECTED[name]
    assert (task.name, task.kind, task.classes) == (name, kind, classes)
    assert [modality.type for modality in task.modalities] == types
    assert [len(task.samples(part)) for part in ("train", "validation", "test")] == samples
    assert reload_task(task.source).licence == task.licence != "not stated"


@pytest.mark.data
def test_icons_are_matched_with_their_names_and_tags() -> None:
    folder = PACKS / "icon-tags"
    if not folder.is_dir():
        pytest.skip("BMNAS_DATA names no folder with icon-tags")
    task = load_task("examples.icon_matching:icon_matching", folder)
    check_task(task)
    check_test(task)
    assert task.modality("text").data[0] == "a arrow down letter font size text formatting smaller"
    assert [len(task.samples(p)) for p in ("train", "validation", "test")] == [1035, 162, 502]
    assert len(np.unique(task.labels)) == len(np.unique(task.modality("text").data))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_starts_with_the_command_that_runs_it(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("# bmnas")]
    assert comments == [
        f"# bmnas search --task examples/{path.name} --data $BMNAS_DATA/{path.stem}"
    ]
    assert path.stem in EXPECTED
