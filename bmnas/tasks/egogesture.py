"""EgoGesture: 24,161 gestures of 83 classes before a camera on the head, in colour and in depth.

Source: Y. Zhang et al., "EgoGesture: A New Dataset and Benchmark for Egocentric Hand Gesture
Recognition", IEEE Transactions on Multimedia, 2018. The lists that say where in its videos the
gestures are come with the program of O. Köpüklü et al., arXiv 1901.10323: a line is the folder of
the colour frames, class, first and last frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bmnas.machine.errors import UserError
from bmnas.tasks.decoded import DecodedRows
from bmnas.tasks.kinds import Array
from bmnas.tasks.left_out import LEFT_OUT, left_out
from bmnas.tasks.media import read_frames
from bmnas.tasks.task import Modality, Task

#: One for each part, see ``PARTS``.
LISTS = ("trainlistall_but_None.txt", "vallistall_but_None.txt", "testlistall_but_None.txt")
CLASSES = "classIndAllbutNone.txt"
FRAMES, SIZE = 32, 112
#: Of the squares that training sees, in shorter sides of a picture.
_SCALES = tuple(2 ** (-step / 4) for step in range(5))

_LINE = re.compile(r"(Subject\d+/Scene\d+)/Color/rgb(\d+) (\d+) (\d+)(?:\.0)? (\d+)(?:\.0)?")
_CLASS = re.compile(r"(\d+) (\S+)")


class _Clip(NamedTuple):
    """Frames ``first`` to ``last``, pictures of a folder."""

    folder: Path
    first: int
    last: int

    def frames(self, place: float | None = None) -> list[Path]:
        """Return the files of the middle frames, or of those at a ``place`` from 0 to 1.

        What is too short begins anew at its end.
        """
        length = self.last - self.first + 1
        start = max(0, length // 2 - FRAMES // 2)
        if place is not None:
            start = int(place * (max(0, length - FRAMES) + 1))
        return self._files(self.first + start + np.arange(FRAMES) % min(length, FRAMES))

    def ends(self) -> list[Path]:
        """Return the files of the first and the last frame: millions need not be looked at."""
        return self._files(np.array([self.first, self.last]))

    def all_frames(self) -> list[Path]:
        """Return the files of all frames, then ``frames``."""
        return [*self._files(np.arange(self.first, self.last + 1)), *self.frames()]

    def _files(self, numbers: Array) -> list[Path]:
        return [self.folder / f"{number:06}.jpg" for number in numbers.tolist()]


def load_egogesture(folder: Path, *, size: int = SIZE) -> Task:
    """Load clips ``rgb`` (32, size, size, 3) and ``depth`` (32, size, size), uint8.

    ``folder`` holds ``LISTS``, ``CLASSES`` and the frames, such as
    ``Subject01/Scene1/Color/rgb1/000178.jpg`` and ``Subject01/Scene1/Depth/depth1/000178.jpg``. Of
    a gesture the 32 frames in its middle are taken, as the program of the lists does in tests. As
    there, training sees 32 frames from anywhere in it, and a square of any place and of one of five
    sizes, the same of both modalities.

    Raises UserError, with file and line, for a list of another form, and for a line whose folder of
    frames is missing or empty.
    """
    class_names = _class_names(folder / CLASSES)
    colour: list[_Clip] = []
    depth: list[_Clip] = []
    names: list[str] = []
    labels, parts = [], []
    there, absent, dropped = set[Path](), left_out(folder), list[str]()
    for part, file in enumerate(LISTS):
        for place, found in _matches(folder / file, _LINE, "Subject01/Scene1/Color/rgb1 2 178 218"):
            if found[0] in absent:
                dropped.append(found[0])
                continue
            scene, video, label, first, last = found.groups()
            if not 1 <= int(label) <= len(class_names) or int(first) > int(last):
                raise UserError(
                    f"{place}: received class {label}, frames {first} to {last}, expected a class "
                    f"from 1 to {len(class_names)}, and a first frame before the last"
                )
            for clips, frames in ((colour, f"Color/rgb{video}"), (depth, f"Depth/depth{video}")):
                clip = _Clip(folder / scene / frames, int(first), int(last))
                if clip.folder not in there:
                    _expect_frames(clip.folder, place)
                    there.add(clip.folder)
                clips.append(clip)
            names.append(found[0])
            labels.append(int(label) - 1)
            parts.append(part)
    rows = {
        "rgb": _rows(colour, folder, size, grey=False),
        "depth": _rows(depth, folder, size, grey=True),
    }
    return Task(
        name="egogesture",
        kind="multiclass",
        modalities=tuple(
            Modality(name, "clip", data, backbone="resnext101_3d") for name, data in rows.items()
        ),
        labels=np.array(labels),
        part=np.array(parts),
        class_names=class_names,
        preset="ego-1",
        licence="for academic research only, by agreement with its authors",
        names=tuple(names),
        left_out=tuple(dropped),
    )


def _rows(clips: list[_Clip], folder: Path, size: int, *, grey: bool) -> DecodedRows[_Clip]:
    return DecodedRows(
        clips,
        partial(_decode, size=size, grey=grey),
        (FRAMES, size, size, *(() if grey else (3,))),
        np.uint8,
        folder=folder,
        files=_Clip.ends,
        recipe="middle frames; in training any, and squares of any place and five sizes",
        vary=partial(_varied, size=size, grey=grey),
        whole=partial(_whole, size=size, grey=grey),
    )


def _decode(clip: _Clip, size: int, grey: bool) -> Array:
    return read_frames(clip.frames(), size, grey=grey)


def _whole(clip: _Clip, size: int, grey: bool) -> Array:
    return read_frames(clip.all_frames(), size, grey=grey)[-FRAMES:]


def _varied(clip: _Clip, draws: Array, size: int, grey: bool) -> Array:
    when, scale, *place = draws.tolist()
    return read_frames(
        clip.frames(when),
        size,
        grey=grey,
        scale=_SCALES[int(scale * len(_SCALES))],
        place=(place[0], place[1]),
    )


def _class_names(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for place, found in _matches(path, _CLASS, "1 Scroll_hand_towards_right"):
        if int(found[1]) != len(names) + 1:
            raise UserError(f"{place}: received class {found[1]}, expected {len(names) + 1}")
        names.append(found[2].replace("_", " "))
    return tuple(names)


def _matches(path: Path, form: re.Pattern[str], such: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the place and the match of every line of a file; raises UserError for another."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        found = form.fullmatch(line.strip())
        if found is None:
            raise UserError(
                f"{path}: line {number}: received {line[:80]!r}, expected such as {such}"
            )
        yield f"{path}: line {number}", found


def _expect_frames(folder: Path, place: str) -> None:
    remedy = f"get its frames, or name the gesture in {LEFT_OUT}"
    if not folder.is_dir():
        raise UserError(f"{place}: names {folder}, which does not exist: {remedy}")
    if next(folder.iterdir(), None) is None:
        raise UserError(f"{place}: names {folder}, which is empty: {remedy}")
