from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_tasks import changed, tiny_task

from bmnas.machine.errors import UserError
from bmnas.tasks import Modality, Task, check_task, check_test
from bmnas.tasks import rows as rows_module
from bmnas.tasks.check import wrong_rows

N = 96


def error_of(task: Task, check: Any = check_task) -> str:
    with pytest.raises(UserError) as caught:
        check(task)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("task ")
    return str(caught.value)


def with_value(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    """Return a copy of the array with another value at ``place``."""
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_good_tasks_pass(kind: str, modalities: int) -> None:
    task = tiny_task(kind=kind, modalities=modalities, samples=360)
    check_task(task)
    check_test(task)


GOOD: list[dict[str, Any]] = [
    {"type": "image", "data": np.zeros((N, 4, 5), np.uint8)},
    {"type": "image", "data": np.zeros((N, 4, 5, 3), np.float16)},
    {"type": "clip", "data": np.zeros((N, 2, 4, 5), np.uint8)},
    {"type": "clip", "data": np.zeros((N, 2, 4, 5, 3), np.float32)},
    {"type": "waveform", "data": np.zeros((N, 50), np.int16), "sample_rate": 8000},
    {"type": "waveform", "data": np.zeros((N, 50)), "sample_rate": 192_000},
    {"type": "sequence", "data": np.zeros((N, 1, 1), np.int8)},
    {"type": "vector", "data": np.zeros((N, 1), np.float64)},
    {"type": "text", "data": np.array(["a word"] * N)},
    {"type": "tokens", "data": np.full((N, 3), 999_999)},
]


@pytest.mark.parametrize("values", GOOD)
def test_every_type_takes_its_shapes(values: dict[str, Any]) -> None:
    task = changed(tiny_task(), 0, **values)
    check_task(task)
    check_test(task)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"type": "image", "data": np.zeros((N, 4, 5, 4), np.uint8)}, "expected rows of (H, W) or"),
    ({"type": "image", "data": np.zeros((N, 4, 5), np.int64)}, "received int64, expected uint8 or"),
    ({"type": "clip", "data": np.zeros((N, 4, 5), np.uint8)}, "uint8 of shape (96, 4, 5), expect"),
    ({"type": "sequence", "data": np.zeros((N, 50))}, "(96, 50), expected rows of (T, D)"),
    ({"type": "vector", "data": np.zeros((N, 0))}, "float64 of shape (96, 0), which is empty"),
    ({"type": "vector", "data": np.zeros((N, 2), np.complex64)}, "received complex64, expected"),
    ({"type": "vector", "data": np.zeros(())}, "received float64 of shape (), expected rows of"),
    ({"type": "waveform", "data": np.zeros((N, 9))}, "received no sample_rate, expected samples"),
    (
        {"type": "waveform", "data": np.zeros((N, 9)), "sample_rate": 10**9},
        "received sample_rate 1000000000, expected samples per second, 1 to 192000",
    ),
    ({"type": "text", "data": np.zeros(N)}, "received float64, expected strings (NumPy dtype U)"),
    ({"type": "text", "data": np.array([b"x"] * N)}, "received |S1, expected strings"),
    ({"type": "tokens", "data": np.zeros((N, 3))}, "received float64, expected integers"),
    ({"type": "video"}, "received type 'video', expected image, clip"),
    ({"data": [[1.0]]}, "modality m0: data: received a list, expected a NumPy array"),
    ({"index": [0] * N}, "modality m0: index: received a list, expected a NumPy array"),
    ({"data": np.zeros((95, 6, 3))}, "modality m0 has 95 rows and split has 96"),
    ({"index": np.zeros(N)}, "index: received float64 of shape (96), expected integers"),
    ({"index": np.zeros(9, int)}, "modality m0: index has 9 samples and split has 96"),
    (
        {"index": with_value(np.zeros(N, int), 3, 96)},
        "modality m0: index out of range: received 96 for sample 3 (train), expected 0 to 95",
    ),
    (
        {"index": with_value(np.zeros(N, int), 4, -1)},
        "modality m0: index out of range: received -1 for sample 4 (validation)",
    ),
    ({"name": "m1"}, "two modalities are called m1"),
    ({"name": "a.b"}, "received the modality name 'a.b', expected letters, digits, _ and -"),
    ({"name": "a\nb"}, "received the modality name 'a\\nb'"),
    ({"name": ""}, "received the modality name ''"),
    ({"weights": Path("none")}, "weights: received PosixPath('none'), expected the Path of a file"),
    ({"weights": __file__}, "test_tasks_check.py', expected the Path of a file that exists"),
    (
        {"type": "text", "data": with_value(np.array(["a word"] * N), 1, "  ")},
        "modality m0: empty text in row 1, of sample 1 (validation)",
    ),
    (
        {"type": "text", "data": np.array(["?!"] * N)},
        "modality m0: no train text has a word (a letter or digit)",
    ),
    (
        {"type": "tokens", "data": with_value(np.zeros((N, 3), int), (3, 1), -1)},
        "modality m0: a token outside 0 to 999999 in row 3, of sample 3 (train)",
    ),
    (
        {"type": "tokens", "data": with_value(np.zeros((N, 3), int), (4, 2), 10**6)},
        "modality m0: a token outside 0 to 999999 in row 4, of sample 4 (validation)",
    ),
]


@pytest.mark.parametrize(("values", "expected"), BAD)
def test_a_modality_that_cannot_be_used(values: dict[str, Any], expected: str) -> None:
    assert expected in error_of(changed(tiny_task(), 0, **values))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize(("sample", "part"), [(3, "train"), (4, "validation")])
def test_values_that_are_not_finite_in_float32(value: float, sample: int, part: str) -> None:
    data = with_value(tiny_task().modalities[1].data.astype(np.float64), (sample, 2, 1), value)
    message = error_of(changed(tiny_task(), 1, data=data))
    assert message == (
        f"task tiny: modality m1: NaN or infinite value in row {sample}, "
        f"of sample {sample} ({part})"
    )


@pytest.mark.parametrize("box", [(9, 2, 3, 4), (1, 9, 3, 4), (0.1, 0.2, 0.5, 1.0)])
def test_regions_have_boxes_in_pixels(box: tuple[float, ...]) -> None:
    rows = np.zeros((3, 2, 7), np.float32)  # the second regions are padding
    rows[:, 0, -4:] = 1, 2, 3, 4
    modality = Modality("image", "regions", rows)
    assert not wrong_rows(modality, rows).any()
    rows[1, 0, -4:] = box
    assert wrong_rows(modality, rows).tolist() == [False, True, False]


def test_a_shared_row_is_named_with_a_sample_that_uses_it() -> None:
    index = np.arange(N) % 10
    data = np.zeros((12, 2))
    data[7] = np.nan
    data[11] = np.nan  # used by nobody
    task = changed(tiny_task(), 0, type="vector", data=data, index=index)
    assert "NaN or infinite value in row 7, of sample 27 (train)" in error_of(task)


def test_all_rows_are_looked_at_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_PIECE_BYTES", 200)
    data = np.zeros((N, 6, 3), np.float32)
    check_task(changed(tiny_task(), 0, data=data))
    data[[0, 1, 45, 94]] = np.nan
    message = error_of(changed(tiny_task(), 0, data=data))
    assert "value in row 0, of sample 0 (train) (4 such rows)" in message


def test_test_data_is_for_check_test_alone() -> None:
    task = tiny_task()
    test = task.samples("test")
    data = with_value(task.modalities[0].data, test, np.nan)
    task = dataclasses.replace(
        changed(task, 0, data=data), labels=with_value(task.labels, test, 99)
    )
    check_task(task)
    message = error_of(task, check_test)
    assert "received 99 for sample 2 (test), expected 0 to 3" in message
    assert "modality m0: NaN or infinite value in row 2, of sample 2 (test)" in message


def replaced(**values: Any) -> Task:
    return dataclasses.replace(tiny_task(), **values)


WHOLE: list[tuple[dict[str, Any], str]] = [
    ({"modalities": ()}, "no modality, expected two or more"),
    ({"modalities": tiny_task().modalities[:1]}, "one modality only (m0), expected two or more"),
    ({"name": "a b"}, "received the task name 'a b', expected letters"),
    ({"name": "../up"}, "received the task name '../up'"),
    ({"kind": "ranking"}, "received kind 'ranking', expected multiclass or multilabel"),
    ({"labels": [0, 1]}, "labels: received a list, expected a NumPy array"),
    ({"labels": np.zeros(N)}, "labels: received float64 of shape (96), expected integers of shap"),
    ({"labels": np.zeros((N, 4), int)}, "labels: received int64 of shape (96, 4), expected integ"),
    ({"labels": np.zeros(9, int)}, "labels have 9 samples and split has 96"),
    (
        {"labels": with_value(tiny_task().labels, 3, 4)},
        "labels out of range: received 4 for sample 3 (train), expected 0 to 3",
    ),
    (
        {"labels": with_value(tiny_task().labels, 4, -1)},
        "labels out of range: received -1 (no class, or a name that is none of the class names) "
        "for sample 4 (validation), expected 0 to 3",
    ),
    ({"labels": np.arange(N) // 3 % 3}, "class 'class 3' missing from train"),
    ({"labels": np.zeros(N, int)}, "classes 'class 1', 'class 2', 'class 3' missing from train"),
    ({"class_names": ("a", "b", "a", "c")}, "two classes are called 'a'"),
    ({"class_names": ("a",)}, "multiclass: received 1 classes, expected at least 2"),
    ({"part": np.zeros(N)}, "split: received float64 of shape (96), expected integers of shape"),
    ({"part": with_value(tiny_task().part, 5, 3)}, "split: received 3 for sample 5, expected 0,"),
    ({"part": np.arange(N) % 2}, "zero samples in test"),
    ({"part": np.arange(N) % 2 * 2}, "zero samples in validation"),
    ({"part": np.arange(N) % 2 + 1}, "zero samples in train"),
    (
        {"part": with_value(np.arange(N) % 2 * 2, 0, 1)},
        "one sample only in validation, expected two or more",
    ),
]


@pytest.mark.parametrize(("values", "expected"), WHOLE)
def test_a_task_that_cannot_be_used(values: dict[str, Any], expected: str) -> None:
    assert expected in error_of(replaced(**values))


def test_a_class_that_only_validation_has_is_missing_from_train() -> None:
    labels = np.where(np.arange(N) == 4, 3, np.arange(N) // 3 % 3)
    assert error_of(replaced(labels=labels)) == "task tiny: class 'class 3' missing from train"


@pytest.mark.parametrize("value", [2.0, np.nan, 0.5])
def test_labels_of_a_multilabel_task_are_0_and_1(value: float) -> None:
    classes = 40  # so many that numpy would print a row of them on two lines
    labels = with_value(np.ones((N, classes)), (3, 30), value)
    task = dataclasses.replace(
        tiny_task(), kind="multilabel", labels=labels, class_names=tuple(map(str, range(classes)))
    )
    assert (
        f"labels out of range: received {value} for sample 3 (train), expected only 0 and 1"
        in error_of(task)
    )


def test_a_multilabel_class_missing_from_train() -> None:
    task = tiny_task(kind="multilabel")
    labels = with_value(task.labels, (task.samples("train"), 1), 0)
    task = dataclasses.replace(task, labels=labels)
    assert error_of(task) == "task tiny: class 'class 1' missing from train"


def test_all_problems_are_told_together() -> None:
    broken = (
        Modality("a b", "vector", np.zeros((3, 2))),
        Modality("x", "tokens", np.zeros((N, 2))),
    )
    task = replaced(modalities=broken, labels=np.zeros(N), part=np.zeros(N, int))
    message = error_of(task)
    for expected in ("'a b'", "zero samples in test", "labels: received", "3 rows", "integers"):
        assert expected in message
    assert message.count("; ") >= 5


def test_a_long_list_of_problems_is_cut() -> None:
    broken = tuple(Modality(f"{k} ?", "vector", np.zeros((N, 2))) for k in range(20))
    assert error_of(replaced(modalities=broken)).endswith("; and 8 more")
