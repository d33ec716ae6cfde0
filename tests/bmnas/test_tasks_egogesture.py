from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paper_files import write_egogesture
from PIL import Image

from bmnas.machine.errors import UserError
from bmnas.tasks import Rows, load_task
from bmnas.tasks.egogesture import CLASSES, LISTS, load_egogesture
from bmnas.tasks.left_out import leave_out
from bmnas.tasks.media import read_frames
from bmnas.tasks.survey import survey

LISTED = Path(os.environ.get("BMNAS_DATA", "nowhere")) / "samples" / "egogesture-annotations"
LINES = (
    # The second as a few lines of the published list are; 40 frames, of which the middle 32 count.
    ["Subject03/Scene1/Color/rgb1 7 1 3", "Subject03/Scene1/Color/rgb1 2 11.0 50.0"],
    ["Subject01/Scene2/Color/rgb2 83 5 40"],
    ["Subject02/Scene1/Color/rgb1 1 1 32"],
)


def test_a_task_of_frames(tmp_path: Path) -> None:
    write_egogesture(tmp_path, LINES)
    task = load_egogesture(tmp_path, size=16)
    assert task.part.tolist() == [0, 0, 1, 2]
    assert task.labels.tolist() == [6, 1, 82, 0]
    assert (task.classes, task.class_names[82]) == (83, "Gesture 83")
    rgb, depth = task.modalities
    assert (rgb.data.shape, rgb.data.dtype) == ((4, 32, 16, 16, 3), np.uint8)
    assert (depth.data.shape, depth.data.dtype) == ((4, 32, 16, 16), np.uint8)
    for data in (rgb.data, depth.data):
        short, long, *_ = data[np.arange(4)].reshape(4, 32, -1).mean(2)
        # Frame n of class k has the grey 2 n + k.
        np.testing.assert_allclose(short, [2 * (1 + n % 3) + 7 for n in range(32)], atol=1)
        np.testing.assert_allclose(long, [2 * (15 + n) + 2 for n in range(32)], atol=1)


def test_training_sees_any_frames_and_any_square(tmp_path: Path) -> None:
    write_egogesture(tmp_path, LINES)
    corner = np.zeros((24, 32), np.uint8)
    corner[12:, 20:] = 200
    for kind in ("Color/rgb1", "Depth/depth1"):
        Image.fromarray(corner).save(tmp_path / f"Subject03/Scene1/{kind}/000050.jpg")
    data = [m.data for m in load_egogesture(tmp_path, size=16).modalities]
    numbers = np.array([1, 1, 0])
    # When, how large, where; the first two are of a gesture of 40 frames from 11 on.
    draws = np.array([[0, 0, 0.5, 0.5], [0.999, 0.999, 0.999, 0.999], [0.999, 0, 0.5, 0.5]])
    for rows in data:
        assert isinstance(rows, Rows)
        first, second, short = rows.varied(numbers, draws)
        grey = [row.reshape(32, -1).mean(1) for row in (first, second, short)]
        np.testing.assert_allclose(grey[0], [2 * (11 + n) + 2 for n in range(32)], atol=1)
        np.testing.assert_allclose(grey[1][:-1], [2 * (19 + n) + 2 for n in range(31)], atol=1)
        # A square of half the shorter side, right below.
        assert np.median(second[-1]) > 195
        assert second[-1].min() > 120
        np.testing.assert_allclose(grey[2], [2 * (1 + n % 3) + 7 for n in range(32)], atol=1)


def test_the_digest_follows_the_ends_of_a_clip(tmp_path: Path) -> None:
    write_egogesture(tmp_path, LINES)
    data = load_egogesture(tmp_path, size=16).modalities[1].data
    assert isinstance(data, Rows)
    before = data.digest(np.array([1]))
    os.utime(tmp_path / "Subject03/Scene1/Depth/depth1/000050.jpg", ns=(1, 1))
    assert data.digest(np.array([1])) != before


def test_whatever_training_may_see_is_checked(tmp_path: Path) -> None:
    long = "Subject03/Scene1/Color/rgb1 2 1 45"
    again = "Subject01/Scene2/Color/rgb2 83 41 45"
    write_egogesture(tmp_path, ([LINES[0][0], long], [*LINES[1], again], LINES[2]))
    task = load_egogesture(tmp_path, size=16)
    whole = [modality.data[np.arange(5)] for modality in task.modalities]
    second, last = (
        tmp_path / "Subject03/Scene1" / frame
        for frame in ("Color/rgb1/000004.jpg", "Depth/depth1/000044.jpg")
    )
    second.unlink()
    last.write_bytes(b"")
    # The middle 32 of 45 frames are 7 to 38.
    for modality, rows in zip(task.modalities, whole, strict=True):
        np.testing.assert_array_equal(modality.data[np.arange(5)], rows)
        assert isinstance(modality.data, Rows)
        np.testing.assert_array_equal(modality.data.read_whole(np.array([0, 2])), rows[[0, 2]])
    colour, depth = survey(task).modalities
    assert colour.unusable == {1: f"{second}: no such frame"}
    assert list(depth.unusable) == [1]
    assert depth.unusable[1].startswith(f"{last}: cannot be read")


def test_pictures_are_cut_to_their_middle(tmp_path: Path) -> None:
    picture = np.zeros((20, 60), np.uint8)
    picture[:, 20:40] = 200
    Image.fromarray(picture).save(tmp_path / "a.png")
    clip = read_frames([tmp_path / "a.png"] * 2, 10, grey=True)
    assert clip.shape == (2, 10, 10)
    assert (clip[:, :, 1:-1] == 200).all()


def remove_a_frame(folder: Path) -> None:
    (folder / "Subject01/Scene2/Color/rgb2/000020.jpg").unlink()


def damage_a_frame(folder: Path) -> None:
    path = folder / "Subject01/Scene2/Color/rgb2/000020.jpg"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_frame, r"rgb2/000020\.jpg: no such frame"),
        (damage_a_frame, r"rgb2/000020\.jpg: cannot be read"),
    ],
)
def test_a_broken_frame_is_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_egogesture(tmp_path, LINES)
    damage(tmp_path)
    data = load_egogesture(tmp_path, size=16).modalities[0].data
    with pytest.raises(UserError, match=message):
        data[np.array([2])]


def test_lists_that_name_what_is_not_there(tmp_path: Path) -> None:
    write_egogesture(tmp_path, LINES)
    depth = tmp_path / "Subject03/Scene1/Depth/depth1"
    shutil.rmtree(depth)
    with pytest.raises(UserError, match=r"trainlist\S+: line 1: names \S+depth1, which does not"):
        load_egogesture(tmp_path)
    depth.mkdir()
    with pytest.raises(
        UserError, match=r"trainlist\S+: line 1: names \S+depth1, which is empty: g"
    ):
        load_egogesture(tmp_path)
    leave_out(tmp_path, {LINES[0][0]: "not there"})
    with pytest.raises(UserError, match=r"trainlist\S+: line 2: names \S+depth1, which is empty"):
        load_egogesture(tmp_path)
    (tmp_path / LISTS[2]).unlink()
    shutil.rmtree(tmp_path / "Subject03")
    with pytest.raises(UserError, match=r"line 2: names \S+rgb1, which does not exist"):
        load_egogesture(tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (LISTS[1], "Subject01/Scene2/rgb2 1 5 40", r"vallist\S+: line 1: received 'Subject01/Sc"),
        (LISTS[1], LINES[1][0].replace(" 83 ", " 84 "), "line 1: received class 84, frames 5 to"),
        (LISTS[1], LINES[1][0].replace(" 5 ", " 50 "), "expected a class from 1 to 83, and a fi"),
        (CLASSES, "2 Wave", r"classIndAllbutNone\.txt: line 1: received class 2, expected 1"),
        (CLASSES, "Wave", r"classIndAllbutNone\.txt: line 1: received 'Wave', expected such as 1 "),
    ],
)
def test_lists_of_another_form(tmp_path: Path, file: str, line: str, message: str) -> None:
    write_egogesture(tmp_path, LINES)
    (tmp_path / file).write_text(line)
    with pytest.raises(UserError, match=message):
        load_egogesture(tmp_path)


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    write_egogesture(tmp_path, LINES)
    (tmp_path / LISTS[2]).unlink()
    with pytest.raises(UserError, match=r"testlistall_but_None\.txt: cannot be read: No such"):
        load_egogesture(tmp_path)


@pytest.mark.data
@pytest.mark.skipif(not LISTED.is_dir(), reason="BMNAS_DATA names no folder with samples")
def test_the_published_lists_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in (*LISTS, CLASSES):
        shutil.copy(LISTED / file, tmp_path)
    monkeypatch.setattr("bmnas.tasks.egogesture._expect_frames", lambda folder, place: None)
    task = load_task("egogesture", tmp_path)
    assert [len(task.samples(part)) for part in ("train", "validation", "test")] == [
        14_416,
        4_768,
        4_977,
    ]
    assert (len(np.unique(task.labels)), task.class_names[0]) == (83, "Scroll hand towards right")
