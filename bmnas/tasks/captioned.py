"""Pictures and sentences as MMnas reads them: VQA-v2, Flickr30K, RefCOCO, with regions.

A folder holds the annotations as they are published, and anywhere below it the regions, one
``.npz`` a picture whose name has the picture's number, see ``load_regions``.

Sources: Goyal et al., CVPR 2017 (VQA-v2); Young et al., TACL 2014, in the split of Karpathy and
Fei-Fei, CVPR 2015 (Flickr30K); Yu et al., ECCV 2016 (RefCOCO, RefCOCO+), Mao et al., CVPR 2016
(RefCOCOg), as the program of MMnas writes them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, few
from bmnas.machine.files import read_json
from bmnas.tasks.decoded import DecodedRows
from bmnas.tasks.kinds import BOX, UNKNOWN_LABEL
from bmnas.tasks.regions import load_regions
from bmnas.tasks.task import Modality, Task
from bmnas.tasks.text_arrays import reading

_WORDS = {"vqa": 14, "flickr30k": 50, "refcoco": 14}  # of a sentence, at most
_REGIONS = {"vqa": 100, "flickr30k": 36, "refcoco": 100}
_LIMIT = 1_000_000_000  # bytes of a file of annotations
_OFTEN = 8  # an answer is a class that was given more often
_HELD_OUT, _SEED = 0.1, 20170722  # of the pictures of train, for validation
_DELETED = str.maketrans("-/", "  ", ".,'!?\"()*#:;")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = "a", "an", "the"
_DIGITS = {
    word: str(digit)
    for digit, words in enumerate(
        ("none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
    for word in words.split()
}
#: Words with an apostrophe, each found without one of its own.
_APART = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've
someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _APART.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # so they have it


def load_vqa(folder: Path) -> Task:
    """Return the questions of VQA-v2: val2014 is the test part, a tenth of train2014 validation.

    ``folder`` holds the four files ``v2_…_questions.json`` and ``v2_…_annotations.json`` of train
    and val, perhaps in ``annotations``. Classes are the answers that train gives more than eight
    times as the one of most people; types are those of answers: yes/no, number, other.
    """
    place = folder / "annotations" if (folder / "annotations").is_dir() else folder
    annotations: list[_Answered] = []
    texts: list[list[str]] = []
    counts = []
    for part in ("train2014", "val2014"):
        path = place / f"v2_OpenEnded_mscoco_{part}_questions.json"
        with reading(str(path)):
            asked = {q["question_id"]: q["question"] for q in read_json(path, _LIMIT)["questions"]}
        path = place / f"v2_mscoco_{part}_annotations.json"
        with reading(str(path)):
            own = [_Answered(entry) for entry in read_json(path, _LIMIT)["annotations"]]
            texts += [without_marks(asked[entry.question]) for entry in own]
        annotations += own
        counts.append(len(own))
    images = [entry.image for entry in annotations]
    part_of = np.repeat([0, 2], counts)
    pictures = np.unique(np.array(images)[part_of == 0])
    draw = np.random.RandomState(_SEED)
    held = draw.permutation(pictures)[: round(_HELD_OUT * len(pictures))]
    part_of[(part_of == 0) & np.isin(images, held)] = 1
    often = Counter(
        entry.most for entry, part in zip(annotations, part_of, strict=True) if part == 0
    )
    classes = sorted(answer for answer, count in often.items() if count > _OFTEN)
    numbers = {answer: number for number, answer in enumerate(classes)}
    people = max(len(entry.answers) for entry in annotations)
    labels = np.full((len(annotations), people), UNKNOWN_LABEL)
    for row, entry in zip(labels, annotations, strict=True):
        row[: len(entry.answers)] = [numbers.get(a, UNKNOWN_LABEL) for a in entry.answers]
    return Task(
        name="vqa",
        kind="answers",
        modalities=_modalities(folder, "vqa", texts, images),
        labels=labels,
        part=part_of,
        class_names=tuple(classes),
        preset="mmnas-vqa",
        licence="annotations CC BY 4.0",
        types=np.array([entry.type for entry in annotations]),
    )


class _Answered:
    """An entry of the annotations: question, picture, type, what most people and each answered."""

    def __init__(self, entry: Any) -> None:
        self.question, self.image = entry["question_id"], int(entry["image_id"])
        self.type, self.most = (
            str(entry["answer_type"]),
            normalised(entry["multiple_choice_answer"]),
        )
        self.answers = [normalised(given["answer"]) for given in entry["answers"]]


def load_flickr30k(folder: Path) -> Task:
    """Return the captions of Flickr30K, five a picture, from ``dataset_flickr30k.json``."""
    path = folder / "dataset_flickr30k.json"
    names = {"train": 0, "val": 1, "test": 2}
    with reading(str(path)):
        pictures = read_json(path, limit=_LIMIT)["images"]
        told = [(n, s["raw"]) for n, picture in enumerate(pictures) for s in picture["sentences"]]
        files = [int(Path(picture["filename"]).stem) for picture in pictures]
        parts = [names[picture["split"]] for picture in pictures]
    picture = np.array([n for n, _ in told])
    texts = [without_marks(text) for _, text in told]
    return Task(
        name="flickr30k",
        kind="matching",
        modalities=_modalities(folder, "flickr30k", texts, [files[n] for n in picture]),
        labels=picture,
        part=np.array(parts)[picture],
        class_names=("match",),
        preset="mmnas-itm",
    )


def load_refcoco(folder: Path) -> Task:
    """Return the expressions of RefCOCO, RefCOCO+ or RefCOCOg with the boxes that they mean.

    ``folder`` holds ``train.json``, ``val.json`` and ``testA.json`` and ``testB.json``, or
    ``test.json``, as the program of MMnas writes them; the test files are types of the test part.
    """
    tests = [name for name in ("testA", "testB", "test") if (folder / f"{name}.json").is_file()]
    texts, images, boxes, parts, types = [], [], [], [], []
    for name in ("train", "val", *(tests or ["test"])):
        path = folder / f"{name}.json"
        with reading(str(path)):
            for entry in read_json(path, limit=_LIMIT):
                texts.append([str(token).lower() for token in entry["tokens"]])
                images.append(int(entry["image_id"]))
                x, y, width, height = map(float, entry["bbox"])
                boxes.append([x, y, x + width, y + height])
                parts.append({"train": 0, "val": 1}.get(name, 2))
                types.append(name)
    return Task(
        name="refcoco",
        kind="grounding",
        modalities=_modalities(folder, "refcoco", texts, images),
        labels=np.array(boxes, np.float32),
        part=np.array(parts),
        class_names=BOX,
        preset="mmnas-vgd",
        types=np.array(types),
    )


def without_marks(text: str) -> list[str]:
    """Return the words of a sentence as MMnas takes them: lower case, punctuation left out."""
    return text.lower().translate(_DELETED).split()


def normalised(answer: str) -> str:
    """Return an answer as VQA compares it: no case, punctuation, articles; digits for numbers.

    Contractions have their apostrophes. These are the rules of the program that scores VQA.
    """
    text = given = " ".join(answer.lower().split())
    comma = re.search(r"\d,\d", given) is not None
    for mark in _MARKS:
        alone = f"{mark} " in given or f" {mark}" in given or comma
        text = text.replace(mark, "" if alone else " ")
    words = [word for word in re.sub(r"\.(?!\d)", "", text).split() if word not in _ARTICLES]
    return " ".join(_DIGITS.get(word, _CONTRACTIONS.get(word, word)) for word in words)


def _modalities(
    folder: Path, task: str, texts: Sequence[Sequence[str]], images: Sequence[int]
) -> tuple[Modality, Modality]:
    """Return text and regions of samples with these words and pictures."""
    pictures, row = np.unique(images, return_inverse=True)
    joined = np.array([" ".join(words[: _WORDS[task]]) for words in texts])
    return (
        Modality("text", "text", joined, backbone="embedding"),
        Modality("image", "regions", _found(folder, pictures.tolist(), _REGIONS[task]), row),
    )


def _found(folder: Path, pictures: Sequence[int], most: int) -> DecodedRows[Path]:
    """Return the regions of ``pictures``, from the files below ``folder`` with their numbers."""
    files = {}
    for path in folder.rglob("*.npz"):
        if number := re.search(r"(\d+)\.", path.name):
            files[int(number[1])] = path.relative_to(folder).as_posix()
    missing = [str(picture) for picture in pictures if picture not in files]
    if missing:
        raise UserError(
            f"{folder}: received regions of {len(pictures) - len(missing)} of {len(pictures)} "
            f"pictures, expected a .npz file for each, {few(missing)} missing"
        )
    return load_regions(folder, [files[picture] for picture in pictures], most=most)
