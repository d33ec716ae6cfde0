from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from task_files import MODALITIES, SAMPLES, arrays, modality, write_task

from bmnas.machine.errors import UserError
from bmnas.tasks import check_task, check_test, load_task_file, notes
from bmnas.tasks.kinds import UNSEEN_LABEL


def error_of(path: Path, data: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_task_file(path, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_file(tmp_path: Path) -> None:
    data = arrays()
    path = write_task(tmp_path, held=data)
    task = load_task_file(path)
    check_task(task)
    check_test(task)
    assert (task.name, task.kind, task.preset, task.licence) == (
        "mine",
        "multiclass",
        "default",
        "not stated",
    )
    assert [m.name for m in task.modalities] == ["a", "b"]
    assert np.array_equal(task.modality("b").data, data["b"])
    assert task.class_names == ("0", "1", "2")
    assert task.source == {"task": str(path.resolve())}
    json.dumps(task.source)


def test_modalities_keep_their_order(tmp_path: Path) -> None:
    names = ["z", "a", "m"]
    data = arrays(**{name: np.ones((SAMPLES, 2)) for name in names})
    tables = {name: {"array": f'"{name}"', "type": '"vector"'} for name in names}
    task = load_task_file(write_task(tmp_path, held=data, modalities=tables))
    assert [m.name for m in task.modalities] == names


def test_optional_keys(tmp_path: Path) -> None:
    (tmp_path / "models" / "speech").mkdir(parents=True)
    (tmp_path / "net.safetensors").write_bytes(b"")
    data = arrays(
        clips=np.zeros((4, 200), dtype=np.int16), which=np.arange(SAMPLES) % 4, part=PART_NAMES
    )
    tables = {
        "a": {**MODALITIES["a"], "weights": '"net.safetensors"', "features": '["one", "two"]'},
        "audio": {
            "array": '"clips"',
            "type": '"waveform"',
            "index": '"which"',
            "sample_rate": "8000",
            "backbone": '"hf:models/speech"',
        },
    }
    path = write_task(
        tmp_path,
        held=data,
        modalities=tables,
        class_names='["x", "y", "z"]',
        preset='"digits-quick"',
        licence='"CC0"',
    )
    task = load_task_file(path)
    check_task(task)
    audio, a = task.modality("audio"), task.modality("a")
    assert audio.rows_of(np.array([0, 5])).tolist() == [0, 1]
    # A table of new rows cannot say which clip each has.
    assert (audio.source, a.source) == (None, {"column": "a"})
    assert (audio.sample_rate, audio.backbone) == (
        8000,
        f"hf:{(tmp_path / 'models/speech').resolve()}",
    )
    assert (a.weights, a.features) == ((tmp_path / "net.safetensors").resolve(), ("one", "two"))
    assert (task.class_names, task.preset, task.licence) == (("x", "y", "z"), "digits-quick", "CC0")
    assert task.part.tolist() == [0, 1, 2] * (SAMPLES // 3)


PART_NAMES = np.array(["train", "val", "test"] * (SAMPLES // 3))


def test_data_lies_where_it_is_said(tmp_path: Path) -> None:
    path = write_task(tmp_path / "here")
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "here" / "mine.npz").rename(there / "mine.npz")
    assert load_task_file(path, there).source["data"] == str(there.resolve())
    message = error_of(path)
    assert "mine.npz: no such file: give --data DIR, the folder that holds the data" in message
    assert error_of(path, tmp_path / "nowhere").startswith("received --data")


def test_several_files(tmp_path: Path) -> None:
    words = "".join(json.dumps({"text": f"word {i}"}) + "\n" for i in range(SAMPLES))
    tables = {**MODALITIES, "text": {"array": '"text"', "type": '"text"'}}
    path = write_task(tmp_path, modalities=tables, data='["mine.npz", "t.jsonl"]')
    (tmp_path / "t.jsonl").write_text(words)
    task = load_task_file(path)
    check_task(task)
    assert task.modality("text").data[3] == "word 3"


def test_labels_as_names(tmp_path: Path) -> None:
    words = np.array(["no", "yes", "maybe"])[np.arange(SAMPLES) // 3 % 3]
    task = load_task_file(write_task(tmp_path, held=arrays(label=words)))
    check_task(task)
    assert task.class_names == ("maybe", "no", "yes")
    assert np.array_equal(np.array(task.class_names)[task.labels], words)
    named = write_task(tmp_path, held=arrays(label=words), class_names='["yes", "no", "maybe"]')
    assert load_task_file(named).class_names == ("yes", "no", "maybe")
    short = write_task(tmp_path, held=arrays(label=words), class_names='["yes", "no"]')
    assert "labels: row 6: received 'maybe', expected a class name: yes, no" in error_of(short)


def test_an_unknown_name_in_the_test_part_waits_for_the_test(tmp_path: Path) -> None:
    words = np.array(["no", "yes", "maybe"])[np.arange(SAMPLES) // 3 % 3]
    words[2] = "what"
    names = '["no", "yes", "maybe"]'
    task = load_task_file(write_task(tmp_path, held=arrays(label=words), class_names=names))
    check_task(task)
    with pytest.raises(UserError, match=r"received -1 \(no class, or a name .* sample 2 \(test\)"):
        check_test(task)


def test_without_names_the_classes_are_those_of_train_and_a_note_tells_of_others(
    tmp_path: Path,
) -> None:
    words = np.array(["no", "yes", "maybe"])[np.arange(SAMPLES) // 3 % 3].astype("U8")
    words[1::9], words[2] = "whether", "what"
    task = load_task_file(write_task(tmp_path, held=arrays(label=words)))
    check_task(task)
    check_test(task)
    assert task.class_names == ("maybe", "no", "yes")
    of_train = task.part == 0
    assert np.array_equal(np.array(task.class_names)[task.labels[of_train]], words[of_train])
    unseen = np.isin(words, ["what", "whether"])
    assert np.array_equal(task.labels == UNSEEN_LABEL, unseen)
    assert [*notes(task, "validation", "test")] == [
        f"{unseen[task.part == 1].sum()} of {SAMPLES // 3} validation samples and 1 of "
        f"{SAMPLES // 3} test samples have a label that no train sample has: whatever is answered "
        "to them counts as wrong, and nothing is trained on them"
    ]
    assert not [*notes(task, "train")]
    words[1::3] = "whether"
    task = load_task_file(write_task(tmp_path, held=arrays(label=words)))
    with pytest.raises(UserError, match="no validation sample has a label that train has"):
        check_task(task)


def test_a_number_of_no_class_of_train_is_a_mistake(tmp_path: Path) -> None:
    labels = arrays()["label"]
    labels[1] = 7
    task = load_task_file(write_task(tmp_path, held=arrays(label=labels)))
    with pytest.raises(UserError, match=r"received 7 for sample 1 \(validation\), expected 0 to 2"):
        check_task(task)


def test_a_class_that_only_the_test_part_has_is_no_class(tmp_path: Path) -> None:
    labels = arrays()["label"]
    labels[2] = 7
    task = load_task_file(write_task(tmp_path, held=arrays(label=labels)))
    assert task.classes == 3
    check_task(task)
    with pytest.raises(UserError, match=r"received 7 for sample 2 \(test\), expected 0 to 2"):
        check_test(task)


def test_a_drawn_split_is_stratified(tmp_path: Path) -> None:
    split = "{train = 0.6, validation = 0.2, test = 0.2, seed = 3}"
    held = arrays(label=np.arange(SAMPLES) % 3)
    task = load_task_file(write_task(tmp_path, held=held, split=split))
    for label in range(3):
        assert np.bincount(task.part[task.labels == label]).tolist() == [6, 2, 2]
    again = load_task_file(write_task(tmp_path, held=held, split=split))
    assert np.array_equal(task.part, again.part)


def test_multilabel(tmp_path: Path) -> None:
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 0]] * 6, dtype=np.uint8)
    for split in ('"part"', "{train = 0.5, validation = 0.25, test = 0.25}"):
        path = write_task(tmp_path, held=arrays(label=labels), kind='"multilabel"', split=split)
        task = load_task_file(path)
        check_task(task)
        assert task.class_names == ("0", "1")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"name": ""}, "expected the key 'name', which is missing"),
        ({"name": "3"}, "name: received 3, expected a string"),
        ({"lables": '"x"'}, "received key 'lables', expected only"),
        ({"lables": '"x"'}, "did you mean 'labels'?"),
        ({"kind": '"multi-class"'}, "kind: received 'multi-class', expected one of multiclass,"),
        ({"kind": '"multi-class"'}, "did you mean 'multiclass'?"),
        ({"data": "1"}, "data: received 1, expected a string or a list of strings"),
        ({"data": "[]"}, "data: received [], expected one that is not empty"),
        ({"data": '"none.npz"'}, "none.npz: no such file: give --data DIR"),
        ({"data": '"task.toml"'}, "received a .toml file, expected one of .npz"),
        ({"labels": '"lable"'}, "labels: received array 'lable', expected one of a, b, label"),
        ({"labels": "[0, 1]"}, "labels[0]: received 0, expected a string"),
        ({"split": '"prat"'}, "split: received array 'prat'"),
        ({"split": "{train = 0.5}"}, "split: expected the key 'validation', which is missing"),
        (
            {"split": "{train = 1, validation = 0, test = 0}"},
            "train: received 1, expected between 0 and 1",
        ),
        (
            {"split": "{train = 0.5, validation = 0.3, test = 0.3}"},
            "the sum 1.1, expected the sum 1",
        ),
        ({"split": '{train = "a", validation = 0.3, test = 0.3}'}, "expected a number"),
        (
            {"split": "{train = nan, validation = 0.3, test = 0.3}"},
            "train: received nan, expected",
        ),
        ({"split": "{train = 0.4, validation = 0.3, test = 0.3, seed = -1}"}, "seed: received -1"),
        ({"split": "{train = 0.4, valdation = 0.3, test = 0.3}"}, "did you mean 'validation'?"),
        ({"class_names": "[1, 2]"}, "class_names[1]: received 2, expected a string"),
        ({"class_names": '"a"'}, "class_names: received 'a', expected a list of strings, or"),
        ({"preset": "3"}, "preset: received 3, expected a string"),
        ({"licence": "1"}, "licence: received 1, expected a string"),
        ({"modality": "[]"}, "modality: received [], expected a table"),
        ({"labels": '"label'}, "not a TOML file"),
    ],
)
def test_wrong_keys(tmp_path: Path, keys: dict[str, str], expected: str) -> None:
    tables: dict[str, Any] | None = {} if "modality" in keys else None
    path = write_task(tmp_path, modalities=tables, **keys)
    message = error_of(path)
    assert message.startswith(str(path))
    assert expected in message


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"type": '"vektor"'}, "type: received 'vektor', expected one of image, clip"),
        ({"type": '"vektor"'}, "did you mean 'vector'?"),
        ({"array": '"phone"'}, "array: received array 'phone', expected one of a, b, label, part"),
        ({"index": '"none"'}, "index: received array 'none'"),
        ({"sample_rate": "8000.5"}, "sample_rate: received 8000.5, expected an integer"),
        ({"sample_rate": "true"}, "sample_rate: received True"),
        ({"weights": '"none.safetensors"'}, "weights: received 'none.safetensors', expected a fil"),
        ({"features": '"one"'}, "features: received 'one', expected a list of strings"),
        ({"backbone": "1"}, "backbone: received 1, expected a string"),
        ({"wieghts": '"x"'}, "did you mean 'weights'?"),
    ],
)
def test_wrong_keys_of_a_modality(tmp_path: Path, keys: dict[str, str], expected: str) -> None:
    path = write_task(tmp_path, modalities=modality("a", **keys))
    message = error_of(path)
    assert message.startswith(f"{path}: modality.a")
    assert expected in message


def test_wrong_values_of_a_split(tmp_path: Path) -> None:
    part = PART_NAMES.copy()
    part[4] = "trian"
    message = error_of(write_task(tmp_path, held=arrays(part=part)))
    assert "split: received 'trian' in row 4, expected one of train, val" in message


def test_missing_and_unreadable_task_files(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in error_of(tmp_path / "none.toml")
    assert "cannot be read: Is a directory" in error_of(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    assert "not a TOML file" in error_of(tmp_path / "x.toml")
