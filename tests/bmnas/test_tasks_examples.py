from __future__ import annotations

import os
from pathlib import Path

import pytest

from bmnas.tasks import check_task, check_test, load_task, reload_task

EXAMPLES = Path(__file__).parents[2] / "examples"
PACKS = Path(os.environ.get("BMNAS_DATA", "nowhere"))

#: Kind, types, classes and samples, as the packs' own descriptions state them.
EXPECTED = {
    "easy-vqa": ("multiclass", ["image", "text"], 13, [34693, 3882, 9673]),
    "icon-tags": ("multilabel", ["image", "text"], 29, [1035, 162, 502]),
    "mosi-features": ("multiclass", ["vector", "vector", "vector"], 2, [1211, 236, 752]),
}


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


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_an_example_starts_with_the_command_that_runs_it(path: Path) -> None:
    comments = [line for line in path.read_text().splitlines() if line.startswith("# bmnas")]
    assert comments == [
        f"# bmnas search --task examples/{path.name} --data $BMNAS_DATA/{path.stem}"
    ]
    assert path.stem in EXPECTED
