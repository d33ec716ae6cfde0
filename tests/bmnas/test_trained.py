from __future__ import annotations

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_networks import tiny_network, tiny_task

from bmnas.machine.errors import UserError
from bmnas.machine.tensor_file import read_tensors, write_tensors
from bmnas.pipeline.trained import TrainedNetwork, load_network, read_description
from bmnas.spaces.cells.genotype import Cell, Genotype, Step
from bmnas.spaces.fusions.space import NamedFusion

TASK = tiny_task()


@pytest.fixture(scope="module")
def trained() -> TrainedNetwork:
    return tiny_network(TASK)


@pytest.fixture
def path(trained: TrainedNetwork, tmp_path: Path) -> Path:
    trained.save(tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def inputs(network: TrainedNetwork) -> list[torch.Tensor]:
    chosen = TASK.samples("test")[:5]
    found = []
    for name in network.network.modalities:
        modality = TASK.modality(name)
        rows = network.network.backbone(name).encode(modality.data[modality.rows_of(chosen)])
        found.append(torch.from_numpy(np.ascontiguousarray(rows)))
    return found


def test_a_network_comes_back_whole(trained: TrainedNetwork, path: Path) -> None:
    again = load_network(path)
    assert (again.genotype, again.task, again.dropout) == (
        trained.genotype,
        trained.task,
        trained.dropout,
    )
    assert not again.network.training
    with torch.inference_mode():
        expected = trained.network.eval()(*inputs(trained))
        assert torch.equal(again.network(*inputs(again)), expected)
    assert read_description(path) == (trained.genotype, trained.task)


def test_how_rows_are_made_is_kept(trained: TrainedNetwork, tmp_path: Path) -> None:
    number = {"column": "age", "mean": 0.1, "deviation": 2.0, "missing": False}
    info = dataclasses.replace(trained.task, sources={"table": {"vector": [number]}})
    dataclasses.replace(trained, task=info).save(tmp_path / "network")
    assert read_description(tmp_path / "network")[1] == info


def test_a_hand_made_fusion_keeps_the_order_of_its_modalities(tmp_path: Path) -> None:
    plain = tiny_task(("vector", "vector"))
    named = zip("za", plain.modalities, strict=True)
    task = dataclasses.replace(
        plain, modalities=tuple(dataclasses.replace(m, name=name) for name, m in named)
    )
    trained, path = tiny_network(task, NamedFusion("concat", 6, 4)), tmp_path / "network"
    trained.save(path)
    x = [torch.randn(5, *m.data.shape[1:]) for m in task.modalities]
    expected = trained.network.eval()(*x)
    assert torch.equal(load_network(path).network(*x), expected)
    # Files of earlier versions had them in the order of the alphabet.
    description, tensors = read_tensors(path, described="bmnas.network/1")
    del description["modalities"]
    write_tensors(path, tensors, description)
    assert torch.equal(load_network(path, task).network(*x), expected)
    with pytest.raises(UserError, match="without the order of its modalities: give its task"):
        load_network(path)


def test_equal_networks_are_equal_bytes(trained: TrainedNetwork, path: Path) -> None:
    load_network(path).save(path.with_name("again"))
    assert path.with_name("again").read_bytes() == path.read_bytes()
    assert sorted(p.name for p in path.parent.iterdir()) == ["again", "network.safetensors"]


def test_a_network_that_was_trained_on_is_another_file(trained: TrainedNetwork, path: Path) -> None:
    again = load_network(path)
    with torch.no_grad():
        next(again.network.parameters()).add_(1e-3)
    again.save(path.with_name("again"))
    assert path.with_name("again").read_bytes() != path.read_bytes()


def refused(path: Path, match: str) -> None:
    for read in (load_network, read_description):
        with pytest.raises(UserError, match=match) as line:
            read(path)
        assert str(line.value).startswith(f"{path}: ")
        assert "\n" not in str(line.value)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    refused(tmp_path / "network.safetensors", "no such file; `bmnas train` writes it")


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_file_is_one_line(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "damaged, not a whole safetensors file")


def test_plain_weights_are_refused(path: Path) -> None:
    save_file({"a": torch.zeros(3)}, path)
    refused(path, "received plain weights, expected a file of format")


def rewritten(path: Path, description: Any) -> None:
    """Give the file another description and leave its tensors as they are."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = description if isinstance(description, str) else json.dumps(description)
    save_file(tensors, path, metadata={"bmnas": text})


def description(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    found: dict[str, Any] = json.loads(header["__metadata__"]["bmnas"])
    return found


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "its description is not JSON"),
        ("[" * 100_000, "its description is not JSON"),
        ("[]", "received format None"),
        ('{"format": "bmnas.network/9"}', "'bmnas.network/9', expected 'bmnas.network/1'"),
        ('{"format": "bmnas.network/1"}', "expected the key 'task', which is missing"),
    ],
)
def test_another_description_is_one_line(path: Path, text: str, match: str) -> None:
    rewritten(path, text)
    refused(path, match)


@pytest.mark.parametrize(
    "changes",
    [
        {"task": None},
        {"task": {"name": "a"}},
        {"task": {"name": 3, "kind": "multiclass", "class_names": [], "threshold": None}},
        {"genotype": {"format": "bmnas.genotype/1"}},
    ],
)
def test_a_description_with_parts_missing_is_one_line(path: Path, changes: dict[str, Any]) -> None:
    rewritten(path, {**description(path), **changes})
    refused(path, "does not fit|expected")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 3},
        {"class_names": "cat"},
        {"class_names": [1, 2, 3]},
        {"threshold": "high"},
        {"source": []},
        {"name": None},
    ],
)
def test_a_task_of_wrong_types_is_one_line(path: Path, changes: dict[str, Any]) -> None:
    whole = description(path)
    rewritten(path, {**whole, "task": {**whole["task"], **changes}})
    refused(path, rf"task\.{next(iter(changes))}")


def test_a_kind_of_task_that_nobody_registered_is_one_line(path: Path) -> None:
    whole = description(path)
    rewritten(path, {**whole, "task": {**whole["task"], "kind": "ranking"}})
    with pytest.raises(UserError, match="received the task kind 'ranking', expected") as line:
        load_network(path)
    assert str(line.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"backbones": []},
        {"backbones": {}},
        {"backbones": {"m0": {}, "m1": {}}},
        {"dropout": "much"},
        {"dropout": None},
        {"unimodal_logits": "false"},
        {"unimodal_logits": True},  # these backbones were cut, heads and all
    ],
)
def test_a_description_that_does_not_fit_is_one_line(path: Path, changes: dict[str, Any]) -> None:
    rewritten(path, {**description(path), **changes})
    with pytest.raises(UserError) as line:
        load_network(path)
    assert str(line.value).startswith(f"{path}: ")
    assert "\n" not in str(line.value)


def test_the_weights_of_another_genotype_are_refused(trained: TrainedNetwork, path: Path) -> None:
    inputs = trained.genotype.cells[0].inputs
    other = Genotype(
        trained.genotype.features,
        trained.genotype.channels + 1,
        trained.genotype.length,
        (Cell(inputs, (Step("concat_fc", ("x", "y")),)),),
    )
    rewritten(path, {**description(path), "genotype": other.to_dict()})
    with pytest.raises(UserError, match="its description does not fit its weights") as line:
        load_network(path)
    assert "\n" not in str(line.value)


FULL = """
import resource, sys
from pathlib import Path
from tiny_networks import tiny_network, tiny_task

trained = tiny_network(tiny_task())
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    trained.save(Path(sys.argv[1]))
except OSError as error:
    print(error.filename, error.strerror, sep="|")
"""


def test_a_full_disk_is_an_oserror_and_leaves_the_old_network(path: Path) -> None:
    before = path.read_bytes()
    support = Path(__file__).parents[1] / "support"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(support)!r})\n{FULL}", path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{path}|File too large\n"
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["network.safetensors"]
