"""Rows that are read when they are asked for stand for an array everywhere in a run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny_tasks import CONFIG, changed, tiny_task

from bmnas.features.cache import rows_hash
from bmnas.machine.errors import UserError
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train
from bmnas.tasks import Rows, Task, check_task
from bmnas.tasks.rows import pieces


class Stored(Rows):
    """The rows of an array, as if they were somewhere else; ``most`` were asked for at once."""

    def __init__(self, array: npt.NDArray[np.float32]) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.most = 0

    def __getitem__(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        assert numbers.ndim == 1
        self.most = max(self.most, len(numbers))
        return self.array[numbers]

    def digest(self, numbers: npt.NDArray[np.int64]) -> str:
        return hashlib.sha256(self.array[numbers].tobytes()).hexdigest()


def stored(task: Task) -> Task:
    modalities = [dataclasses.replace(m, data=Stored(np.asarray(m.data))) for m in task.modalities]
    return dataclasses.replace(task, modalities=tuple(modalities))


def test_a_run_on_rows_is_the_run_on_arrays(tmp_path: Path) -> None:
    found = {}
    for name, task in (("array", tiny_task()), ("rows", stored(tiny_task()))):
        result = search(task, run=tmp_path / name, config=CONFIG)
        trained = train(result.run / "genotype.json", task, config=CONFIG)
        found[name] = result.genotype.to_dict()["cells"], result.validation, trained.score
    assert found["array"] == found["rows"]


def test_rows_are_checked_as_arrays_are_and_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmnas.tasks.rows._PIECE_BYTES", 10 * 6 * 3 * 4)
    task = stored(tiny_task())
    check_task(task)
    rows = task.modalities[0].data
    assert isinstance(rows, Stored)
    assert rows.most == 10
    rows.array[4, 2, 1] = np.nan
    with pytest.raises(UserError, match="m0: NaN or infinite value in row 4, of sample 4"):
        check_task(task)
    with pytest.raises(UserError, match=r"expected rows of \(D\) for type vector"):
        check_task(changed(task, 0, type="vector"))


def test_the_digest_of_rows_is_theirs() -> None:
    rows = Stored(np.zeros((4, 2), np.float32))
    assert rows_hash(rows, np.arange(2)) == rows.digest(np.arange(2))


def test_pieces_hold_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmnas.tasks.rows._PIECE_BYTES", 20)
    numbers = np.array([4, 1, 1, 0, 2])
    for width, expected in ((2, [[4, 1], [1, 0], [2]]), (9, [[4], [1], [1], [0], [2]])):
        rows = Stored(np.zeros((5, width), np.float32))
        assert [some.tolist() for some in pieces(rows, numbers)] == expected
