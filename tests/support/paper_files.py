"""Small files in the exact formats of NTU RGB+D and EgoGesture."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from bmnas.backbones.hcn import HCNBackbone
from bmnas.backbones.resnet3d import InflatedResNet50Backbone, ResNeXt3DBackbone
from bmnas.backbones.vgg import VGG19Backbone
from bmnas.tasks.egogesture import CLASSES, LISTS

_NARROW: dict[Any, dict[str, int]] = {
    VGG19Backbone: {"width": 4},
    InflatedResNet50Backbone: {"width": 2},
    HCNBackbone: {"width": 4},
    ResNeXt3DBackbone: {"width": 2, "cardinality": 2},
}

Bodies = Sequence[npt.NDArray[np.float64]]


def skeleton_text(frames: Sequence[Bodies], end: str = "\r\n") -> str:
    """Return a ``.skeleton`` file of the bodies (25, 3) of each frame."""
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for number, body in enumerate(bodies):
            lines += [f"7205759403792790{number} 0 1 1 1 1 0 0.017 -0.166 2", str(len(body))]
            for x, y, z in body:
                lines.append(
                    f"{x:.7g} {y:.7g} {z:.7g} 251.2 203.4 1003.1 527.9 -0.2 0.04 0.9 -0.1 2"
                )
    return end.join([*lines, ""])


def bodies(count: int, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Return ``count`` bodies (25, 3), in metres before a camera."""
    return [rng.normal((person, 0, 3), 0.4, (25, 3)) for person in range(count)]


def write_video(path: Path, pictures: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Write pictures (H, W, 3) as an ``.avi`` of 30 a second."""
    height, width, _ = pictures[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(30))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 4_000_000
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def rising(count: int) -> list[npt.NDArray[np.uint8]]:
    """Return grey pictures (36, 64, 3), each brighter than the one before."""
    return [np.full((36, 64, 3), 20 + 200 * n // count, np.uint8) for n in range(count)]


def write_ntu(folder: Path, names: Sequence[str]) -> None:
    """Write the skeletons and videos of samples, as the archives of the data set unpack."""
    rng = np.random.default_rng(0)
    skeletons, videos = folder / "nturgb+d_skeletons", folder / "nturgb+d_rgb"
    skeletons.mkdir()
    videos.mkdir()
    for name in names:
        action = int(name[-3:])
        frames = [bodies(1 + (action > 49), rng) for _ in range(10 + action % 7)]
        text = skeleton_text(frames)
        (skeletons / f"{name}.skeleton").write_text(text, encoding="ascii", newline="")
        write_video(videos / f"{name}_rgb.avi", rising(12))


def write_egogesture(folder: Path, lines: Sequence[Sequence[str]], classes: int = 83) -> None:
    """Write the lists of train, validation and test, and frames for what they name."""
    names = "\n".join(f"{number} Gesture_{number}" for number in range(1, classes + 1))
    (folder / CLASSES).write_text(names)
    for file, part in zip(LISTS, lines, strict=True):
        (folder / file).write_text("\n".join(part))
        for line in part:
            colour, label, *ends = line.split()
            first, last = (int(float(end)) for end in ends)
            for number in range(first, last + 1):
                grey = np.full((24, 32), (2 * number + int(label)) % 256, np.uint8)
                depth = folder / colour.replace("Color/rgb", "Depth/depth")
                for kept, picture in ((folder / colour, np.stack([grey] * 3, 2)), (depth, grey)):
                    kept.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(picture).save(kept / f"{number:06}.jpg")


def write_all_of_ntu(folder: Path) -> None:
    """Write a sample of each action for train, and of every sixth for validation and test."""
    names = [f"S001C001P{p:03}R001A{a:03}" for p in (1, 2, 40) for a in range(1, 61)]
    write_ntu(folder, [name for name in names if "P001" in name or int(name[-3:]) % 6 == 0])


def write_all_of_egogesture(folder: Path) -> None:
    """Write a gesture of each of twelve classes for each part."""
    lines = [
        [f"Subject0{part}/Scene1/Color/rgb1 {k} {2 * k} {2 * k + 1}" for k in range(1, 13)]
        for part in (1, 2, 3)
    ]
    write_egogesture(folder, lines, classes=12)


def make_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the networks of the papers be a few channels wide: in full they are slow on a CPU."""
    for network, widths in _NARROW.items():
        for name, width in widths.items():
            monkeypatch.setitem(network.__init__.__kwdefaults__, name, width)
