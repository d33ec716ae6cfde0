"""MM-IMDB: 25,959 films, each with a poster, a plot and some of 23 genres.

Source: J. Arevalo et al., "Gated Multimodal Units for Information Fusion", ICLR 2017 workshop,
arXiv 1702.01992. It is published as ``multimodal_imdb.hdf5`` and as the archive ``mmimdb.tar.gz``,
with ``split.json`` and, in the folder ``dataset``, a ``.jpeg`` and a ``.json`` for each film.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bmnas.machine.errors import UserError, few, one_line
from bmnas.machine.files import read_json
from bmnas.machine.schema import Problem, SchemaError, read, received
from bmnas.tasks.decoded import DecodedRows
from bmnas.tasks.hdf5 import HDF5Rows, read_attribute, read_dataset
from bmnas.tasks.kinds import Array
from bmnas.tasks.left_out import LEFT_OUT, left_out
from bmnas.tasks.task import Modality, Task
from bmnas.tasks.text_arrays import reading

#: The genres in the order of the HDF5 file, the most frequent first. News, Adult, Talk-Show and
#: Reality-TV, which the archive has too, are left out, as in the papers.
GENRES = (
    "Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure", "Horror",
    "Documentary", "Mystery", "Sci-Fi", "Fantasy", "Family", "Biography", "War", "History", "Music",
    "Animation", "Musical", "Western", "Sport", "Short", "Film-Noir",
)  # fmt: skip

_FILE, _SPLIT = "multimodal_imdb.hdf5", "split.json"
#: What was taken off the colours of the stored posters, blue first: VGG's means in Caffe.
_MEANS = np.array([103.939, 116.779, 123.68], np.float32)[:, None, None]
_WIDTH, _HEIGHT = 160, 256  # of the stored posters
_FORMATS = "JPEG", "PNG", "GIF"  # whatever the name of a file says
#: Of a plot; 19 in 20 are shorter. The longest has 1,887, and an array of texts is as wide as it.
_MOST_WORDS = 300


@dataclass(frozen=True)
class _Split:
    """What ``split.json`` holds: the IMDb numbers of each part; ``absent`` are left out of them."""

    train: tuple[str, ...]
    dev: tuple[str, ...]
    test: tuple[str, ...]
    absent: tuple[str, ...] = ()

    @property
    def films(self) -> list[str]:
        """All films, those of train first."""
        return [*self.train, *self.dev, *self.test]

    @property
    def part(self) -> Array:
        """The part of each of ``films``, see ``PARTS``."""
        return np.repeat(np.arange(3), [len(self.train), len(self.dev), len(self.test)])


@dataclass(frozen=True)
class _Film:
    """What of a film's ``.json`` counts; there are several plots by different people."""

    genres: tuple[str, ...]
    plot: tuple[str, ...]


def load_mmimdb(folder: Path) -> Task:
    """Load posters (256, 160, 3) uint8 and the mean word2vec of plots (300) from the HDF5 file.

    That is what the papers use, with the networks VGG-19 and Maxout MLP. ``folder`` holds
    ``multimodal_imdb.hdf5`` and ``split.json``; a poster is read when it is asked for. Raises
    UserError, with file and place, for what is missing or damaged.
    """
    stored = {"images": _posters(folder / _FILE), "features": _word2vec(folder / _FILE)}
    return replace(_of_hdf5("mmimdb", folder, stored), preset="mmimdb-1")


def load_mmimdb_words(folder: Path) -> Task:
    """Load posters as ``load_mmimdb`` does, and plots as the numbers of their first 300 words.

    The numbers are those of the data set ``sequences`` and 1 more; 0 fills up short plots.
    """
    path = folder / _FILE
    sequences = read_dataset(path, "sequences")
    words = np.zeros((len(sequences), _MOST_WORDS), np.int32)
    for number, sequence in enumerate(map(np.asarray, sequences)):
        if sequence.ndim != 1 or sequence.dtype.kind not in "iu":
            place = f"{path}: sequences: row {number}"
            raise UserError(f"{place}: {received(sequence.tolist(), 'numbers of words')}")
        words[number, : len(sequence)] = sequence[:_MOST_WORDS] + 1
    stored = {"images": _posters(path), "sequences": Modality("text", "tokens", words)}
    return _of_hdf5("mmimdb-words", folder, stored)


def load_mmimdb_vgg(folder: Path) -> Task:
    """Load VGG-16's activations for posters (4096) and the mean word2vec of plots (300).

    As ``load_mmimdb``, from the data set ``vgg_features``: a search without a network for images.
    """
    path = folder / _FILE
    image = Modality("image", "vector", HDF5Rows(path, "vgg_features"))
    return _of_hdf5("mmimdb-vgg", folder, {"vgg_features": image, "features": _word2vec(path)})


def load_mmimdb_raw(folder: Path) -> Task:
    """Load posters (256, 160, 3) uint8 and plots as text, at most 300 words, from the archive.

    ``folder`` holds ``split.json`` and the folder ``dataset``. Of several plots the longest counts.
    Posters are cut to the form of the HDF5 file's, and decoded when they are asked for. Raises
    UserError, with file and place, for what is missing or damaged.
    """
    split, dataset = _read_split(folder), folder / "dataset"
    if not dataset.is_dir():
        raise UserError(f"{dataset}: no such folder, expected a .jpeg and a .json for each film")
    there = set(os.listdir(dataset))
    files = [f"{film}.{kind}" for film in split.films for kind in ("jpeg", "json")]
    _lacks(dataset, [file for file in files if file not in there], len(files), "files")
    genres, plots = _read_films(dataset, split.films)
    posters = DecodedRows(
        [dataset / f"{film}.jpeg" for film in split.films],
        _decoded,
        (_HEIGHT, _WIDTH, 3),
        np.uint8,
        folder=dataset,
        files=lambda path: [path],
        recipe="poster",
    )
    image, text = Modality("image", "image", posters), Modality("text", "text", plots)
    return _task("mmimdb-raw", split, (image, text), genres, GENRES)


def _posters(path: Path) -> Modality:
    posters = HDF5Rows(path, "images", _pixels)
    shape, dtype = posters.stored_shape, posters.stored_dtype
    if shape[1:2] != (3,) or len(shape) != 4 or dtype.kind not in "if":
        raise UserError(
            f"{path}: images: received {dtype} of shape {shape}, expected int32 or float32 of "
            "shape (films, 3, height, width), the means of VGG taken off"
        )
    return Modality("image", "image", posters, backbone="vgg19")


def _word2vec(path: Path) -> Modality:
    return Modality("text", "vector", read_dataset(path, "features"), backbone="maxout")


def _of_hdf5(name: str, folder: Path, stored: Mapping[str, Modality]) -> Task:
    """Return the task of the modalities ``stored``, each under the name of its data set."""
    path, split = folder / _FILE, _read_split(folder)
    ids, genres = read_dataset(path, "imdb_ids", text=True), read_dataset(path, "genres")
    lengths = {dataset: len(modality.data) for dataset, modality in stored.items()}
    for dataset, length in {**lengths, "genres": len(genres)}.items():
        if length != len(ids):
            raise UserError(
                f"{path}: {dataset} has {length} rows, expected {len(ids)}, one for each of "
                "imdb_ids"
            )
    row_of = {film: row for row, film in enumerate(ids.tolist())}
    films = split.films
    _lacks(f"{path}: imdb_ids", [film for film in films if film not in row_of], len(films), "films")
    rows = np.array([row_of[film] for film in films])
    modalities = tuple(replace(modality, index=rows) for modality in stored.values())
    return _task(name, split, modalities, genres[rows], _genres(path, genres.shape[1:]))


def _task(
    name: str,
    split: _Split,
    modalities: tuple[Modality, ...],
    labels: Array,
    genres: tuple[str, ...],
) -> Task:
    return Task(
        name=name,
        kind="multilabel",
        modalities=modalities,
        labels=labels,
        part=split.part,
        class_names=genres,
        licence="not stated by its authors; posters and plots belong to others",
        names=tuple(split.films),
        left_out=split.absent,
    )


def _read_split(folder: Path) -> _Split:
    path = folder / _SPLIT
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, expected the official split, which mmimdb.tar.gz holds"
        )
    split = read(_Split, read_json(path), str(path), ignore_unknown=True)
    films, count = np.unique(split.films, return_counts=True)
    if (count > 1).any():
        raise UserError(f"{path}: film {films[count > 1][0]} stands there twice, expected once")
    absent = left_out(folder)
    train, dev, test = (
        tuple(film for film in part if film not in absent)
        for part in (split.train, split.dev, split.test)
    )
    return _Split(train, dev, test, tuple(film for film in split.films if film in absent))


def _read_films(dataset: Path, films: list[str]) -> tuple[Array, Array]:
    """Return genres (films, 23) and plots (films,); raises SchemaError with every broken file."""
    genres, plots, problems = [], [], []
    for film in films:
        path = dataset / f"{film}.json"
        try:
            found = read(_Film, read_json(path), str(path), ignore_unknown=True)
            words = max(found.plot, key=len, default="").split()
            if not words:
                raise UserError(f"{path}: plot: received none, expected some words")
        except UserError as error:
            problems.append(Problem((), str(error)))
            continue
        genres.append([genre in found.genres for genre in GENRES])
        plots.append(" ".join(words[:_MOST_WORDS]))
    if problems:
        raise SchemaError(problems)
    return np.array(genres, np.int32), np.array(plots)


def _lacks(place: object, missing: list[str], count: int, what: str) -> None:
    if missing:
        raise UserError(
            f"{place}: received {count - len(missing)} of the {count} {what} of the split, "
            f"{few(missing)} missing: get them, or name the films in {LEFT_OUT}"
        )


def _genres(path: Path, columns: tuple[int, ...]) -> tuple[str, ...]:
    """Return what the columns of the data set ``genres`` mean."""
    place, told = f"{path}: genres: target_names", read_attribute(path, "genres", "target_names")
    with reading(place):
        names = json.loads(told) if isinstance(told, str | bytes) else told
    count = len(GENRES)
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(GENRES):
        raise UserError(f"{place}: {received(names, f'a list of the {count} genres of the task')}")
    if columns != (count,):
        raise UserError(f"{path}: genres: received columns {columns}, expected ({count},)")
    return tuple(names)


def _pixels(stored: Array) -> Array:
    """Return a stored poster (3, H, W) as RGB (H, W, 3) uint8, at most 1 off where it was cut.

    The authors took the means off and cut the fractions.
    """
    colours = np.clip(np.rint(stored + _MEANS), 0, 255).astype(np.uint8)
    return colours[::-1].transpose(1, 2, 0)


def _decoded(path: Path) -> Array:
    """Return the middle of a poster as RGB (256, 160, 3) uint8.

    As large a part as has that form, made smaller. Raises UserError for a damaged file.
    """
    from PIL import Image, ImageOps

    size = _WIDTH, _HEIGHT
    try:
        with reading(str(path)), Image.open(path, formats=_FORMATS) as poster:
            poster.draft("RGB", (2 * _WIDTH, 2 * _HEIGHT))
            return np.asarray(ImageOps.fit(poster.convert("RGB"), size, Image.Resampling.LANCZOS))
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {one_line(error)}") from error
