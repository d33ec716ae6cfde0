from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from paper_files import bodies, rising, skeleton_text, write_ntu, write_video

from bmnas.machine.errors import UserError
from bmnas.tasks import Rows, check_task, load_task, reload_task
from bmnas.tasks.media import read_video
from bmnas.tasks.ntu import (
    ACTIONS,
    TRAIN_SUBJECTS,
    load_ntu,
    missing_skeletons,
    read_skeleton,
)

SAMPLES = Path(os.environ.get("BMNAS_DATA", "nowhere")) / "samples" / "ntu-format-synthetic"
#: One sample of two actions for each of the four subjects, one of them in no part of "ntu".
SUBJECTS = (1, 16, 2, 40)
NAMES = [f"S001C001P{subject:03}R001A{action:03}" for subject in SUBJECTS for action in (1, 55)]


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="ascii", newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_bodies_lie_around_the_spine_of_the_first(tmp_path: Path, end: str) -> None:
    frames = [bodies(2, np.random.default_rng(frame)) for frame in range(4)]
    found = read_skeleton(written(tmp_path / "a.skeleton", skeleton_text(frames, end)), 4)
    expected = np.stack(frames) - np.stack([two[0][1] for two in frames])[:, None, None]
    np.testing.assert_allclose(found, expected.reshape(4, 150), atol=1e-5)
    np.testing.assert_allclose(found.reshape(4, 2, 25, 3)[:, 0, 1], 0, atol=1e-6)


def test_bodies_come_and_go(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [bodies(count, rng) for count in (0, 1, 2, 6)]
    path = written(tmp_path / "a.skeleton", skeleton_text(frames))
    found = read_skeleton(path, 4).reshape(4, 2, 25, 3)
    assert not found[0].any()
    # As weights of the released programs expect it: who is not there lies at minus the origin.
    np.testing.assert_allclose(found[1, 1], np.tile(-frames[1][0][1], (25, 1)), atol=1e-5)
    np.testing.assert_allclose(found[3, 1], frames[3][1] - frames[3][0][1], atol=1e-5)


def test_time_is_interpolated_between_the_nearest_frames(tmp_path: Path) -> None:
    first, last = np.zeros((25, 3)), np.zeros((25, 3))
    last[0, 0] = 1
    path = written(tmp_path / "a.skeleton", skeleton_text([[first], [last]]))
    # torch.nn.functional.interpolate of (0, 1) to 4, linear, align_corners=False.
    np.testing.assert_allclose(read_skeleton(path, 4)[:, 0], [0, 0.25, 0.75, 1])
    assert read_skeleton(path).shape == (32, 150)


def test_a_number_that_is_none_is_zero(tmp_path: Path) -> None:
    text = skeleton_text([bodies(1, np.random.default_rng(0))]).split("\r\n")
    text[8] = " ".join(["nan", *text[8].split()[1:]])
    path = written(tmp_path / "a.skeleton", "\r\n".join(text))
    origin = float(text[5].split()[0])
    np.testing.assert_allclose(read_skeleton(path, 1)[0, 12], -origin, atol=1e-5)


def broken(kind: str) -> str:
    lines = skeleton_text([bodies(1, np.random.default_rng(0))] * 3).split("\r\n")
    if kind == "fewer frames":
        lines[0] = "2"
    elif kind == "more frames":
        lines[0] = "4"
    elif kind == "more bodies":
        lines[1] = "2"
    elif kind == "seven bodies":
        lines[1] = "7"
    elif kind == "joints":
        lines[3] = "24"
    elif kind == "numbers":
        lines[4] = "0.1 0.2"
    elif kind == "words":
        lines[4] = lines[4].replace(lines[4].split()[0], "x")
    return "\r\n".join(lines)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fewer frames", r"line 58: received 28 lines after the last frame, expected none: the n"),
        ("more frames", r"ends after line 85, expected the number of bodies"),
        ("more bodies", r"line 30: a body: received 1 numbers, expected 10"),
        ("seven bodies", r"line 2: the number of bodies: received '7', expected 0 to 6"),
        ("joints", r"line 4: the number of joints: received '24', expected 25"),
        ("numbers", r"line 5: a joint: received 2 numbers, expected 12"),
        ("words", r"line 5: a joint: could not convert string to float: 'x'"),
    ],
)
def test_a_wrong_count_is_told_with_its_line(tmp_path: Path, kind: str, message: str) -> None:
    path = written(tmp_path / "S001C001P001R001A001.skeleton", broken(kind))
    with pytest.raises(UserError, match=rf"A001\.skeleton: {message}"):
        read_skeleton(path)


def test_a_file_without_a_body_or_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received no body in 2 frames"):
        read_skeleton(written(tmp_path / "a.skeleton", skeleton_text([[], []])))
    (tmp_path / "b.skeleton").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match=r"b\.skeleton: line 1: the number of frames: received 'ÿ"):
        read_skeleton(tmp_path / "b.skeleton")
    with pytest.raises(UserError, match=r"c\.skeleton: cannot be read: No such file"):
        read_skeleton(tmp_path / "c.skeleton")


def test_frames_are_the_middle_ones_of_equal_parts(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", rising(16))
    clip = read_video(tmp_path / "a.avi", 4, 32)
    assert (clip.shape, clip.dtype) == ((4, 32, 32, 3), np.uint8)
    wanted = [rising(16)[number][0, 0, 0] for number in (2, 6, 10, 14)]
    np.testing.assert_allclose(clip.mean((1, 2, 3)), wanted, atol=4)
    # A video of fewer frames than are asked for shows some of them twice.
    assert read_video(tmp_path / "a.avi", 40, 8).shape == (40, 8, 8, 3)


def test_training_sees_half_to_all_of_a_sample(tmp_path: Path) -> None:
    name = "S001C001P001R001A001"
    frames = [[np.eye(25, 3) * (number, 0, 0)] for number in range(200)]  # joint 1 runs away
    written(tmp_path / f"{name}.skeleton", skeleton_text(frames))
    write_video(tmp_path / f"{name}_rgb.avi", rising(64))
    rgb, skeleton = (m.data for m in load_ntu(tmp_path, size=16).modalities)
    assert isinstance(rgb, Rows)
    assert isinstance(skeleton, Rows)
    one, most = np.zeros(1, int), 1 - 1e-7
    whole, half = np.array([[0, most, 0, 0]]), np.array([[most, 0, most, 0]])
    np.testing.assert_array_equal(rgb.varied(one, whole), rgb[one])
    np.testing.assert_allclose(skeleton.varied(one, whole)[0, :, 0], skeleton[one][0, :, 0], atol=4)
    middle = rgb.varied(one, half)[0].mean((1, 2, 3))
    wanted = [rising(64)[16 + 2 + 4 * n][0, 0, 0] for n in range(8)]
    np.testing.assert_allclose(middle, wanted, atol=4)
    last = skeleton.varied(one, half)[0, :, 0]
    np.testing.assert_allclose((last[0], last[-1]), (100, 199), atol=2)
    np.testing.assert_allclose(skeleton[one][0, :, 0], np.arange(32) * 6.25 + 2.625, atol=1e-4)


def test_an_unreadable_video_is_told_with_its_place(tmp_path: Path) -> None:
    whole = tmp_path / "a.avi"
    write_video(whole, rising(64))
    content = whole.read_bytes()
    for name, part, message in (
        ("half.avi", content[: len(content) // 2], r"half\.avi: (ends )?after (frame )?\d+"),
        ("noise.avi", bytes(2000), r"noise\.avi: cannot be read: .*Invalid data"),
        ("empty.avi", b"", r"empty\.avi: cannot be read"),
    ):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(UserError, match=message):
            read_video(tmp_path / name, 8, 16)


def test_a_video_of_an_unknown_codec_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_video(path, rising(4))
    assert b"FMP4" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"?!?!"))
    with pytest.raises(
        UserError, match=r"a\.avi: received pictures of a codec that FFmpeg does no"
    ):
        read_video(path, 4, 16)


def test_a_task_of_files(tmp_path: Path) -> None:
    write_ntu(tmp_path, NAMES)
    task = load_ntu(tmp_path, size=16)
    assert task.part.tolist() == [0, 0, 1, 1, 2, 2]
    assert task.labels.tolist() == [0, 54] * 3
    assert (len(ACTIONS), ACTIONS[54]) == (60, "hug")
    rgb, skeleton = task.modalities
    assert (rgb.data.shape, skeleton.data.shape) == ((6, 8, 16, 16, 3), (6, 32, 150))
    rows = np.array([0, 1])
    brightness = rgb.data[rows].mean((2, 3, 4))
    assert (np.diff(brightness, axis=1) > 0).all()
    second = skeleton.data[rows].reshape(2, 32, 2, 25, 3)[:, :, 1]
    assert not np.ptp(second[0], axis=1).any()
    assert np.ptp(second[1], axis=1).all()
    with pytest.raises(UserError, match="classes 'eat meal', 'brush teeth'"):
        check_task(task)  # which has 2 of 60 classes, and nothing else to complain about
    named = load_task("ntu-all", tmp_path)
    assert sorted(named.part.tolist()) == [0, 0, 0, 0, 1, 1, 2, 2]
    assert named.modalities[0].data.shape == (8, 8, 256, 256, 3)
    assert [m.backbone for m in named.modalities] == ["inflated_resnet50", "hcn"]
    assert reload_task(named.source).name == "ntu-all"


def test_weights_lie_beside_the_data_and_are_called_as_their_modality(tmp_path: Path) -> None:
    write_ntu(tmp_path, NAMES)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "skeleton.pth").touch()
    task = load_task("ntu", tmp_path)
    assert [m.weights for m in task.modalities] == [None, folder / "skeleton.pth"]
    (folder / "skeleton.safetensors").touch()
    with pytest.raises(UserError, match=r"skeleton\.safetensors: received \S+\.pth too, expected"):
        load_task("ntu", tmp_path)
    (folder / "skeleton.safetensors").rename(folder / "pose.pth")
    with pytest.raises(UserError, match="task ntu: received modality 'pose', expected one of rgb"):
        load_task("ntu", tmp_path)


def test_samples_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received no sample of the subjects of ntu"):
        load_ntu(tmp_path)
    write_ntu(tmp_path, NAMES)
    (tmp_path / "nturgb+d_rgb" / f"{NAMES[0]}_rgb.avi").unlink()
    message = (
        rf"avi files for 6 samples, {NAMES[0]}_rgb\.avi missing: get them, or name the samples"
    )
    with pytest.raises(UserError, match=message):
        load_ntu(tmp_path)
    videos = tmp_path / "nturgb+d_rgb"
    (tmp_path / "small").symlink_to(videos)
    with pytest.raises(UserError, match=r"_rgb\.avi: received \S+ too, expected one"):
        load_ntu(tmp_path)
    (tmp_path / "small").unlink()
    (videos / "S001C001P001R001A061_rgb.avi").write_bytes(b"")
    with pytest.raises(UserError, match=r"A061_rgb\.avi: received this name, expected SsssCccc"):
        load_ntu(tmp_path)


def test_what_the_authors_list_as_missing_is_left_out(tmp_path: Path) -> None:
    missing = sorted(missing_skeletons())
    write_ntu(tmp_path, [*NAMES[:2], missing[0]])
    assert len(load_ntu(tmp_path).labels) == 2
    # 56,578 of 56,880 samples are whole: 40,091 and 16,487 of the cross-subject protocol.
    train = {*TRAIN_SUBJECTS["ntu-all"], 2, 5, 9, 14}
    counts = [sum((int(name[9:12]) in train) == wanted for name in missing) for wanted in (1, 0)]
    assert counts == [40_320 - 40_091, 16_560 - 16_487]
    assert len(train) == 20


@pytest.mark.data
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="BMNAS_DATA names no folder with samples")
def test_samples_in_the_format_are_read() -> None:
    files = sorted(SAMPLES.glob("*.skeleton"))
    assert len(files) == 4
    for file in files:
        found = read_skeleton(file)
        assert found.shape == (32, 150)
        assert np.isfinite(found).all()
