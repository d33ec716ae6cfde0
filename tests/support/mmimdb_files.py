"""Small files in the exact formats of MM-IMDB: the names, types and attributes published."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
from PIL import Image

from bmnas.tasks.mmimdb import GENRES

COUNTS = {"train": 46, "dev": 23, "test": 23}
FILMS = [f"{7 * number:07d}" for number in range(1, 1 + sum(COUNTS.values()))]
MEANS = np.array([103.939, 116.779, 123.68])


def write_split(folder: Path) -> dict[str, list[str]]:
    rest, split = list(FILMS), {}
    for part, count in COUNTS.items():
        split[part], rest = rest[:count], rest[count:]
    (folder / "split.json").write_text(json.dumps(split, indent=4))
    return split


def genres_of(number: int) -> list[str]:
    """The genres of film ``number``: every genre is in every part."""
    return [GENRES[number % 23], GENRES[(number * number + 5) % 23]]


def poster(number: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """RGB (height, width, 3): the first genre is its blue, and red falls from top to bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(200, 20, height)[:, None]
    pixels[..., 1] = 128
    pixels[..., 2] = 11 * (number % 23)
    return pixels


def write_hdf5(folder: Path, height: int = 48, width: int = 32) -> Path:
    """Write ``multimodal_imdb.hdf5`` and ``split.json``, the films in another order than there."""
    write_split(folder)
    rng = np.random.default_rng(0)
    films = rng.permutation(len(FILMS))
    genres = np.array([[genre in genres_of(n) for genre in GENRES] for n in films], np.int32)
    says = rng.normal(size=(23, 300))
    features = genres @ says + rng.normal(size=(len(films), 300))
    # Means off and fractions cut, as the authors did it; blue comes first.
    pixels = np.stack([poster(int(n), height, width) for n in films])[..., ::-1] - MEANS
    path = folder / "multimodal_imdb.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features.astype(np.float32))
        file.create_dataset("vgg_features", data=np.maximum(features[:, :64], 0).astype(np.float32))
        file.create_dataset("three_grams", data=np.zeros((len(films), 5), np.float32))
        file.create_dataset("word_grams", data=np.zeros((len(films), 5), np.float32))
        file.create_dataset("images", data=pixels.transpose(0, 3, 1, 2).astype(np.int32))
        words = h5py.vlen_dtype(np.dtype("int32"))
        sequences = file.create_dataset("sequences", (len(films),), words)
        for row, n in enumerate(films):
            sequences[row] = np.array([n, 0, *[int(n) % 23 + 100] * (400 if n == 3 else 2)])
        stored = file.create_dataset("genres", data=genres)
        stored.attrs["target_names"] = json.dumps(GENRES)
        stored.dims[0].label, stored.dims[1].label = "batch", "classes"
        file.create_dataset("imdb_ids", data=np.array([FILMS[n] for n in films], "S7"))
    return path


def write_archive(folder: Path) -> Path:
    """Write ``split.json`` and ``dataset`` as they lie in ``mmimdb.tar.gz``."""
    write_split(folder)
    dataset = folder / "dataset"
    dataset.mkdir()
    for number, film in enumerate(FILMS):
        genres = genres_of(number)
        plots = ["Short.", f"A film about {genres[0]} and {genres[1]}::Anonymous"]
        about = {"title": "A", "year": 1999, "genres": [*genres, "News"], "plot": plots}
        (dataset / f"{film}.json").write_text(json.dumps(about, indent=4))
        Image.fromarray(poster(number, 300, 200)).save(dataset / f"{film}.jpeg", quality=95)
    return dataset
