"""refshapes read literally: what its sentences mean, and what cannot tell what they mean."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bmnas.tasks import Task, check_task, check_test, refshapes
from bmnas.tasks.kinds import Array
from bmnas.tasks.shapes import ATTRIBUTES
from bmnas.tasks.tries import RELATIONS

RELATION = re.compile(f" ({'|'.join(RELATIONS)}) ")


@dataclasses.dataclass(frozen=True)
class Shape:
    words: tuple[str, ...]
    box: tuple[int, ...]

    @property
    def middle(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    def fits(self, phrase: str) -> bool:
        words = phrase.removesuffix("s").split()
        return all(w in (*self.words, "shape", "a", "an", "the") for w in words)

    def stands(self, relation: str, other: Shape) -> bool:
        right, down = (a - b for a, b in zip(self.middle, other.middle, strict=True))
        return {
            "left of": -right > abs(down),
            "right of": right > abs(down),
            "above": -down > abs(right),
            "below": down > abs(right),
            "beside": abs(right) > abs(down),
            "over or under": abs(down) > abs(right),
        }[relation]

    def from_(self, other: Shape) -> float:
        return math.dist(self.middle, other.middle)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refshapes, "_SCENES", (150, 30, 60))


@functools.cache
def scenes(seed: int) -> list[list[Shape]]:
    """The shapes of every scene of all parts."""
    parts, _, _ = refshapes._scenes(seed)
    return [
        [
            Shape(
                tuple(names[v] for names, v in zip(ATTRIBUTES, part.attributes[s, m], strict=True)),
                tuple(part.boxes[s, m].tolist()),
            )
            for m in np.flatnonzero(part.there[s])
        ]
        for part in parts
        for s in range(len(part.there))
    ]


@functools.cache
def task_of(name: str) -> Task:
    return {
        "expressions": refshapes.load_refshapes,
        "answers": refshapes.load_refshapes_answers,
        "captions": refshapes.load_refshapes_captions,
    }[name]()


def sentences(task: Task) -> Iterator[tuple[str, list[Shape], Array]]:
    """Each text, the shapes of its scene and its label."""
    rows = task.modality("image").rows_of(np.arange(len(task.part)))
    for text, row, label in zip(task.modality("text").data, rows, task.labels, strict=True):
        yield str(text), scenes(0)[row], label


def read(text: str, shapes: list[Shape]) -> tuple[list[Shape], list[Shape], Shape, str]:
    """Return what fits the first words, what stands in the relation, the anchor, the relation."""
    (relation,) = RELATION.findall(text)
    words, anchor_words = text.split(f" {relation} ")
    words = words.removesuffix(" just")
    (anchor,) = (shape for shape in shapes if shape.fits(anchor_words))
    others = [shape for shape in shapes if shape is not anchor]
    fitting = [shape for shape in others if shape.fits(words)]
    if relation == "nearest to":
        near = min(shape.from_(anchor) for shape in fitting)
        return fitting, [s for s in others if s.from_(anchor) <= near], anchor, relation
    if relation == "farthest from":
        far = max(shape.from_(anchor) for shape in fitting)
        return fitting, [s for s in others if s.from_(anchor) >= far], anchor, relation
    return fitting, [s for s in others if s.stands(relation, anchor)], anchor, relation


def overlap(one: Array, two: Array) -> float:
    low, high = np.maximum(one[:2], two[:2]), np.minimum(one[2:], two[2:])
    common, *areas = (
        np.prod(np.maximum(b - a + 1, 0))
        for a, b in ((low, high), (one[:2], one[2:]), (two[:2], two[2:]))
    )
    return float(common / (sum(areas) - common))


@pytest.mark.parametrize("name", ["expressions", "answers", "captions"])
def test_parts_have_scenes_of_their_own(name: str) -> None:
    task = task_of(name)
    rows = [
        task.modality("image").rows_of(task.samples(p)) for p in ("train", "validation", "test")
    ]
    # No caption is true of one scene alone where its shapes are all alike.
    assert [len(own) for own in rows] == (
        [592, 116, 240] if name == "captions" else [4 * 150, 4 * 30, 4 * 60]
    )
    assert len({*rows[0], *rows[1], *rows[2]}) == sum(len(set(own)) for own in rows)
    images = task.modality("image").data
    assert len({image.tobytes() for image in images}) == len(images) == 240


def test_an_expression_means_one_shape_and_needs_all_of_its_words() -> None:
    by_words, by_relation, kinds = [], [], Counter[str]()
    guesses: dict[str, list[bool]] = {"outermost": [], "nearest fit": [], "nearest there": []}
    for text, shapes, box in sentences(task_of("expressions")):
        fitting, standing, anchor, relation = read(text, shapes)
        possible = [shape for shape in fitting if shape in standing]
        meant = min(possible, key=anchor.from_)
        assert (" just " in text) == (relation in RELATIONS[:4])
        assert len(possible) == 1 or " just " in text
        assert meant.box == tuple(box)
        assert len(fitting) > 1 < len(standing)
        by_words.append(1 / len(fitting))
        by_relation.append(1 / len(standing))
        kinds[relation] += 1
        if relation in RELATIONS[:4]:
            axis, sign = divmod(RELATIONS.index(relation), 2)
            farthest = max(fitting, key=lambda shape: (2 * sign - 1) * shape.middle[axis])
            guesses["outermost"].append(farthest is meant)
            guesses["nearest fit"].append(min(fitting, key=anchor.from_) is meant)
            guesses["nearest there"].append(min(standing, key=anchor.from_) is meant)
    assert np.mean(by_words) < 0.5
    assert np.mean(by_relation) < 0.45
    # No two of the shape's words, the direction and the anchor tell it.
    assert np.mean(guesses["outermost"]) == 0.5
    assert np.mean(guesses["nearest fit"]) < 0.5
    assert np.mean(guesses["nearest there"]) < 0.5
    assert sum(kinds[name] for name in RELATIONS[:4]) == len(by_words) // 3
    types = task_of("expressions").types
    assert types is not None
    assert Counter(types) == dict.fromkeys(("direction", "line", "distance"), len(by_words) // 3)


def test_a_text_alone_does_not_tell_where() -> None:
    task = task_of("expressions")
    relation = np.array([RELATION.findall(text)[0] for text in task.modality("text").data])
    train, test = task.samples("train"), task.samples("test")
    hits = []
    for name in RELATIONS:
        own = task.labels[train[relation[train] == name]]
        guess = np.median(own, axis=0)
        hits += [overlap(guess, box) >= 0.5 for box in task.labels[test[relation[test] == name]]]
    assert len(hits) == len(test)
    assert np.mean(hits) < 0.15


def test_answers_are_true_and_neither_text_nor_picture_tells_them() -> None:
    task = task_of("answers")
    check_task(task)
    check_test(task)
    kinds: dict[str, Counter[str]] = {}
    places: dict[tuple[str, int], Counter[str]] = {}
    guessed = []
    for text, shapes, label in sentences(task):
        answer = task.class_names[label[0]]
        kind = text.split()[0]
        if kind == "is":
            fitting, standing, *_ = read(text.removeprefix("is there "), shapes)
            assert answer == ("yes" if any(s in standing for s in fitting) else "no")
        elif kind == "how":
            body = text.removeprefix("how many ").replace(" are ", " ")
            fitting, standing, *_ = read(body, shapes)
            assert answer == str(sum(s in standing for s in fitting))
        else:
            _, attribute, body = text.split(" ", 2)
            kind = attribute
            fitting, standing, *_ = read(body.removeprefix("is "), shapes)
            (meant,) = (s for s in fitting if s in standing)
            place = ["size", "colour", "shape"].index(attribute)
            assert answer == meant.words[place]
            assert len({s.words[place] for s in fitting}) > 1
            seen = Counter(s.words[place] for s in standing)
            assert len(seen) > 1
            guessed.append(seen[answer] / seen.total())
        if kind in ("is", "how"):
            places.setdefault((kind, len(standing)), Counter())[answer] += 1
        kinds.setdefault(kind, Counter())[answer] += 1
    assert kinds["is"]["yes"] == kinds["is"]["no"]
    assert sum(kinds["how"].values()) == 2 * kinds["is"]["yes"]
    # The best that can be said without the picture.
    best = sum(counts.most_common(1)[0][1] for counts in kinds.values())
    assert best < 0.5 * len(task.labels)
    # Nor does the place, without the words of what is asked for.
    assert {key: len(set(counts.values())) for key, counts in places.items()} == dict.fromkeys(
        (("is", 1), ("is", 2), ("how", 1), ("how", 2)), 1
    )
    assert {len(counts) for counts in places.values()} == {2}
    assert np.mean(guessed) < 0.5


def test_captions_are_true_of_their_scene_and_of_no_other_of_its_part() -> None:
    task = task_of("captions")

    def true(text: str, shapes: list[Shape]) -> bool:
        for statement in text.split(" and "):
            (relation,) = RELATION.findall(statement)
            one, two = statement.split(f" {relation} ")
            if not any(
                a.fits(one) and b.fits(two) and a is not b and a.stands(relation, b)
                for a in shapes
                for b in shapes
            ):
                return False
        return True

    part_of = np.repeat(range(3), refshapes._SCENES)
    for text, shapes, label in sentences(task):
        part = np.flatnonzero(part_of == part_of[label])
        assert [shapes] == [scenes(0)[own] for own in part if true(text, scenes(0)[own])]
    rows = task.modality("image").rows_of(np.arange(len(task.labels)))
    assert np.array_equal(task.labels, rows)


@pytest.mark.parametrize(
    ("plain", "load"),
    [
        ("expressions", refshapes.load_refshapes_regions),
        ("answers", refshapes.load_refshapes_answers_regions),
    ],
)
def test_regions_are_those_of_a_detector_that_errs_a_bit(
    plain: str, load: Callable[[], Task]
) -> None:
    task, pictures = load(), task_of(plain)
    check_task(task)
    check_test(task)
    assert task.modality("text").data.tolist() == pictures.modality("text").data.tolist()
    assert np.array_equal(task.labels, pictures.labels)
    rows, images = task.modality("image").data, pictures.modality("image").data
    missed, found, none = 0, 0, 0
    for row, image, shapes in zip(rows, images, scenes(0), strict=True):
        regions = row[row[:, -2] > row[:, -4]]
        assert not row[row[:, -2] <= row[:, -4]].any()
        assert np.allclose(regions[:, -8:-4], regions[:, -4:] / 8 - 4, atol=1e-6)
        for region in regions if plain == "expressions" else ():
            x, y = (((region[-4:-2] + region[-2:]) / 2 + 0.5).astype(int)).tolist()
            middle = region[:108].reshape(6, 6, 3)[2:4, 2:4].reshape(4, 3) * 64 + 127.5
            near = image[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3)
            assert {*map(tuple, middle.astype(int))} <= {*map(tuple, near.tolist())}
        best = [
            max((overlap(r[-4:], np.array(shape.box)) for r in regions), default=0)
            for shape in shapes
        ]
        missed += sum(share < 0.4 for share in best)
        found += sum(share > 0.5 for share in best)
        none += len(regions) - sum(share > 0.4 for share in best)
    assert 0.02 < missed / (missed + found) < 0.08
    assert 0.6 * len(rows) < none < 1.4 * len(rows)


def test_regions_of_questions_say_what_they_are() -> None:
    rows = refshapes.load_refshapes_answers_regions().modality("image").data
    assert rows.shape[2] == sum(map(len, ATTRIBUTES)) + 8
    right = told = 0
    for row, shapes in zip(rows, scenes(0), strict=True):
        for region in row[row[:, -2] > row[:, -4]]:
            shape = max(shapes, key=lambda shape: overlap(region[-4:], np.array(shape.box)))
            if overlap(region[-4:], np.array(shape.box)) < 0.5:
                continue  # nothing in particular
            place = 0
            for words, value in zip(ATTRIBUTES, shape.words, strict=True):
                right += region[place : place + len(words)].argmax() == words.index(value)
                place += len(words)
            told += 3
    assert right / told > 0.97  # a region of nothing in particular may lie on a shape


def test_the_seed_is_the_documented_one() -> None:
    """A changed scene or sentence would make published scores incomparable."""
    digest = hashlib.sha256()
    for name in ("expressions", "answers", "captions"):
        task = task_of(name)
        digest.update("\n".join(task.modality("text").data).encode())
        digest.update(task.labels.astype("<i8").tobytes())
    digest.update(task.modality("image").data.tobytes())
    assert digest.hexdigest()[:16] == "71b534ecab5d7bbc"
