from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import bmnas_command, one_line_error
from media_files import MEDIA_TASK, media_table, write_table
from paper_files import write_egogesture, write_ntu
from task_files import arrays, modality, write_task
from tiny_tasks import Fragile, changed, tiny_task

from bmnas.machine.errors import UserError
from bmnas.report.contact_sheet import contact_sheet
from bmnas.report.survey import survey_page, survey_tables
from bmnas.tasks import Task, load_task
from bmnas.tasks.left_out import LEFT_OUT
from bmnas.tasks.survey import survey

#: A sample of each action for each part, two for train, where one is left out: subject 1 trains,
#: 2 validates, 40 tests.
NAMES = [
    f"S001C00{camera}P{subject:03}R001A{action:03}"
    for camera, subject in ((1, 1), (2, 1), (1, 2), (1, 40))
    for action in range(1, 61)
]


def test_digits_are_whole() -> None:
    printed = bmnas_command("check")
    assert (printed.status, printed.err) == (0, "")
    for words in ("1,078", "Classes, 10", "8x4 uint8", "0 to 16", "1,797"):
        assert words in printed.out
    assert "published" not in printed.out


def test_json_is_one_object() -> None:
    found = json.loads(bmnas_command("check", "--json", "--sample", 5).out)
    assert found["samples"] == {"train": 1078, "validation": 360, "test": 359}
    assert sum(sum(counts.values()) for counts in found["classes"].values()) == 1797
    left = found["modalities"]["left"]
    assert (left["shape"], left["rows"], left["read"]) == ([8, 4], 1797, 5)
    assert (found["problems"], found["unusable"], found["published"]) == ([], [], None)


def test_broken_files_are_listed_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "ntu"
    folder.mkdir()
    write_ntu(folder, NAMES)
    check = ("check", "--task", "ntu", "--data", folder)
    (folder / "nturgb+d_rgb" / f"{NAMES[1]}_rgb.avi").write_bytes(b"")
    skeleton = folder / "nturgb+d_skeletons" / f"{NAMES[190]}.skeleton"
    skeleton.write_bytes(skeleton.read_bytes().replace(b"\r\n25\r\n", b"\r\n24\r\n", 1))
    printed = bmnas_command(*check)
    assert printed.status == 2
    notes = (
        "note: train: 120 samples, 22,952 published: 22,832 missing\n"
        "note: validation: 60 samples, 2,509 published: 2,449 missing\n"
        "note: test: 60 samples, 16,487 published: 16,427 missing\n"
    )
    assert printed.err == notes + (
        "error: task ntu: rows that cannot be used: 2, see above: get their files again, or leave "
        "their samples out with --leave-out\n"
    )
    lines = [line for line in printed.out.splitlines() if str(folder) in line]
    assert len(lines) == 2
    assert f"{NAMES[1]}_rgb.avi: cannot be read: " in lines[0]
    assert lines[0].endswith(f"(train sample 1 {NAMES[1]})")
    assert f"{NAMES[190]}.skeleton: line 4: the number of joints: received '24'" in lines[1]
    assert "22,952" in printed.out  # as published

    printed = bmnas_command(*check, "--leave-out", "--out", tmp_path / "sheet.html")
    assert printed.status == 0, printed.err
    assert f"note: samples added to {folder}/{LEFT_OUT}: 2\n" in printed.err
    named = [line.split("\t")[0] for line in (folder / LEFT_OUT).read_text().splitlines()]
    assert named == [NAMES[1], NAMES[190]]
    assert f"{NAMES[1]}_rgb.avi: cannot be read" in (tmp_path / "sheet.html").read_text()

    printed = bmnas_command(*check, "--json")
    assert printed.status == 0
    assert f"note: 2 samples are left out, as {folder}/{LEFT_OUT} says\n" in printed.err
    assert "note: train: 119 samples, 22,952 published: 22,833 missing\n" in printed.err
    found = json.loads(printed.out)
    assert (found["left_out"], found["unusable"]) == (2, [])
    assert found["samples"] == {"train": 119, "validation": 60, "test": 59}


def test_a_frame_that_is_missing_is_told_with_its_gesture(tmp_path: Path) -> None:
    lines = [
        [f"Subject0{p}/Scene1/Color/rgb1 {k} {2 * k} {2 * k + 1}" for k in (1, 2, 1, 2)]
        for p in (1, 2, 3)
    ]
    write_egogesture(tmp_path, lines, classes=2)
    path = tmp_path / "Subject02/Scene1/Depth/depth1/000004.jpg"
    path.unlink()
    printed = bmnas_command("check", "--task", "egogesture", "--data", tmp_path)
    assert printed.status == 2
    assert f"{path}: no such frame (validation sample 5 {lines[1][1]})\n" in printed.out


def test_problems_of_a_task_file_are_a_line_each(tmp_path: Path) -> None:
    labels = np.where(np.arange(30) == 3, 9, np.arange(30) // 3 % 3)
    a = np.zeros((30, 4), np.float32)
    a[4, 1] = np.inf
    names = '["x", "y", "z"]'
    path = write_task(tmp_path, held=arrays(label=labels, a=a), class_names=names)
    printed = bmnas_command("check", "--task", path, "--leave-out")
    assert (
        "\nlabels out of range: received 9 for sample 3 (train), expected 0 to 2\n" in printed.out
    )
    assert printed.out.endswith(
        "modality a: NaN or infinite value in row 4 (validation sample 4)\n"
    )
    assert printed.status == 2
    assert "--leave-out: task mine is none of those that read a folder" in printed.err
    printed = bmnas_command("check", "--task", path)
    assert printed.err == "error: task mine cannot be used: see the problems above\n"

    path = write_task(tmp_path, modalities=modality("a", type='"clip"'))
    out = tmp_path / "sheet.png"
    printed = bmnas_command("check", "--task", path, "--out", out)
    assert (
        "modality a: received float32 of shape (30, 4), expected rows of (T, H, W)" in printed.out
    )
    assert printed.err == (
        "error: task mine: no data to draw: modality a: received float32 of shape (30, 4), "
        "expected rows of (T, H, W) or (T, H, W, 3) for type clip\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "digit"), "received task 'digit', expected digits"),
        (("--task", "ntu"), "task ntu: give --data DIR, the folder with"),
        (("--out", "a.pdf"), "a.pdf: received suffix '.pdf', expected one of .html, .png, .svg"),
        (("--sample", "0"), "Invalid value for '--sample'"),
    ],
)
def test_wrong_input_is_one_line(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BMNAS_DATA", raising=False)
    assert one_line_error(bmnas_command("check", *words)).startswith(message)


def of_every_type() -> Task:
    """Return a task of 96 samples with a modality of each type."""
    task, rng = tiny_task(modalities=7), np.random.default_rng(0)
    data = {
        "image": rng.integers(0, 255, (96, 300, 200, 3), dtype=np.uint8),
        "clip": rng.normal(size=(96, 12, 8, 8)),
        "waveform": rng.normal(size=(96, 5000)).astype(np.float32),
        "sequence": rng.normal(size=(96, 32, 150)).astype(np.float32),
        "vector": rng.normal(size=(96, 30)),
        "text": np.array([f"<b>& word {n}</b> " + 90 * "more " for n in range(96)]),
        "tokens": np.array([[7, n, 0] for n in range(96)]),
    }
    for number, (type_, rows) in enumerate(data.items()):
        rate = 8000 if type_ == "waveform" else None
        task = changed(task, number, name=type_, type=type_, data=rows, sample_rate=rate)
    return task


def test_every_type_is_drawn() -> None:
    task = of_every_type()
    figure = contact_sheet(survey(task))
    rows = figure.subfigs
    assert len(rows) == 3 * 4
    first = dict(zip(["", *(m.name for m in task.modalities)], rows[0].axes, strict=True))
    sample = task.samples("train")[0]
    label = task.class_names[task.labels[sample]]
    assert first[""].texts[0].get_text() == f"train {sample}\n{label}"
    # Thinned out to 150 x 100; of the clip six frames of 8 pixels, one apart from the next.
    assert first["image"].images[0].get_array().shape == (150, 100, 3)
    assert first["clip"].images[0].get_array().shape == (8, 6 * 9)
    assert first["sequence"].images[0].get_array().shape == (150, 32)
    assert len(first["waveform"].lines[0].get_xdata()) == 1667
    assert len(first["vector"].lines[0].get_xdata()) == 30
    assert first["text"].texts[0].get_text().startswith("<b>& word")
    assert first["text"].texts[0].get_text().endswith("…")
    assert first["tokens"].texts[0].get_text() == f"7 {sample}" if sample else "7"
    page = survey_page(survey(task))
    assert "&lt;b&gt;&amp; word" in page
    assert "<b>" not in page


def test_columns_of_a_table_are_written_with_their_values(tmp_path: Path) -> None:
    for package in ("soundfile", "soxr"):
        pytest.importorskip(package)
    write_table(tmp_path / "pets.csv", rows := media_table(tmp_path, 24))
    (tmp_path / "task.toml").write_text(MEDIA_TASK, "utf-8")
    first = contact_sheet(survey(load_task(tmp_path / "task.toml"))).subfigs[0].axes[-1]
    city = rows[0]["city"]
    weight, height, visits = (float(rows[0][n]) for n in ("weight", "height", "visits"))
    assert first.texts[0].get_text() == (
        f"age: –\nweight: {weight}\nheight: {height}\nvisits: {visits}\ncity: {city}"
    )


def test_what_cannot_be_read_has_the_reason_in_its_place() -> None:
    task = tiny_task()
    sample = int(task.samples("validation")[0])
    broken = changed(task, 1, data=Fragile(np.asarray(task.modalities[1].data), {sample}))
    rows = contact_sheet(survey(broken)).subfigs
    written = [len(row.axes[2].texts) for row in rows]
    assert written == [0] * 4 + [1] + [0] * 7
    assert rows[4].axes[2].texts[0].get_text() == f"file {sample}: cannot be read"


@pytest.mark.parametrize("row", [-1, 96])
def test_a_row_that_is_not_there_is_not_drawn(row: int) -> None:
    task = tiny_task()
    index = np.arange(96)
    index[task.samples("validation")[0]] = row
    rows = contact_sheet(survey(changed(task, 1, index=index))).subfigs
    assert [[text.get_text() for text in part.axes[2].texts] for part in rows] == [
        *[[]] * 4,
        ["no such row"],
        *[[]] * 7,
    ]


def test_skeletons_are_drawn_as_bones_of_the_bodies_that_are_there() -> None:
    task = of_every_type()
    joints = np.random.default_rng(0).normal(size=(96, 32, 2, 25, 3)).astype(np.float32)
    joints[:, :, 1] = -1  # nobody
    joints[task.samples("train")[0], 16:, 1] = joints[0, 16:, 0] + 1
    task = changed(task, 3, data=joints.reshape(96, 32, 150), backbone="hcn")
    rows = contact_sheet(survey(task)).subfigs
    drawn = [len(row.axes[4].lines) for row in rows]
    assert drawn == [6 + 3, *[6] * 11]
    line = rows[0].axes[4].lines[0].get_xydata().reshape(24, 3, 2)
    expected = joints[task.samples("train")[0], 0, 0, :, :2]
    np.testing.assert_allclose(line[0, :2], expected[[0, 1]])
    assert {*map(tuple, line[:, :2].reshape(-1, 2).tolist())} == {*map(tuple, expected.tolist())}
    assert np.isnan(line[:, 2]).all()


def test_many_classes_are_cut_to_the_most_and_the_least_frequent() -> None:
    task = tiny_task(modalities=4)
    table = survey_tables(survey(task))[1]
    assert table.title == "Classes, 16: the 6 most and the 6 least frequent"
    totals = [sum(map(int, row[1:4])) for row in table.rows]
    assert totals == sorted(totals, reverse=True)
    assert len(totals) == 12
    assert totals[0] == np.bincount(task.labels).max()


def test_nothing_is_drawn_of_a_task_without_a_form() -> None:
    with pytest.raises(UserError, match="no data to draw: modality m0: received"):
        contact_sheet(survey(changed(tiny_task(), 0, data=np.zeros(96))))
