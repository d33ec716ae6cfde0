from __future__ import annotations

import datetime
import decimal
import json
import tomllib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import bmnas_command, one_line_error
from media_files import media_table, write_picture, write_table

from bmnas.tasks import check_task, load_task, notes

for package in ("PIL", "soundfile", "soxr"):
    pytest.importorskip(package)


def init(folder: Path, rows: list[dict[str, Any]], *words: object) -> tuple[str, dict[str, Any]]:
    """Return the text that was written for a table of ``rows``, and what it says."""
    table, out = write_table(folder / "pets.csv", rows), folder / "task.toml"
    out.unlink(missing_ok=True)
    printed = bmnas_command("init", table, "--out", out, *words)
    assert printed.status == 0, printed
    assert printed.out == out.read_text("utf-8")
    return printed.out, tomllib.loads(printed.out)


def test_a_task_is_recognised(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "part"} for row in media_table(tmp_path)]
    for number, row in enumerate(rows):
        row["id"] = f"x{number:03}"
        row["always"] = "same"
    text, said = init(tmp_path, rows)
    assert (said["name"], said["kind"], said["labels"]) == ("pets", "multiclass", "label")
    assert said["split"]["group"] == "patient"
    assert said["modality"] == {
        "photo": {"array": "photo", "type": "image", "size": 32},
        "sound": {"array": "sound", "type": "waveform", "sample_rate": 8000, "seconds": 0.4},
        "title": {"array": "title", "type": "text"},
        "note": {"array": "note", "type": "text"},
        "table": {"columns": ["age", "weight", "height", "visits", "city"], "type": "vector"},
    }
    for words in (
        "3 classes: cat 16, dog 16, owl 16",
        "modes 1, CMYK, I;16, L, LA, P, RGB, RGBA",
        "0.20 to 0.35 s, 8000, 11025, 16000, 22050 Hz, channels 1, 2",
        "age: numbers, 7 missing",
        "# ? Left out: id (another value in each row, as a name has)",
        "# ? Left out: always (always 'same')",
        "fit = 'pad' or 'squeeze'",
    ):
        assert words in text
    task = load_task(tmp_path / "task.toml")
    check_task(task)
    assert len(task.part) == 48


def test_parts_folders_tags_and_broken_files_are_recognised(tmp_path: Path) -> None:
    rows = media_table(tmp_path)
    for number, row in enumerate(rows):
        row["photo"] = Path(row["photo"]).name
        row["tags"] = ("red|round", "round", "big|red", "big")[number % 4]
    (tmp_path / "photos" / rows[3]["photo"]).write_bytes(b"none")
    text, said = init(tmp_path, rows, "--labels", "tags")
    assert (said["kind"], said["separator"], said["split"]) == ("multilabel", "|", "part")
    assert said["modality"]["photo"]["folder"] == "photos"
    assert said["broken"] == "skip"
    assert "1 of 48 files cannot be read" in text
    task = load_task(tmp_path / "task.toml")
    check_task(task)
    assert (len(task.part), task.class_names) == (47, ("big", "red", "round"))


def test_a_table_for_each_part(tmp_path: Path) -> None:
    rows = media_table(tmp_path)
    test = write_table(tmp_path / "test.csv", rows[36:])
    _, said = init(tmp_path, rows[:36], "--test", test, "--group", "patient")
    expected = {"train": "pets.csv", "validation": 0.2, "test": "test.csv", "group": "patient"}
    assert said["data"] == expected
    task = load_task(tmp_path / "task.toml")
    check_task(task)
    assert [len(task.samples(part)) for part in ("train", "validation", "test")] == [28, 8, 12]


def test_many_numbers_are_a_regression(tmp_path: Path) -> None:
    rows = [{"area": n % 17 / 3, "words": f"a word of {n}", "price": n * 1.5} for n in range(60)]
    for number, lacking in enumerate(("", "NA", " ", "nan", "None", "?")):
        rows[number * 10]["price"] = lacking
    text, said = init(tmp_path, rows, "--labels", "price")
    assert (said["kind"], said["labels"], said["unlabelled"]) == ("regression", "price", "skip")
    assert '# ? Numbers: or is each a class of its own? Then kind = "multiclass".' in text
    assert "leaves out 6 rows without a label" in text
    task = load_task(tmp_path / "task.toml")
    check_task(task)
    assert len(task.part) == 54
    for number, row in enumerate(rows):
        row["price"] = number % 5
    assert init(tmp_path, rows, "--labels", "price")[1]["kind"] == "multiclass"


def test_numbers_of_classes_are_no_regression(tmp_path: Path) -> None:
    rows = [{"area": n % 17 / 3, "words": f"a word of {n}", "who": n * 7 % 50} for n in range(500)]
    text, said = init(tmp_path, rows, "--labels", "who")
    assert said["kind"] == "multiclass"
    assert '# ? Numbers of classes: or are they amounts? Then kind = "regression".' in text
    blank = [{**row, "who": ""} if n % 100 == 7 else row for n, row in enumerate(rows)]
    assert init(tmp_path, blank, "--labels", "who")[1]["unlabelled"] == "skip"
    ages = [min(n // 9, 60) for n in range(500)]  # as many, and nobody is 58 to 60 but once
    for row, age in zip(rows, [*ages[:-3], 58, 59, 60], strict=True):
        row["who"] = age
    assert init(tmp_path, rows, "--labels", "who")[1]["kind"] == "regression"


def test_empty_cells_are_asked_about(tmp_path: Path) -> None:
    rows = media_table(tmp_path, 24)
    rows[1]["photo"] = rows[2]["photo"] = rows[5]["title"] = ""
    text, said = init(tmp_path, rows)
    assert [name for name, table in said["modality"].items() if "missing" in table] == [
        "photo",
        "title",
    ]
    assert "# ? 2 rows are empty: the network learns to do without" in text
    check_task(load_task(tmp_path / "task.toml"))


def test_rows_without_a_label_are_left_out_and_no_class(tmp_path: Path) -> None:
    rows = media_table(tmp_path, 24)
    rows[3]["label"], rows[4]["label"], rows[7]["label"] = "", " ", "nan"
    text, said = init(tmp_path, rows)
    assert said["unlabelled"] == "skip"
    assert "# leaves out 3 rows without a label" in text
    assert len(load_task(tmp_path / "task.toml").part) == 21


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("D:\\m\\1.png", "which is a path of another machine"),
        ("/home/m/1.png", "name them from there, such as 'm/1.png'"),
        ("TASK.toml.png", "but 'task.TOML.PNG': names differ by capitals too"),
        ("https://x.org/1.png", "'https://x.org/1.png' is an address: download the files"),
        ("m/1.png", "or a folder in it: write folder = '…'."),
    ],
)
def test_paths_that_lead_nowhere_have_a_hint(path: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / "task.TOML.PNG").touch()
    rows = [{"photo": path, "x": n / 7, "label": "ab"[n % 2]} for n in range(40)]
    assert hint in init(tmp_path, rows)[0]


def test_names_and_values_may_break_lines(tmp_path: Path) -> None:
    rows = [
        {
            "the\nage": n % 17 / 3,
            "the\x7fend": n % 13 / 3,
            "same": "one\nname = 3",
            "a\nnote": f"word\nof {n}",
            "site\nuser": f"u{n % 12}",
            "label": "first\none" if n == 0 else ("b", "c")[n % 2],
        }
        for n in range(60)
    ]
    text, said = init(tmp_path, rows)
    assert said["modality"]["table"]["columns"] == ["the\nage", "the\x7fend"]
    assert "# the age: numbers" in text
    assert said["split"]["group"] == "site\nuser"


def test_a_table_of_a_spreadsheet_with_traps(tmp_path: Path) -> None:
    rows = []
    for n in range(60):
        name = ("Foto {}.JPG", "Übersicht {}.Png", "groß/x-{}.jpeg")[n % 3].format(n)
        place = tmp_path / "Bilder neu" / unicodedata.normalize("NFD" if n % 2 else "NFC", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_picture(place, 4 * n, (20, 30))
        rows.append(
            {
                "": n,  # as pandas writes its index
                "Nr": n // 2 * 7,
                " Bild": f"Bilder neu\\{name}".replace("/", "\\"),
                "Gewicht ": f"{n % 7},{n % 10}",
                "Datum": 20240101 + 100 * (n % 12) + n % 28,
                "gesehen": f"{1 + n % 28}.{1 + n % 12}.2024",
                "um": f"2024-01-{1 + n % 28:02} 10:{n % 60:02}:00",
                "leer": "",
                "Land": "DE",
                "Sorte": "einmal" if n == 7 else ("Äpfel", "Birne ", "BIRNE")[n % 3],
            }
        )
    table = write_table(tmp_path / "obst.csv", rows, ";")
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    printed = bmnas_command("init", table, "--out", tmp_path / "task.toml")
    said = tomllib.loads(printed.out)
    assert said["labels"] == "Sorte"
    assert {
        name: one.get("array", one.get("columns")) for name, one in said["modality"].items()
    } == {
        "Bild": "Bild",
        "table": ["Gewicht"],
    }
    for words in (
        "# ? Classes that differ by capitals only: BIRNE, Birne",
        "# ? Classes of fewer than three rows, too few for all parts: einmal",
        "20x30 to 20x30 pixels",
        "# ? Left out: (a column without a name)",
        "# ? Left out: Nr (30 numbers of something, perhaps a group)",
        "# ? Left out: Datum (dates: store what counts of them as numbers",
        "# ? Left out: gesehen (dates: ",
        "# ? Left out: um (dates: ",
        "# ? Left out: leer (empty)",
        "# ? Left out: Land (always 'DE')",
    ):
        assert words in printed.out
    task = load_task(tmp_path / "task.toml")
    check_task(task)
    assert task.class_names == ("BIRNE", "Birne", "einmal", "Äpfel")
    assert any("differ by capitals only: 'BIRNE', 'Birne'" in note for note in notes(task))
    photo = task.modality("Bild")
    assert abs(float(photo.data[np.array([50])].mean()) - 200) < 10


def test_columns_that_would_mislead_are_left_out(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {
            "label": ("cat", "dog")[n % 2],
            "label_id": n % 2,
            "code": ("c1", "d1", "c2", "d2")[n % 4],
            "sex": ("f", "m")[n // 2 % 2],
            "weight": f"{draw.integers(100, 9000) / 10} kg",
            "price": f"€{draw.integers(1000, 9999):,}",
            "photo": f"{n}.{'heic' if n == 3 else 'jpg'}",
            "media": f"{n}.{('jpg', 'wav')[n % 2]}",
            "x": f"{draw.normal():.3f}",
        }
        for n in range(80)
    ]
    empty = dict.fromkeys(rows[0], "")
    text, said = init(tmp_path, [*rows, empty, empty])
    assert said["modality"] == {"table": {"columns": ["sex", "x"], "type": "vector"}}
    assert "unlabelled" not in said
    for words in (
        "label_id (has a value for each label: it gives the answer away)",
        "code (has a value for each label",
        "weight (numbers such as '",
        "price (numbers such as '€",
        "photo (files .jpg 79, .heic 1: .heic cannot be read: convert them",
        "media (files of several types, .jpg 40, .wav 40: give each type",
    ):
        assert f"# ? Left out: {words}" in text


def test_columns_of_parquet_of_every_type(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    count, draw = 60, np.random.default_rng(0)
    days = [datetime.datetime(2024, 1 + n % 12, 1 + n % 28) for n in range(count)]
    colours, notes_of = (
        pyarrow.array([f"{words} {n % k}" for n in range(count)]).dictionary_encode()
        for words, k in (("red", 3), ("a long note of", 40))
    )
    table = {
        "colour": colours,
        "note": notes_of,
        "vector": pyarrow.array(
            draw.normal(size=(count, 4)).tolist(), pyarrow.list_(pyarrow.float32(), 4)
        ),
        "seen": pyarrow.array(days),
        "day": pyarrow.array([day.date() for day in days]),
        "cost": pyarrow.array(
            [decimal.Decimal(int(n)) / 100 for n in draw.integers(1, 999, count)]
        ),
        "ok": pyarrow.array([(True, False, None)[n // 2 % 3] for n in range(count)]),
        "often": pyarrow.array(
            [n * 7 % 31 if n % 5 else None for n in range(count)], pyarrow.int32()
        ),
        "nothing": pyarrow.nulls(count),
        "film": pyarrow.array([f"films/{n}.MP4" for n in range(count)]),
        "price": pyarrow.array(draw.normal(size=count)),
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    words = ("init", tmp_path / "a.parquet", "--labels", "price", "--out", tmp_path / "task.toml")
    said = tomllib.loads((printed := bmnas_command(*words)).out)
    assert said["kind"] == "regression"
    assert said["modality"].pop("film") == {
        "array": "film", "type": "clip", "size": 64, "frames": 8,
    }  # fmt: skip
    assert said["modality"] == {
        "note": {"array": "note", "type": "text"},
        "vector": {"array": "vector", "type": "vector"},
        "table": {"columns": ["colour", "cost", "ok", "often"], "type": "vector"},
    }
    for words_of in ("seen (dates: ", "day (dates: ", "nothing (empty)"):
        assert f"# ? Left out: {words_of}" in printed.out
    assert "There is no 'films/0.MP4'" in printed.out
    # Three colours; a cost; yes, no and neither; a number, and whether it is missing.
    assert load_task(tmp_path / "task.toml").modality("table").data.shape == (count, 3 + 1 + 3 + 2)


def test_fields_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    lines = [
        {"label": "ab"[n % 2], "x": n / 7, "none": None, "deep": {"of": [{"a": n}]}, "n": n}
        for n in range(40)
    ]
    lines[3]["text"] = "only here\u2028and there"
    (tmp_path / "a.jsonl").write_text(
        "\n".join(json.dumps(line, ensure_ascii=False) for line in lines), "utf-8"
    )
    printed = bmnas_command("init", tmp_path / "a.jsonl", "--out", tmp_path / "task.toml")
    assert tomllib.loads(printed.out)["modality"]["table"]["columns"] == ["x"]
    assert "# ? Left out: n (counts the rows)" in printed.out
    assert "# ? Left out: deep (" in printed.out
    assert "received objects with the keys of (rows: 40 of 40)" in printed.out
    assert "# ? Left out: none (" in printed.out


def test_what_cannot_be_guessed_is_told(tmp_path: Path) -> None:
    rows = [{"x": n / 7, "words": f"a word of {n}"} for n in range(40)]
    table = write_table(tmp_path / "a.csv", rows)
    out = ("--out", tmp_path / "task.toml")
    error = one_line_error(bmnas_command("init", table, *out))
    assert "no column can be the labels: name it with --labels: one of x, words" in error
    error = one_line_error(bmnas_command("init", table, "--labels", "word", *out))
    assert "received array 'word', expected one of x, words; did you mean 'words'?" in error
    error = one_line_error(bmnas_command("init", table, "--labels", "words", *out))
    assert "40 different values in 40 rows" in error
    alike = write_table(tmp_path / "b.csv", [{**row, "label": "yes"} for row in rows])
    error = one_line_error(bmnas_command("init", alike, *out))
    assert "column 'label': received 'yes' in all rows, expected labels of two classes" in error
    for encoding in ("WINDOWS-1252", "UTF-16"):
        (tmp_path / "c.csv").write_text("words,label\nschön,a\n", encoding)
        error = one_line_error(bmnas_command("init", tmp_path / "c.csv", *out))
        assert f"expected UTF-8: save it as UTF-8, or convert it: iconv -f {encoding} " in error
    (tmp_path / "task.toml").write_text("")
    assert "another --out" in one_line_error(bmnas_command("init", table, *out))


def test_a_table_alone_can_be_searched(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {"one": f"{draw.normal():.3f}", "note": f"a {word} that is number {n}", "label": word}
        for n, word in enumerate(("cat", "dog") * 30)
    ]
    table = write_table(tmp_path / "pets.csv", rows)
    words = (
        "search",
        table,
        "--run",
        tmp_path / "run",
        "--preset",
        "quick",
        "--strategy",
        "random",
    )
    both = bmnas_command(*words, "--task", "refshapes")
    assert "pets.csv and --task refshapes, expected one of them" in one_line_error(both)
    assert not (tmp_path / "pets.toml").exists()
    first = bmnas_command(*words, "--candidates", "1")
    assert first.status == 0, first.err
    assert f"wrote {tmp_path / 'pets.toml'}" in first.err
    source = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))["task"]
    assert source["source"]["task"] == str(tmp_path / "pets.toml")
    # What a person has written there stands.
    (tmp_path / "pets.toml").write_text("name = 3\n")
    second = bmnas_command(*words)
    assert second.status == 2
    assert "name: received 3" in second.err
    assert (tmp_path / "pets.toml").read_text() == "name = 3\n"
