from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from media_files import MEDIA_TASK, MODES, media_table, write_picture, write_sound, write_table

from bmnas.machine.errors import UserError
from bmnas.tasks import Task, check_task, load_task_file, notes
from bmnas.tasks.media import picture_facts, read_picture, read_sound, read_text, sound_facts
from bmnas.tasks.sources import FileRows, Source
from bmnas.tasks.survey import duplicates, survey

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def load(folder: Path, *changes: tuple[str, str], table: object = None) -> Task:
    text = MEDIA_TASK
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    rows = media_table(folder) if table is None else table
    write_table(folder / "pets.csv", rows)  # type: ignore[arg-type]
    (folder / "task.toml").write_text(text, encoding="utf-8")
    return load_task_file(folder / "task.toml")


def test_files_become_rows_of_one_shape(tmp_path: Path) -> None:
    task = load(tmp_path)
    check_task(task)
    assert [list(notes(task, "validation")), task.left_out] == [[], ()]
    photo, sound, title, facts = task.modalities
    assert (photo.data.shape, photo.data.dtype) == ((48, 24, 32, 3), np.uint8)
    assert (sound.data.shape, sound.data.dtype) == ((48, 2400), np.float32)
    assert (title.data.shape, title.data.dtype.kind) == ((48,), "U")
    # Age has gaps, so that it makes two numbers; the two cities make two.
    assert (facts.data.shape, facts.data.dtype) == ((48, 7), np.float32)
    every = np.arange(48)
    # Whatever size and mode: the grey level is that of the class.
    levels = photo.data[every].reshape(48, -1).mean(1)
    one_bit = np.array([MODES[n % len(MODES)] == "1" for n in every])
    assert np.abs(levels - (40 + 80 * (every % 3)))[~one_bit].max() < 12
    # Whatever rate and channels: the tone is that of the class.
    spectrum = np.abs(np.fft.rfft(sound.data[every][:, :1600]))
    assert np.abs(spectrum.argmax(1) * 5 - (300 + 600 * (every % 3))).max() <= 5


def test_a_vector_is_scaled_by_train(tmp_path: Path) -> None:
    task = load(tmp_path)
    facts = task.modality("facts").data
    train = facts[task.samples("train")]
    gaps = np.arange(48) % 7 == 0
    assert np.array_equal(facts[:, 1] == 1, gaps)
    assert np.all(facts[gaps, 0] == 0)
    for column in (2, 3, 4):
        assert abs(train[:, column].mean()) < 1e-6
        assert abs(train[:, column].std() - 1) < 1e-6
    assert np.all(facts[:, 5] + facts[:, 6] == 1)
    source = task.modality("facts").source
    assert source is not None
    assert Source.from_dict(source, "here").to_dict() == source


def test_a_picture_is_turned_cut_and_made_opaque(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    turned = read_picture(tmp_path / "a.png", (30, 10), grey=True)
    assert turned[:8].mean() > 250
    assert turned[12:].mean() < 5
    assert picture_facts(tmp_path / "a.png") == {"height": 30, "width": 10, "mode": "RGB"}
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png", (8, 8), grey=True).mean() < 5  # the middle is black
    squeezed = read_picture(tmp_path / "b.png", (8, 8), fit="squeeze", grey=True)
    assert 70 < squeezed.mean() < 100
    padded = read_picture(tmp_path / "b.png", (9, 9), fit="pad", grey=True)
    assert (padded[:3].max(), padded[6:].max(), int(padded[4, 0])) == (0, 0, 255)
    Image.fromarray(np.zeros((5, 5, 4), np.uint8)).save(tmp_path / "c.png")
    assert read_picture(tmp_path / "c.png", (4, 4), grey=False).min() == 255
    Image.fromarray(np.full((6, 6), 0x8080, np.uint16)).save(tmp_path / "d.png")
    assert set(read_picture(tmp_path / "d.png", (4, 4), grey=False).ravel()) == {128}


def test_a_sound_is_mixed_resampled_and_filled_up(tmp_path: Path) -> None:
    time = np.arange(4410) / 44100
    left = np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1), 44100)
    row = read_sound(tmp_path / "a.wav", 16000, 2000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(1600) / 16000)
    assert np.abs(row[100:1500] - expected[100:1500]).max() < 1e-3
    assert np.all(row[1600:] == 0)
    facts = sound_facts(tmp_path / "a.wav")
    assert (facts["rate"], facts["channels"]) == (44100, 2)
    # The beginning of a longer sound is that of the whole sound.
    shorter = read_sound(tmp_path / "a.wav", 16000, 800)
    assert np.abs(shorter - row[:800]).max() < 1e-4


def test_broken_files_are_named_all_at_once(tmp_path: Path) -> None:
    table = media_table(tmp_path)
    photos = [row["photo"] for row in table]
    (tmp_path / photos[0]).write_bytes(b"no picture")
    whole = (tmp_path / photos[1]).read_bytes()
    (tmp_path / photos[1]).write_bytes(whole[: len(whole) // 2])
    (tmp_path / photos[2]).unlink()
    (tmp_path / table[4]["sound"]).write_bytes(b"")
    task = load(tmp_path, table=table)
    with pytest.raises(UserError) as caught:
        check_task(task)
    for name in (*photos[:3], table[4]["sound"]):
        assert name in str(caught.value)
    assert "broken = 'skip'" in str(caught.value)
    found = survey(task)
    assert {modality.name: row for modality, row, _, _ in found.unusable()} == {
        "photo": 2,
        "sound": 4,
    }


@pytest.mark.parametrize(
    "split",
    [
        'split = "part"',
        "split = {train = 0.5, validation = 0.25, test = 0.25}",
        "split = {train = 0.5, validation = 0.25, test = 0.25, group = 'patient'}",
    ],
)
def test_samples_with_broken_files_are_as_if_the_table_did_not_have_them(
    tmp_path: Path, split: str
) -> None:
    table = media_table(tmp_path)
    for number, row in enumerate(table):
        (tmp_path / f"{number}.txt").write_text(row["title"], "utf-8")
        row["title"] = f"{number}.txt"
    table[3]["photo"] = table[4]["photo"] = "none.jpg"
    table[3]["label"] = table[4]["label"] = "a class of its own"
    (tmp_path / table[5]["sound"]).write_bytes(b"RIFF")
    (tmp_path / "11.txt").write_bytes(b"\xff")
    skipped = ('split = "part"', f'{split}\nbroken = "skip"')
    task = load(tmp_path, skipped, table=table)
    check_task(task)
    assert len(task.left_out) == 4
    (note,) = (one for one in notes(task, "validation") if "left out" in one)
    assert "samples that are left out: 4: " in note
    assert "none.jpg: no such file (2 samples)" in note
    for name in (table[5]["sound"], "11.txt"):
        assert name in note
    kept = [n for n in range(48) if n not in (3, 4, 5, 11)]
    expected = load(tmp_path, ('split = "part"', split), table=[table[n] for n in kept])
    assert task.class_names == expected.class_names
    assert np.array_equal(task.part, expected.part)
    assert np.array_equal(task.labels, expected.labels)
    every = np.arange(44)
    for own, other in zip(task.modalities, expected.modalities, strict=True):
        assert own.source == other.source
        found = own.data[own.rows_of(every)]
        assert np.array_equal(found, other.data[other.rows_of(every)])


def test_a_table_of_nothing_but_broken_files_is_refused(tmp_path: Path) -> None:
    table = [{**row, "photo": "none.jpg"} for row in media_table(tmp_path, 12)]
    with pytest.raises(UserError, match=r"no row is left: .*none\.jpg: no such file"):
        load(tmp_path, ('split = "part"', 'split = "part"\nbroken = "skip"'), table=table)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('type = "image"', 'type = "text"', "received type 'text', expected 'image'"),
        ('array = "sound"', 'array = "photo"', "received type 'waveform', expected 'image'"),
        ("seconds = 0.3", "", "expected sample_rate"),
        ('"city"]', '"title"]', "column 'title': received 72 different strings in train"),
        ('"city"]', '"town"]', "received array 'town'"),
        ("[24, 32]", "[24, 32, 4]", "expected a number or [height, width]"),
        ('array = "title"\n', "", "expected the key 'array', which is missing"),
        ('columns = ["age"', 'array = "age"\ncolumns = ["age"', "they make one vector"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    rows = media_table(tmp_path, 12) * 12
    table = [{**row, "title": f"title {number}"} for number, row in enumerate(rows)]
    with pytest.raises(UserError, match=r"task\.toml") as caught:
        load(tmp_path, (old, new), table=table)
    assert words in str(caught.value)


def test_numbers_that_are_none_are_listed(tmp_path: Path) -> None:
    table = media_table(tmp_path)
    table[9]["weight"] = "heavy"  # of test
    table[10]["weight"] = "1_0"
    with pytest.raises(UserError) as caught:
        load(tmp_path, table=table)
    assert "column 'weight'" in str(caught.value)
    assert "'heavy' in row 9, '1_0' in row 10 (2 such rows)" in str(caught.value)


def test_rows_without_a_path_are_listed(tmp_path: Path) -> None:
    table = media_table(tmp_path)
    table[4]["photo"] = table[7]["photo"] = " "
    with pytest.raises(UserError, match=r"rows without a path \(2\): 4, 7"):
        load(tmp_path, table=table)


def test_texts_by_path_and_a_folder(tmp_path: Path) -> None:
    table = media_table(tmp_path)
    (tmp_path / "texts").mkdir()
    for number, row in enumerate(table):
        (tmp_path / "texts" / f"{number}.txt").write_text(row["title"], encoding="utf-8")
        row["title"] = f"{number}.txt"
    named = ('array = "title"', 'array = "title"\nfolder = "texts"')
    task = load(tmp_path, named, table=table)
    assert str(task.modality("title").data[1]).endswith("dog")
    (tmp_path / "texts" / "3.txt").write_bytes(b"caf\xe9")
    (tmp_path / "texts" / "8.txt").unlink()
    with pytest.raises(UserError, match="2 unreadable files") as caught:
        load(tmp_path, named, table=table)
    assert "3.txt: byte 3 is not UTF-8" in str(caught.value)
    assert "8.txt: no such file" in str(caught.value)
    with pytest.raises(UserError, match="no such file"):
        read_text(tmp_path / "9.txt" / "x")


def test_media_that_samples_share_are_read_once(tmp_path: Path) -> None:
    table = media_table(tmp_path)
    table = [{**row, "photo": table[n // 2 % 6]["photo"]} for n, row in enumerate(table)]
    photo = load(tmp_path, table=table).modality("photo")
    assert isinstance(photo.data, FileRows)
    assert len(photo.data) == 6
    assert photo.rows_of(np.array([0, 1, 12])).tolist() == [0, 0, 0]


def test_videos(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    table = media_table(tmp_path)
    for number, row in enumerate(table[:4]):
        row["photo"] = f"{number}.webm" if number % 2 else f"{number}.avi"
        codec = "vp8" if row["photo"].endswith("webm") else "mpeg4"
        with av.open(str(tmp_path / row["photo"]), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for level in range(0, 250, 25):
                pixels = np.full((32, 48, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
    table = [{**row, "photo": table[n % 4]["photo"]} for n, row in enumerate(table)]
    changes = ('type = "image"\nsize = [24, 32]', 'type = "clip"\nsize = 16\nframes = 5')
    task = load(tmp_path, changes, table=table)
    check_task(task)
    clip = task.modality("photo").data[np.arange(4)]
    assert clip.shape == (4, 5, 16, 16, 3)
    assert np.abs(clip.mean((2, 3, 4)) - [25, 75, 125, 175, 225]).max() < 8


def test_check_tells_of_files_and_of_what_parts_share(tmp_path: Path) -> None:
    table = media_table(tmp_path)
    twin = Image.open(tmp_path / table[0]["photo"])
    twin.save(tmp_path / "photos" / "twin.png")
    table[6]["photo"] = "photos/twin.png"  # of validation
    table[9] = {**table[0], "part": "test"}
    found = survey(load(tmp_path, table=table))
    photo, sound, *_ = found.modalities
    assert photo.files == "20x20 to 90x60 pixels, modes 1, CMYK, I;16, L, LA, P, RGB, RGBA"
    assert sound.files == (
        "0.20 to 0.35 s, 8000, 11025, 16000, 22050 Hz, channels 1, 2, 12 longer than 0.3 s and cut "
        "there"
    )
    assert [*duplicates(found)] == [
        "1 samples of test are in train too: test 9 is train 0",
        "1 samples by their photo of validation are in train too: validation 6 is train 0",
        "1 samples by their photo of test are in train too: test 9 is train 0",
        "1 samples by their sound of test are in train too: test 9 is train 0",
    ]


def test_a_missing_package_is_told_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from command_line import bmnas_command, one_line_error

    load(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    error = one_line_error(bmnas_command("check", "--task", tmp_path / "task.toml"))
    assert "pip install 'bmnas[media]'" in error


def test_helpers_write_what_they_say(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 100, (7, 9), "L")
    assert picture_facts(tmp_path / "a.png") == {"height": 7, "width": 9, "mode": "L"}
    write_sound(tmp_path / "a.wav", 300, 8000, 2, 0.5)
    assert sound_facts(tmp_path / "a.wav") == {"rate": 8000, "channels": 2, "seconds": 0.5}
