"""A table with pictures, sounds, texts and numbers, as people have them: of every size and form."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CLASSES = "cat", "dog", "owl"
#: Height and width of pictures, and their modes.
SIZES = (40, 60), (61, 33), (20, 20), (90, 31)
MODES = "RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "LA"
RATES = 8000, 16000, 22050, 11025


def write_picture(path: Path, level: int, size: tuple[int, int], mode: str = "RGB") -> None:
    """Write a picture of one grey ``level`` with some noise."""
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(level + size[0]).integers(-8, 9, size=size)
    grey = np.clip(level + noise, 0, 255).astype(np.uint8)
    if mode == "I;16":
        image.fromarray(grey.astype(np.uint16) * 257).save(path)
        return
    image.fromarray(grey).convert(mode).save(path)


def write_sound(path: Path, tone: float, rate: int, channels: int, seconds: float) -> None:
    """Write a tone of ``tone`` Hz."""
    soundfile = pytest.importorskip("soundfile")
    time = np.arange(round(rate * seconds)) / rate
    wave = 0.4 * np.sin(2 * np.pi * tone * time)
    soundfile.write(path, np.stack([wave] * channels, 1), rate)


def media_table(folder: Path, count: int = 48, seed: int = 0) -> list[dict[str, Any]]:
    """Write ``count`` pictures and sounds below ``folder``; return the rows of a table of them.

    Each modality tells something of the class: grey level, tone, a word, a number.
    """
    rng = np.random.default_rng(seed)
    for name in ("photos", "sounds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        label = number % len(CLASSES)
        mode = MODES[number % len(MODES)]
        ending = {"CMYK": ".jpg", "L": ".jpg"}.get(mode, ".png")
        photo = f"photos/{number:03}{ending}"
        write_picture(folder / photo, 40 + 80 * label, SIZES[number % len(SIZES)], mode)
        sound = f"sounds/{number:03}.{'flac' if number % 5 == 0 else 'wav'}"
        rate = RATES[number % len(RATES)]
        write_sound(
            folder / sound, 300 + 600 * label, rate, 1 + number % 2, 0.2 + 0.05 * (number % 4)
        )
        words = [f"w{rng.integers(9)}" for _ in range(3)]
        rows.append(
            {
                "photo": photo,
                "sound": sound,
                "title": " ".join([*words, CLASSES[label]]),
                "note": " ".join(words),
                "age": "" if number % 7 == 0 else int(rng.integers(1, 15)),
                "weight": f"{rng.normal(3 * label, 1):.2f}",
                "height": f"{rng.normal():.3f}",
                "visits": int(rng.integers(0, 5)),
                "city": ("Rome", "Oslo")[int(rng.integers(2))],
                "patient": f"p{number // 2}",
                "label": CLASSES[label],
                "part": ("train", "train", "validation", "test")[number // 3 % 4],
            }
        )
    return rows


def write_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    """Write ``rows`` with a header line."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


#: Its last modality may get a line more.
TASK_WITH_GAPS = """
name = "pets"
kind = "multiclass"
data = "pets.csv"
labels = "label"
split = "part"
[modality.photo]
array = "photo"
type = "image"
size = 16
missing = true
[modality.title]
array = "title"
type = "text"
missing = true
[modality.facts]
columns = ["age", "weight"]
type = "vector"
"""

MEDIA_TASK = """
name = "pets"
kind = "multiclass"
data = "pets.csv"
labels = "label"
split = "part"

[modality.photo]
array = "photo"
type = "image"
size = [24, 32]

[modality.sound]
array = "sound"
type = "waveform"
sample_rate = 8000
seconds = 0.3

[modality.title]
array = "title"
type = "text"

[modality.facts]
columns = ["age", "weight", "height", "visits", "city"]
type = "vector"
"""
