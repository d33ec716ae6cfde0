"""NTU RGB+D: 56,880 videos of 60 actions, each with the joints of the bodies in it.

Source: A. Shahroudy et al., "NTU RGB+D: A Large Scale Dataset for 3D Human Activity Analysis", CVPR
2016, arXiv 1604.02808. A name such as ``S001C002P003R002A013`` tells setup, camera, performer (the
subject), replication and action.

Legend: T frames, J joints (25), D numbers a frame (2 bodies x J x 3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np

from bmnas.machine.errors import UserError, few
from bmnas.tasks.decoded import DecodedRows, Kept
from bmnas.tasks.kinds import Array
from bmnas.tasks.left_out import LEFT_OUT, left_out
from bmnas.tasks.media import read_video
from bmnas.tasks.task import Modality, Task

ACTIONS = (
    "drink water", "eat meal", "brush teeth", "brush hair", "drop", "pick up", "throw", "sit down",
    "stand up", "clap", "read", "write", "tear up paper", "put on jacket", "take off jacket",
    "put on a shoe", "take off a shoe", "put on glasses", "take off glasses", "put on a hat",
    "take off a hat", "cheer up", "wave", "kick something", "reach into pocket", "hop", "jump up",
    "phone call", "play with phone", "type on a keyboard", "point to something", "take a selfie",
    "check time", "rub two hands", "nod head", "shake head", "wipe face", "salute",
    "put palms together", "cross hands in front", "sneeze", "stagger", "fall", "headache",
    "chest pain", "back pain", "neck pain", "nausea", "fan self", "punch", "kick a person", "push",
    "pat on back", "point finger", "hug", "give something", "touch pocket", "shake hands",
    "walk towards each other", "walk apart",
)  # fmt: skip

_VALIDATION = (2, 5, 9, 14)
#: Of the cross-subject protocol, whose train subjects are all others.
_TEST = (3, 6, 7, 10, 11, 12, 20, 21, 22, 23, 24, 26, 29, 30, 32, 33, 36, 37, 39, 40)
#: Train subjects of each variant. Subjects that are in no part are left out.
TRAIN_SUBJECTS: Mapping[str, tuple[int, ...]] = {
    # BM-NAS, section 4.2, which says that they are those of MFAS; MFAS's program searches on them.
    "ntu": (1, 4, 8, 13, 15, 17, 19),
    # The released program of BM-NAS searches on these.
    "ntu-released": (1, 8, 15, 17, 19, 27, 31, 35),
    # The whole train part of the protocol, but for validation: both programs evaluate with these.
    "ntu-all": (1, 4, 8, 13, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38),
}
FRAMES, SKELETON_FRAMES, SIZE = 8, 32, 256
JOINTS, BODIES = 25, 2

#: Pairs of joints, counted from 0: spine and head, arms with tip of the hand and thumb, legs.
BONES = (
    (0, 1), (1, 20), (20, 2), (2, 3),
    (20, 4), (4, 5), (5, 6), (6, 7), (7, 21), (7, 22),
    (20, 8), (8, 9), (9, 10), (10, 11), (11, 23), (11, 24),
    (0, 12), (12, 13), (13, 14), (14, 15), (0, 16), (16, 17), (17, 18), (18, 19),
)  # fmt: skip

_NAME = re.compile(r"S\d{3}C\d{3}P(\d{3})R\d{3}A(\d{3})")
_ORIGIN = 1  # joint 2, the middle of the spine
_NUMBERS = 12  # of a joint; the first three are its place in metres
_INFO = 10  # numbers of a body, its number among them
_MOST_BODIES = 6
_VIDEO, _SKELETON = "_rgb.avi", ".skeleton"
_KEEP = 1 << 31  # bytes of joints that are kept: 50 KB a sample of 84 frames, the mean
_LEAST_PART, _LEAST_FRAMES = 0.5, 64  # of a sample that training sees


def load_ntu(folder: Path, variant: str = "ntu", *, size: int = SIZE) -> Task:
    """Load RGB clips (8, size, size, 3) uint8 and skeletons (32, 150) float32.

    ``folder`` holds ``*_rgb.avi`` and ``*.skeleton`` files, in folders of any depth. ``variant`` is
    one of ``TRAIN_SUBJECTS``. The 302 samples whose skeletons are missing or incomplete, as the
    data set's authors list them, are left out.

    Raises UserError where a sample of a part has one file only, and where none is there.
    """
    videos, skeletons = _files(folder, _VIDEO), _files(folder, _SKELETON)
    missing, absent = missing_skeletons(), left_out(folder)
    whole = {name: path for name, path in (videos | skeletons).items() if name not in missing}
    dropped = {name: whole.pop(name) for name in absent & whole.keys()}
    names, labels, parts = _samples(whole, TRAIN_SUBJECTS[variant])
    for kind, found in ((_VIDEO, videos), (_SKELETON, skeletons)):
        _expect_files(folder, kind, names, found)
    if not names:
        raise UserError(
            f"{folder}: received no sample of the subjects of {variant}, expected files such as "
            f"S001C001P001R001A001{_VIDEO} and S001C001P001R001A001{_SKELETON}"
        )
    read, joints = partial(read_video, count=FRAMES, size=size), Kept(read_joints, _KEEP)
    rgb = DecodedRows(
        [videos[name] for name in names],
        read,
        (FRAMES, size, size, 3),
        np.uint8,
        folder=folder,
        files=_itself,
        recipe="middle frames; in training of a part in the middle",
        vary=partial(_middle, read),
    )
    skeleton = DecodedRows(
        [skeletons[name] for name in names],
        partial(_interpolated, joints),
        (SKELETON_FRAMES, BODIES * JOINTS * 3),
        np.float32,
        folder=folder,
        files=_itself,
        recipe="joint 2 is the origin; in training a part from anywhere",
        vary=partial(_stretch, joints),
    )
    return Task(
        name=variant,
        kind="multiclass",
        modalities=(
            Modality("rgb", "clip", rgb, backbone="inflated_resnet50"),
            Modality("skeleton", "sequence", skeleton, backbone="hcn"),
        ),
        labels=np.array(labels),
        part=np.array(parts),
        class_names=ACTIONS,
        preset="ntu-1",
        licence="for academic research only, by agreement with the ROSE Lab",
        names=tuple(names),
        left_out=tuple(_samples(dropped, TRAIN_SUBJECTS[variant])[0]),
    )


def missing_skeletons() -> frozenset[str]:
    """Return the names of the samples without a whole skeleton, as its authors list them."""
    text = resources.files("bmnas.tasks").joinpath("ntu_missing.txt").read_text(encoding="ascii")
    return frozenset(text.split())


def read_skeleton(path: Path, frames: int = SKELETON_FRAMES) -> Array:
    """Return ``read_joints`` of a file at ``frames`` times: (frames, D) float32, metres.

    Time is interpolated between the two nearest frames. Raises UserError as ``read_joints`` does.
    """
    return _at(read_joints(path), frames)


def read_joints(path: Path) -> Array:
    """Return the joints of every frame of a ``.skeleton`` file, (T, D) float32, metres.

    A row is (2 bodies, 25 joints, x y z), flattened: the first two bodies of a frame, as it lists
    them. What a frame lacks is 0. In every frame the first body's joint 2 is then the origin, of
    both bodies. All this is as in the released programs of MFAS and BM-NAS, whose weights expect
    it: a body that is not there lies at minus the origin, and the other of two that stays may
    become the first.

    Raises UserError, with file and line, for a file of another form.
    """
    joints = _joints(path)
    joints -= joints[:, :1, _ORIGIN : _ORIGIN + 1].copy()
    return joints.reshape(len(joints), -1).astype(np.float32)


def _at(joints: Array, frames: int) -> Array:
    place = np.clip((np.arange(frames) + 0.5) * len(joints) / frames - 0.5, 0, len(joints) - 1)
    before = place.astype(int)
    after = np.minimum(before + 1, len(joints) - 1)
    weight = (place - before)[:, None]
    row: Array = (joints[before] * (1 - weight) + joints[after] * weight).astype(np.float32)
    return row


def _interpolated(joints: Callable[[Path], Array], path: Path) -> Array:
    return _at(joints(path), SKELETON_FRAMES)


# Training sees half to all of a sample, of the video in its middle, of the skeleton anywhere and 64
# frames at least, as in the released programs.


def _middle(read: Callable[..., Array], path: Path, draws: Array) -> Array:
    return read(path, middle=1 - _LEAST_PART * float(draws[0]))


def _stretch(joints: Callable[[Path], Array], path: Path, draws: Array) -> Array:
    whole = joints(path)
    part = _LEAST_PART + (1 - _LEAST_PART) * float(draws[1])
    length = min(max(int(part * len(whole)), _LEAST_FRAMES), len(whole))
    begin = int(draws[2] * (len(whole) - length + 1))
    return _at(whole[begin : begin + length], SKELETON_FRAMES)


def _joints(path: Path) -> Array:
    """Return what a file says, (T, 2, 25, 3) float64."""
    lines = _Lines(path)
    joints = np.zeros((lines.count("the number of frames", 1, 100_000), BODIES, JOINTS, 3))
    seen = 0
    for frame in joints:
        bodies = lines.count("the number of bodies", 0, _MOST_BODIES)
        seen += bodies
        for body in range(bodies):
            lines.numbers("a body", _INFO, 0)
            lines.count("the number of joints", JOINTS, JOINTS)
            places = [lines.numbers("a joint", _NUMBERS, 3) for _ in range(JOINTS)]
            if body < BODIES:
                frame[body] = places
    lines.end()
    if not seen:
        raise UserError(f"{path}: received no body in {len(joints)} frames, expected some")
    return np.nan_to_num(joints)


class _Lines:
    """The lines of a file; raises UserError, with file and line, for one that is not as asked."""

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, 0
        try:
            # Latin-1 takes any byte: what is no text is found, with its line, when it is no number.
            self._lines = path.read_text(encoding="latin-1").rstrip().splitlines()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error

    def numbers(self, what: str, count: int, read: int) -> list[float]:
        """Return the first ``read`` of the next line's ``count`` numbers."""
        words = self._next(what).split()
        if len(words) != count:
            raise self._wrong(f"{what}: received {len(words)} numbers, expected {count}")
        try:
            return [float(word) for word in words[:read]]
        except ValueError as error:
            raise self._wrong(f"{what}: {error}") from error

    def count(self, what: str, least: int, most: int) -> int:
        """Return the next line, an integer from ``least`` to ``most``."""
        line = self._next(what).strip()
        if not line.isdecimal() or not least <= int(line) <= most:
            expected = str(most) if least == most else f"{least} to {most}"
            raise self._wrong(f"{what}: received {line[:40]!r}, expected {expected}")
        return int(line)

    def end(self) -> None:
        """Expect that there is no more."""
        more = len(self._lines) - self._number
        if more:
            raise UserError(
                f"{self._path}: line {self._number + 1}: received {more} lines after the last "
                "frame, expected none: the number of frames in line 1 is wrong"
            )

    def _next(self, what: str) -> str:
        if self._number == len(self._lines):
            raise UserError(f"{self._path}: ends after line {self._number}, expected {what}")
        self._number += 1
        return self._lines[self._number - 1]

    def _wrong(self, text: str) -> UserError:
        return UserError(f"{self._path}: line {self._number}: {text}")


def _files(folder: Path, kind: str) -> dict[str, Path]:
    """Return the files in ``folder`` whose names end so, by the rest of their names."""
    found: dict[str, Path] = {}
    for parent, _, files in os.walk(folder, followlinks=True):
        for file in files:
            name, path = file.removesuffix(kind), Path(parent, file)
            if name != file and found.setdefault(name, path) != path:
                raise UserError(f"{path}: received {found[name]} too, expected one file of a name")
    return found


def _expect_files(folder: Path, kind: str, names: list[str], found: Mapping[str, Path]) -> None:
    lacking = [f"{name}{kind}" for name in names if name not in found]
    if lacking:
        raise UserError(
            f"{folder}: received {len(names) - len(lacking)} *{kind} files for {len(names)} "
            f"samples, {few(lacking)} missing: get them, or name the samples in {LEFT_OUT}"
        )


def _samples(
    paths: Mapping[str, Path], train: tuple[int, ...]
) -> tuple[list[str], list[int], list[int]]:
    """Return the names of the samples that are in a part, their actions from 0, and parts."""
    part_of = dict.fromkeys(train, 0) | dict.fromkeys(_VALIDATION, 1) | dict.fromkeys(_TEST, 2)
    names, labels, parts = [], [], []
    for name in sorted(paths):
        found = _NAME.fullmatch(name)
        if found is None or not 1 <= int(found[2]) <= len(ACTIONS):
            raise UserError(
                f"{paths[name]}: received this name, expected SsssCcccPpppRrrrAaaa with an action "
                f"from 1 to {len(ACTIONS)}"
            )
        if int(found[1]) in part_of:
            names.append(name)
            labels.append(int(found[2]) - 1)
            parts.append(part_of[int(found[1])])
    return names, labels, parts


def _itself(path: Path) -> tuple[Path]:
    return (path,)
