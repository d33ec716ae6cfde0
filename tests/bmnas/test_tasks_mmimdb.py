from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from bmnas_serve.manifest import load, verify_files
from command_line import bmnas_command, write_tiny_preset
from mmimdb_files import COUNTS, FILMS, genres_of, poster, write_archive, write_hdf5
from PIL import Image

from bmnas.backbones.vgg import VGG19Backbone
from bmnas.features.cache import rows_hash
from bmnas.machine.costs import count_parameters
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import load_preset
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import known_genotype
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.tasks import Rows, check_task, check_test, load_task, reload_task
from bmnas.tasks.mmimdb import GENRES
from bmnas.tasks.task import PARTS

EVERY = np.arange(len(FILMS))
FOUND = Path(__file__).parents[2] / "examples" / "mmimdb-1.json"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hdf5")
    write_hdf5(folder)
    return folder


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_archive(folder)
    return folder


def error_of(name: str, folder: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        load_task(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_films_stand_in_the_order_of_the_split_with_their_genres(stored: Path) -> None:
    task = load_task("mmimdb", stored)
    check_task(task)
    check_test(task)
    assert [len(task.samples(part)) for part in PARTS] == list(COUNTS.values())
    assert (task.kind, task.class_names, task.preset) == ("multilabel", GENRES, "mmimdb-1")
    found = [{GENRES[k] for k in np.flatnonzero(row)} for row in task.labels]
    assert found == [set(genres_of(n)) for n in EVERY]
    assert reload_task(json.loads(json.dumps(task.source))).source == task.source
    image, text = task.modalities
    assert (image.type, image.data.shape, image.data.dtype) == ("image", (92, 48, 32, 3), np.uint8)
    assert (text.type, text.data.shape, text.data.dtype) == ("vector", (92, 300), np.float32)
    with h5py.File(stored / "multimodal_imdb.hdf5") as file:
        ids = file["imdb_ids"].asstr()[:].tolist()
        expected = file["features"][ids.index(FILMS[5])]
    assert np.array_equal(text.data[text.rows_of(EVERY)][5], expected)


def test_posters_are_rgb_again(stored: Path) -> None:
    image = load_task("mmimdb", stored).modality("image")
    chosen = np.array([50, 3, 3, 91])
    found = image.data[image.rows_of(chosen)].astype(int)
    expected = np.stack([poster(int(n), 48, 32) for n in chosen])
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.4


def test_the_official_size_and_the_stored_activations(tmp_path: Path) -> None:
    write_hdf5(tmp_path, 256, 160)
    assert load_task("mmimdb", tmp_path).modality("image").data.shape[1:] == (256, 160, 3)
    task = load_task("mmimdb-vgg", tmp_path)
    check_task(task)
    image = task.modality("image")
    assert isinstance(image.data, Rows)
    assert (image.type, image.data.shape, image.data.dtype) == ("vector", (92, 64), np.float32)
    with h5py.File(tmp_path / "multimodal_imdb.hdf5") as file:
        assert np.array_equal(image.data[np.array([7, 0])], file["vgg_features"][:][[7, 0]])


def test_plots_as_numbers_of_words(stored: Path) -> None:
    task = load_task("mmimdb-words", stored)
    check_task(task)
    text = task.modality("text")
    assert (text.type, text.data.shape) == ("tokens", (92, 300))
    short, long = text.data[text.rows_of(np.array([7, 3]))]
    assert short[:6].tolist() == [8, 1, 108, 108, 0, 0]
    assert long.tolist() == [4, 1, *[104] * 298]
    assert not short[6:].any()


def test_the_archive_has_the_same_films_with_plots(archived: Path, stored: Path) -> None:
    task, other = load_task("mmimdb-raw", archived), load_task("mmimdb", stored)
    check_task(task)
    check_test(task)
    assert np.array_equal(task.labels, other.labels)
    assert np.array_equal(task.part, other.part)
    assert task.class_names == other.class_names
    image, text = task.modalities
    assert image.data.shape == (92, 256, 160, 3)
    first, second = genres_of(4)
    assert text.data[4] == f"A film about {first} and {second}::Anonymous"
    # 200 x 300 pixels are cut to 187.5 x 300 and made smaller.
    (found,) = image.data[np.array([4])].astype(int)
    assert np.abs(found - poster(4, 256, 160)).mean() < 4


def test_long_plots_are_cut(archived: Path, tmp_path: Path) -> None:
    shutil.copytree(archived, tmp_path, dirs_exist_ok=True)
    film = tmp_path / "dataset" / f"{FILMS[0]}.json"
    film.write_text(json.dumps({"genres": ["Drama"], "plot": ["word " * 2000]}))
    text = load_task("mmimdb-raw", tmp_path).modality("text").data
    assert text[0] == " ".join(["word"] * 300)


def test_the_digest_says_which_rows_and_what_is_in_them(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    data, rows = load_task("mmimdb", stored).modality("image").data, np.arange(60)
    copied = load_task("mmimdb", tmp_path).modality("image").data
    assert rows_hash(data, rows) == rows_hash(copied, rows)
    assert rows_hash(data, rows) != rows_hash(data, rows + 1)
    with h5py.File(tmp_path / "multimodal_imdb.hdf5", "a") as file:
        file["images"][10] += 3
    assert rows_hash(data, rows) != rows_hash(copied, rows)
    assert rows_hash(data, rows[:5]) == rows_hash(copied, rows[:5])


def change(name: str, value: Any) -> Callable[[Path], None]:
    """Return what puts another data set ``name`` in place of the file's."""

    def changed(folder: Path) -> None:
        with h5py.File(folder / "multimodal_imdb.hdf5", "a") as file:
            attributes = dict(file[name].attrs)
            del file[name]
            if value is not None:
                file.create_dataset(name, data=value).attrs.update(attributes)

    return changed


def name_columns(value: str | None) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        with h5py.File(folder / "multimodal_imdb.hdf5", "a") as file:
            del file["genres"].attrs["target_names"]
            if value is not None:
                file["genres"].attrs["target_names"] = value

    return changed


def truncate(name: str, length: int) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:length])

    return changed


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


IDS = np.array([*FILMS[:-2], "9999998", "9999999"], "S7")
BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (remove("multimodal_imdb.hdf5"), "{hdf5}: no such file"),
    (truncate("multimodal_imdb.hdf5", 60_000), "{hdf5}: cannot be read, perhaps truncated: "),
    (write("multimodal_imdb.hdf5", "<html>"), "{hdf5}: cannot be read, perhaps truncated: "),
    (
        change("images", None),
        "{hdf5}: received features, genres, imdb_ids, sequences, three_grams, vgg_features, "
        "word_grams, expected a data set 'images' with rows",
    ),
    (change("features", np.float32(1)), "expected a data set 'features' with rows"),
    (
        change("images", np.zeros((92, 32, 20), np.int32)),
        "{hdf5}: images: received int32 of shape (92, 32, 20), expected int32 or float32 of shape "
        "(films, 3, height, width)",
    ),
    (change("images", np.zeros((92, 3, 4, 4), np.uint8)), "images: received uint8 of shape"),
    (
        change("images", np.zeros((91, 3, 4, 4), np.int32)),
        "{hdf5}: images has 91 rows, expected 92, one for each of imdb_ids",
    ),
    (change("features", np.zeros((90, 300))), "{hdf5}: features has 90 rows, expected 92"),
    (change("genres", np.zeros((9, 23))), "{hdf5}: genres has 9 rows, expected 92"),
    (
        change("genres", np.zeros((92, 22), np.int32)),
        "{hdf5}: genres: received columns (22,), expected (23,)",
    ),
    (name_columns(None), "{hdf5}: genres: target_names: received None, expected a list of the 23"),
    (name_columns('["Drama"]'), "{hdf5}: genres: target_names: received ['Drama'], expected a"),
    (name_columns("{"), "{hdf5}: genres: target_names: cannot be read"),
    (
        change("imdb_ids", IDS),
        "{hdf5}: imdb_ids: received 90 of the 92 films of the split, 0000637, 0000644 missing",
    ),
    (change("imdb_ids", np.arange(92)), "{hdf5}: imdb_ids: cannot be read"),
    (remove("split.json"), "{split}: no such file, expected the official split, which mmimdb.tar"),
    (write("split.json", '{"train": ["1"'), "{split}: "),
    (write("split.json", '{"train": []}'), "{split}: expected the key 'dev', which is missing"),
    (
        write("split.json", '{"train": ["0000007", "0000007"], "dev": [], "test": []}'),
        "{split}: film 0000007 stands there twice, expected once",
    ),
]


@pytest.mark.parametrize(("damage", "expected"), BROKEN)
def test_a_broken_hdf5_file_is_told_with_its_place(
    stored: Path, tmp_path: Path, damage: Callable[[Path], object], expected: str
) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    places = {"hdf5": tmp_path / "multimodal_imdb.hdf5", "split": tmp_path / "split.json"}
    for name, place in places.items():
        expected = expected.replace(f"{{{name}}}", str(place))
    assert expected in error_of("mmimdb", tmp_path)


def test_sequences_that_are_none_are_told(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    change("sequences", np.arange(92))(tmp_path)
    path = tmp_path / "multimodal_imdb.hdf5"
    assert error_of("mmimdb-words", tmp_path) == (
        f"{path}: sequences: row 0: received 0, expected numbers of words"
    )


def test_a_row_that_cannot_be_read_is_told(stored: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "multimodal_imdb.hdf5"
    with h5py.File(path, "a") as file:
        pixels = file["images"][:]
        del file["images"]
        kept = file.create_dataset(
            "images", data=pixels, chunks=(1, 3, 48, 32), compression="gzip", fletcher32=True
        )
        place = kept.id.get_chunk_info(9)
    data = bytearray(path.read_bytes())
    middle = place.byte_offset + place.size // 2
    data[middle : middle + 8] = bytes(8)
    path.write_bytes(data)
    rows = load_task("mmimdb", tmp_path).modality("image").data
    assert rows[np.array([8])].shape == (1, 48, 32, 3)
    with pytest.raises(UserError) as caught:
        rows[np.array([8, 9])]
    assert str(caught.value).startswith(f"{path}: images: row 9: cannot be read, perhaps truncated")


POSTER, ABOUT = f"dataset/{FILMS[3]}.jpeg", f"dataset/{FILMS[3]}.json"
BROKEN_FILMS: list[tuple[Callable[[Path], object], str]] = [
    (
        remove(POSTER),
        "dataset: received 183 of the 184 files of the split, 0000028.jpeg missing",
    ),
    (lambda folder: shutil.rmtree(folder / "dataset"), "dataset: no such folder, expected a .jpeg"),
    (truncate(ABOUT, 30), "0000028.json: "),
    (write(ABOUT, '{"genres": ["Drama"]}'), "0000028.json: expected the key 'plot', which is miss"),
    (
        write(ABOUT, '{"genres": "Drama", "plot": ["a"]}'),
        "genres: received 'Drama', expected",
    ),
    (write(ABOUT, '{"genres": [], "plot": [" "]}'), "0000028.json: plot: received none, expected"),
]


@pytest.mark.parametrize(("damage", "expected"), BROKEN_FILMS)
def test_a_broken_archive_is_told_with_its_place(
    archived: Path, tmp_path: Path, damage: Callable[[Path], object], expected: str
) -> None:
    shutil.copytree(archived, tmp_path, dirs_exist_ok=True)
    damage(tmp_path)
    message = error_of("mmimdb-raw", tmp_path)
    assert message.startswith(str(tmp_path))
    assert expected in message


def test_a_broken_poster_is_told(
    archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(archived, tmp_path, dirs_exist_ok=True)
    rows = load_task("mmimdb-raw", tmp_path).modality("image").data
    place = f"{tmp_path / POSTER}: "
    for damage in (truncate(POSTER, 900), write(POSTER, "<html>")):
        damage(tmp_path)
        with pytest.raises(UserError) as caught:
            rows[np.array([2, 3])]
        assert str(caught.value).startswith(f"{place}cannot be read, perhaps truncated")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="exceeds limit"):
        rows[np.array([2])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmimdb-words", "mmimdb-vgg", "mmimdb-raw"])
def test_from_the_files_to_a_bundle(
    name: str, stored: Path, archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bmnas.tasks.mmimdb._HEIGHT", 48)
    monkeypatch.setattr("bmnas.tasks.mmimdb._WIDTH", 32)
    # VGG-19 in full is slow on a CPU, and a joint training of it tests nothing more.
    monkeypatch.setitem(VGG19Backbone.__init__.__kwdefaults__, "width", 4)
    folder, run = archived if name == "mmimdb-raw" else stored, tmp_path / "run"
    searched = ["--task", name, "--data", folder, "--preset", write_tiny_preset(tmp_path)]
    # The later commands find task and data by the run's record.
    for words in (
        ["search", *searched, "--run", run, "--device", "cpu"],
        ["train", "--genotype", run / "genotype.json", "--device", "cpu"],
        ["export", "--genotype", run / "genotype.json", "--out", tmp_path / "bundle"],
    ):
        done = bmnas_command(*words)
        assert done.status == 0, (words, done.err)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["metric"] == "weighted_f1"
    assert metrics["test"]["samples"] == COUNTS["test"]
    assert 0 <= metrics["test"]["macro_f1"] <= 1
    manifest = load(tmp_path / "bundle")
    verify_files(manifest, tmp_path / "bundle")
    assert {spec.name for spec in manifest.inputs} <= {"image", "text"}
    assert tuple(manifest.class_names) == GENRES


def test_the_papers_network_has_the_size_that_its_layers_add_up_to() -> None:
    genotype, settings = Genotype.load(FOUND), load_preset("mmimdb-1").search
    c, length = settings.channels, settings.length
    expected = known_genotype("mmimdb", ("image.3", "text.1"), channels=c, length=length)
    assert dataclasses.replace(genotype, provenance={}) == expected
    network = FusionNetwork(genotype, {"image.3": 512, "text.1": 64}, classes=23, dropout=0.1)
    reshape = (512 + 64) * c + 2 * 3 * c  # bias and BatchNorm of both
    concat_fc, linear_glu = 2 * c * c + 3 * c, 2 * (c * c + 3 * c)
    norms = 2 * 2 * c * length + 2 * 2 * c * length  # of two Cells, of the head
    fusion = count_parameters(network) - count_parameters(network.classifier)
    assert fusion == reshape + concat_fc + linear_glu + norms == 285_504


@pytest.mark.slow
def test_the_papers_network_is_trained(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VGG19Backbone.__init__.__kwdefaults__, "width", 4)
    words = ["train", "--genotype", FOUND, "--run", tmp_path / "run", "--task", "mmimdb"]
    preset = write_tiny_preset(tmp_path)
    done = bmnas_command(*words, "--data", stored, "--preset", preset, "--device", "cpu")
    assert done.status == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["parameters"]["classifier"] == 2 * 192 * 16 * 23 + 23


def test_weights_lie_beside_the_files(stored: Path, archived: Path, tmp_path: Path) -> None:
    shutil.copytree(stored, tmp_path, dirs_exist_ok=True)
    shutil.copytree(archived / "dataset", tmp_path / "dataset")
    assert [m.weights for m in load_task("mmimdb", tmp_path).modalities] == [None, None]
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "image.pth").touch()
    found = {
        name: [(m.backbone, m.weights) for m in load_task(name, tmp_path).modalities]
        for name in ("mmimdb", "mmimdb-words", "mmimdb-vgg", "mmimdb-raw")
    }
    assert found == {
        "mmimdb": [("vgg19", weights / "image.pth"), ("maxout", None)],
        "mmimdb-words": [("vgg19", weights / "image.pth"), (None, None)],
        "mmimdb-vgg": [(None, None), ("maxout", None)],
        "mmimdb-raw": [(None, None), (None, None)],
    }


def test_a_folder_must_be_given(tmp_path: Path) -> None:
    files = "the folder with multimodal_imdb.hdf5 and split.json"
    assert error_of("mmimdb", None) == f"task mmimdb: give --data DIR, {files}"
    missing = tmp_path / "none"
    assert error_of("mmimdb", missing) == (
        f"task mmimdb: received --data {missing}, expected {files}"
    )
