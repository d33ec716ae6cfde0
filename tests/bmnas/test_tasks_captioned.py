"""VQA-v2, Flickr30K and RefCOCO from small files in the formats that are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bmnas.machine.errors import UserError
from bmnas.tasks import check_task, check_test, load_task
from bmnas.tasks.captioned import normalised, without_marks

DRAW = np.random.default_rng(0)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(content))


def regions(path: Path, count: int = 3) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    low = DRAW.uniform(0, 200, (count, 2))
    boxes = np.concatenate([low, low + 40], 1).astype(np.float32)
    x = DRAW.normal(size=(5, count)).astype(np.float32)
    np.savez(path, x=x, bbox=boxes, image_h=480, image_w=640)


def test_words_are_read_by_their_rules() -> None:
    assert without_marks('What\'s on the "red-hot" plate, no. 1/2?') == [
        *("whats", "on", "the", "red", "hot", "plate", "no", "1", "2")
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        *[("The Two dogs!", "2 dogs"), ("1,000", "1000"), ("None", "0")],
        *[("3.5 feet.", "3.5 feet"), (".5", ".5"), ("no. 5", "no 5"), ("a.m.", "am")],
        *[("black/white", "black white"), ("black / white", "black white")],
        # A mark with a space beside it goes everywhere; what others leave behind does not count.
        *[
            ("x-ray - no", "xray no"),
            ("what?-ever", "what ever"),
            ("1,000 red/blue", "1000 redblue"),
        ],
        *[("dont", "don't"), ("It's", "it's"), ("lets", "lets"), ("im", "im")],
        *[("couldntve", "couldntve"), ("couldnt've", "couldn't've"), ("yall'd've", "y'all'd've")],
        ("somebody'd", "somebodyd"),
    ],
)
def test_answers_are_compared_by_the_rules_of_vqa(given: str, wanted: str) -> None:
    assert normalised(given) == wanted


def vqa(folder: Path) -> None:
    """Ten pictures of train and two of val, two questions each."""
    for part, pictures in (("train", range(1, 11)), ("val", (77, 78))):
        asked, told = [], []
        for picture in pictures:
            for n in range(2):
                number = 10 * picture + n
                asked.append({"image_id": picture, "question": "Is it red?", "question_id": number})
                one = ("yes", "Two")[n]
                answers = [one] * 7 + ["no"] * 2 + ["rare"]
                told.append(
                    {
                        "question_type": "is",
                        "multiple_choice_answer": one,
                        "answers": [
                            {"answer": a, "answer_confidence": "yes", "answer_id": k}
                            for k, a in enumerate(answers, start=1)
                        ],
                        "image_id": picture,
                        "answer_type": ("yes/no", "number")[n],
                        "question_id": number,
                    }
                )
            regions(folder / f"{part}2014" / f"COCO_{part}2014_{picture:012d}.jpg.npz")
        place = folder / "annotations"
        write(place / f"v2_OpenEnded_mscoco_{part}2014_questions.json", {"questions": asked})
        write(place / f"v2_mscoco_{part}2014_annotations.json", {"annotations": told})


def test_vqa(tmp_path: Path) -> None:
    vqa(tmp_path)
    task = load_task("vqa", tmp_path)
    check_task(task)
    check_test(task)
    assert task.kind == "answers"
    # Nine pictures of train are left, each answer is given once to each.
    assert task.class_names == ("2", "yes")
    text, image = task.modalities
    assert text.data[0] == "is it red"
    assert image.data.shape == (12, 100, 9)
    train, validation, test = (task.samples(p) for p in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (18, 2, 4)
    assert not set(image.rows_of(train)) & set(image.rows_of(validation))
    assert task.types is not None
    assert task.types[:2].tolist() == ["yes/no", "number"]
    assert task.labels[0].tolist() == [1] * 7 + [-1] * 3
    with np.load(tmp_path / "val2014" / "COCO_val2014_000000000078.jpg.npz") as file:
        row = image.data[image.rows_of(test[-1:])][0]
        assert np.array_equal(row[:3], np.concatenate([file["x"].T, file["bbox"]], 1))


def test_flickr30k(tmp_path: Path) -> None:
    pictures = []
    for n in range(6):
        sentences = [
            {"raw": f"A dog, number {n} of {k}.", "tokens": [], "imgid": n, "sentid": 5 * n + k}
            for k in range(5)
        ]
        split = ("train", "val", "test")[n // 2]
        pictures.append(
            {"imgid": n, "filename": f"10{n}.jpg", "split": split, "sentences": sentences}
        )
        regions(tmp_path / "features" / f"10{n}.jpg.npz")
    write(tmp_path / "dataset_flickr30k.json", {"images": pictures, "dataset": "flickr30k"})
    task = load_task("flickr30k", tmp_path)
    check_task(task)
    assert [len(task.samples(p)) for p in ("train", "validation", "test")] == [10, 10, 10]
    assert task.labels.tolist() == [n for n in range(6) for _ in range(5)]
    assert np.array_equal(task.modalities[1].rows_of(np.arange(30)), task.labels)
    assert task.modalities[0].data[7] == "a dog number 1 of 2"


def expressions(folder: Path, name: str, pictures: range) -> None:
    entries = [
        {
            "tokens": ["the", "Lady", "left"],
            "file_name": f"COCO_train2014_{picture:012d}_3.jpg",
            "image_id": picture,
            "split": name,
            "bbox": [10.5, 20.0, 30.0, 40.25],
            "name": "person",
            "height": 480,
            "width": 640,
        }
        for picture in pictures
    ]
    write(folder / f"{name}.json", entries)
    for picture in pictures:
        regions(folder / "regions" / f"COCO_train2014_{picture:012d}.jpg.npz")


def test_refcoco_and_what_is_wrong_with_it(tmp_path: Path) -> None:
    for start, name in ((100, "train"), (200, "val"), (300, "testA"), (400, "testB")):
        expressions(tmp_path, name, range(start, start + 3))
    task = load_task("refcoco", tmp_path)
    check_task(task)
    assert task.kind == "grounding"
    assert task.modalities[0].data[0] == "the lady left"
    assert task.labels[0].tolist() == [10.5, 20, 40.5, 60.25]
    assert [len(task.samples(p)) for p in ("train", "validation", "test")] == [3, 3, 6]
    assert task.types is not None
    assert task.types[-6:].tolist() == ["testA"] * 3 + ["testB"] * 3
    (tmp_path / "regions" / f"COCO_train2014_{101:012d}.jpg.npz").unlink()
    with pytest.raises(UserError, match=r"regions of 11 of 12 pictures, .*, 101 missing"):
        load_task("refcoco", tmp_path)
    write(tmp_path / "val.json", [{"tokens": ["a"]}])
    with pytest.raises(UserError, match=r"val\.json: cannot be read"):
        load_task("refcoco", tmp_path)
    (tmp_path / "testA.json").unlink()
    (tmp_path / "val.json").unlink()
    with pytest.raises(UserError, match=r"val\.json"):
        load_task("refcoco", tmp_path)
