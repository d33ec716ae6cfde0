from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmimdb_files import FILMS, write_archive
from paper_files import write_egogesture, write_ntu
from tiny_tasks import Fragile, changed, tiny_task

from bmnas.features.cache import rows_hash
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress, Stage
from bmnas.report.contact_sheet import contact_sheet
from bmnas.report.survey import survey_data, survey_tables
from bmnas.tasks import load_task, notes, reload_task
from bmnas.tasks.egogesture import load_egogesture
from bmnas.tasks.kinds import TASK_KINDS, Array, TaskKind
from bmnas.tasks.left_out import LEFT_OUT, leave_out, left_out
from bmnas.tasks.ntu import load_ntu, missing_skeletons
from bmnas.tasks.survey import survey
from bmnas.tasks.task import PARTS

NAMES = [f"S001C001P{subject:03}R001A{action:03}" for subject in (1, 2, 40) for action in (1, 55)]


class Counted(Progress):
    """Counts the units of every stage."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def stage(self, name: str, units: int) -> Iterator[Stage]:
        counts = self.stages[name] = [units, 0]

        class Counting(Stage):
            def advance(self, units: int = 1) -> None:
                counts[1] += units

        yield Counting()


def test_every_row_is_read_once_and_what_is_wrong_is_told() -> None:
    task = tiny_task()
    data = np.array(task.modalities[0].data)
    data[5] = 0.5
    data[7, 0, 0] = np.nan
    rows = Fragile(data, {3, 60})
    progress = Counted()
    found = survey(changed(task, 0, data=rows), progress=progress)
    first, second = found.modalities
    assert sorted(rows.asked) == [n for n in range(96) if n not in (3, 60)]
    assert progress.stages == {"read m0": [96, 96], "read m1": [96, 96]}
    assert first.unusable == {
        3: "file 3: cannot be read",
        60: "file 60: cannot be read",
        7: "modality m0: NaN or infinite value in row 7",
    }
    assert first.constant == [5]
    assert [(row, samples) for _, row, _, samples in found.unusable()] == [
        (3, [3]),
        (7, [7]),
        (60, [60]),
    ]
    assert (second.low, second.high) == (data_of(task, 1).min(), data_of(task, 1).max())
    assert (first.rows, first.read, second.unusable, second.constant) == (96, 96, {}, [])
    assert found.problems == []


def data_of(task: Any, number: int) -> Array:
    return np.asarray(task.modalities[number].data)


def test_rows_that_samples_share_are_read_once_and_others_not_at_all() -> None:
    task = tiny_task()
    rows = Fragile(data_of(task, 0), {1})
    index = np.arange(96) % 4
    found = survey(changed(task, 0, data=rows, index=index))
    assert rows.asked == [0, 2, 3]
    assert [samples for *_, samples in found.unusable()] == [list(range(1, 96, 4))]
    assert found.modalities[0].rows == 4


def test_of_many_rows_some_are_read_from_the_first_to_the_last() -> None:
    task = tiny_task()
    rows = Fragile(data_of(task, 0), set())
    found = survey(changed(task, 0, data=rows), 4)
    assert rows.asked == [0, 31, 63, 95]
    assert [(read.rows, read.read) for read in found.modalities] == [(96, 4)] * 2


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_classes_are_counted_part_by_part(kind: str) -> None:
    task = tiny_task(kind=kind)
    counts = survey(task).counts
    assert counts is not None
    for part, row in zip(PARTS, counts, strict=True):
        labels = task.labels[task.samples(part)]
        expected = labels.sum(0) if kind == "multilabel" else np.bincount(labels, minlength=4)
        assert row.tolist() == expected.tolist()


class Amount(TaskKind):
    """One number a sample."""

    name = "amount"

    def form(self, labels: Array, classes: int) -> str | None:
        return None

    def wrong(self, labels: Array, classes: int) -> tuple[Array, str]:
        return np.zeros(len(labels), np.bool_), ""

    def absent(self, labels: Array, classes: int) -> Array:
        return labels[:0]


def test_labels_that_are_no_classes_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASK_KINDS, "amount", Amount())
    labels = np.linspace(0, 1, 96)
    task = dataclasses.replace(tiny_task(), kind="amount", labels=labels, class_names=("dose",))
    found = survey(task)
    assert (found.problems, found.counts) == ([], None)
    assert [table.title for table in survey_tables(found)] == ["Samples", "Modalities", "Rows"]
    assert survey_data(found)["classes"] == {}
    assert contact_sheet(found).subfigs[0].axes[0].texts[0].get_text() == "train 0\n0.0"


def test_texts_are_counted_in_words_and_tokens_in_numbers() -> None:
    texts = np.array(["one", "one two three"] * 47 + [" ", "four"])
    tokens = np.arange(96 * 2).reshape(96, 2)
    tokens[4, 0] = -1
    task = changed(tiny_task(), 0, type="text", data=texts)
    task = changed(task, 1, type="tokens", data=tokens)
    text, numbers = survey(task).modalities
    assert (text.low, text.high) == (1, 3)
    assert text.unusable == {94: "modality m0: empty text in row 94"}
    assert (numbers.low, numbers.high) == (0, 191)
    assert list(numbers.unusable) == [4]


def test_problems_of_content_are_told_beside_rows_and_those_of_form_alone() -> None:
    task = tiny_task()
    labels = task.labels.copy()
    labels[9] = 7
    outside = np.arange(96)
    outside[2] = 96
    found = survey(changed(dataclasses.replace(task, labels=labels), 1, index=outside))
    assert found.problems == [
        "labels out of range: received 7 for sample 9 (train), expected 0 to 3",
        "modality m1: index out of range: received 96 for sample 2 (test), expected 0 to 95",
    ]
    assert [read.read for read in found.modalities] == [96, 95]
    found = survey(changed(dataclasses.replace(task, names=("a",)), 0, data=np.zeros((96, 2))))
    assert found.problems[0].startswith("modality m0: received float64 of shape (96, 2), expected")
    assert found.problems[1] == "received 1 names of samples and split has 96"
    assert (found.modalities, found.counts) == ((), None)


def test_a_list_is_read_back_and_added_to(tmp_path: Path) -> None:
    assert left_out(tmp_path) == frozenset()
    (tmp_path / LEFT_OUT).write_bytes(b"by hand\r\nb\tbroken")
    path = leave_out(tmp_path, {"c 1 2": "cannot\nbe read"})
    assert path.read_text() == "by hand\nb\tbroken\nc 1 2\tcannot be read\n"
    assert left_out(tmp_path) == {"by hand", "b", "c 1 2"}
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"left_out\.txt: cannot be read"):
        left_out(tmp_path)


def test_samples_of_ntu_are_left_out_whatever_is_wrong_with_them(tmp_path: Path) -> None:
    write_ntu(tmp_path, NAMES)
    whole = load_ntu(tmp_path, size=16)
    assert whole.names == tuple(NAMES)
    kept = [m.data[np.array([0, 2, 3, 4, 5])] for m in whole.modalities]
    digests = [rows_hash(m.data, whole.samples("train")) for m in whole.modalities]
    (tmp_path / "nturgb+d_rgb" / f"{NAMES[1]}_rgb.avi").unlink()
    (tmp_path / LEFT_OUT).write_text(f"{NAMES[1]}\tno video\n")
    task = load_task("ntu", tmp_path)
    assert task.names == (NAMES[0], *NAMES[2:])
    assert (task.labels.tolist(), task.part.tolist()) == ([0, 0, 54, 0, 54], [0, 1, 1, 2, 2])
    assert task.source["left_out"] == 1
    assert reload_task(task.source).names == task.names
    said = f"1 sample is left out, as {tmp_path}/{LEFT_OUT} says"
    assert [*notes(task)] == [said]
    # Of a subject that is in no part here, on the authors' list, and of nobody.
    other, missing = NAMES[0].replace("P001", "P016"), sorted(missing_skeletons())[0]
    for name in (other, missing):
        (tmp_path / "nturgb+d_rgb" / f"{name}_rgb.avi").write_bytes(b"")
    leave_out(tmp_path, dict.fromkeys([other, missing, "typo"], "?"))
    again = load_task("ntu", tmp_path)
    assert (again.names, again.source) == (task.names, task.source)
    assert [*notes(again)] == [
        said,
        f"{tmp_path}/{LEFT_OUT}: names no sample of task ntu by "
        f"{', '.join(sorted([other, missing, 'typo']))} (3): right if other tasks on these files "
        "have them",
    ]
    for number, modality in enumerate(load_ntu(tmp_path, size=16).modalities):
        np.testing.assert_array_equal(modality.data[np.arange(5)], kept[number])
        # What was made of more samples is not taken for what these would make.
        assert rows_hash(modality.data, task.samples("train")) != digests[number]


def test_gestures_and_films_are_left_out(tmp_path: Path) -> None:
    lines = [[f"Subject0{p}/Scene1/Color/rgb1 {k} 1 3" for k in (1, 2)] for p in (1, 2, 3)]
    (tmp_path / "ego").mkdir()
    write_egogesture(tmp_path / "ego", lines)
    leave_out(tmp_path / "ego", {lines[1][0]: "blurred"})
    task = load_egogesture(tmp_path / "ego", size=16)
    assert task.names == (*lines[0], lines[1][1], *lines[2])
    assert task.left_out == (lines[1][0],)
    assert (task.labels.tolist(), task.part.tolist()) == ([0, 1, 1, 0, 1], [0, 0, 1, 2, 2])
    (tmp_path / "raw").mkdir()
    dataset = write_archive(tmp_path / "raw")
    (dataset / f"{FILMS[0]}.json").write_text("{")
    (dataset / f"{FILMS[60]}.json").write_text('{"genres": [], "plot": []}')
    with pytest.raises(UserError) as caught:
        load_task("mmimdb-raw", tmp_path / "raw")
    first, second = str(caught.value).split("; ")
    assert first.startswith(f"{dataset}/{FILMS[0]}.json: not a JSON file")
    assert second.startswith(f"{dataset}/{FILMS[60]}.json: plot: received none")
    leave_out(tmp_path / "raw", dict.fromkeys([FILMS[0], FILMS[60]], "broken"))
    task = load_task("mmimdb-raw", tmp_path / "raw")
    assert task.names == tuple(film for n, film in enumerate(FILMS) if n not in (0, 60))
    assert (set(task.left_out), task.source["left_out"]) == ({FILMS[0], FILMS[60]}, 2)
    assert len(task.labels) == len(task.modality("text").data) == 90
