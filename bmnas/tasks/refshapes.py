"""refshapes: sentences about scenes of coloured shapes, made from a seed; nothing is downloaded.

One set of scenes gives three tasks: ``refshapes``, which shape is meant by "the red circle just
left of the large square"; ``refshapes-answers``, questions of the same build;
``refshapes-captions``, which caption belongs to which scene. The first two are there with regions
in place of pictures, too, as from a detector; of those of questions it says what they are, for from
pixels and answers alone no network of ours learned a relation. An expression needs the words of its
shape and of its relation: another shape of the scene fits its attributes, and another one stands in
its relation. It needs its anchor too: of all that fit, the one farthest out in a direction is meant
half of the time, otherwise a nearer one of several that stand there.

Legend: S scenes, n tries.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bmnas.tasks.kinds import BOX, Array
from bmnas.tasks.shapes import ATTRIBUTES, Scenes, detect, draw_scenes, paint
from bmnas.tasks.task import Modality, Task
from bmnas.tasks.tries import CLEAR, RELATIONS, Tries, draw_tries, words_for

_SEED = 20201012
_SCENES = 9000, 375, 750  # of each part
_A_SCENE = 4  # sentences of a scene, in the mean
_MORE = 4  # than that has no scene
_AT_ONCE = 16  # tries of a scene
_ASKED = "size", "colour", "shape"
_TYPES = {"is": "yes/no", "how": "number", "what": "other"}  # of questions, as in VQA
#: Of how many shapes at a place it is asked whether and how many there are of a kind, and how many
#: those are: as many of each, so that neither the place nor the question tells the answer.
_EXIST = (1, False), (1, True), (2, False), (2, True)
_COUNTS = (1, 0), (1, 1), (2, 1), (2, 2)


def load_refshapes_answers(*, regions: bool = False) -> Task:
    """Return 36,000 / 1,500 / 3,000 questions about 9,000 / 375 / 750 scenes, and their answers.

    A third asks whether there is such a shape at such a place, a third how many, a third for the
    colour, size or form of the shape that is meant.
    """
    scenes, images, draw = _scenes(2, regions=regions, named=True)
    told = [_collect(part, _A_SCENE, draw, _QUESTIONS) for part in scenes]
    answers = sorted({answer for part in told for _, _, answer in part})
    numbers = [[answers.index(answer)] for part in told for _, _, answer in part]
    task = _task("refshapes-answers", "answers", images, told, numbers, tuple(answers))
    types = [_TYPES[text.split()[0]] for part in told for _, text, _ in part]
    return replace(task, types=np.array(types))


def load_refshapes(*, regions: bool = False) -> Task:
    """Return 36,000 / 1,500 / 3,000 expressions, each with the box of the shape that it means.

    Their types are those of their relations, a third each: a direction, a line through both shapes,
    a distance.
    """
    scenes, images, draw = _scenes(1, regions=regions)
    told = [_collect(part, _A_SCENE, draw, _EXPRESSIONS) for part in scenes]
    boxes = np.array([box for part in told for _, _, (box, _) in part], np.float32)
    types = np.array([type_ for part in told for _, _, (_, type_) in part])
    return replace(_task("refshapes", "grounding", images, told, boxes, BOX), types=types)


def load_refshapes_captions() -> Task:
    """Return 4 captions, each of two statements, of a scene, true of no other scene of its part.

    A scene without as many, such as one of shapes all alike, has fewer or none. Their labels are
    their scenes: the captions of one suit its picture all alike.
    """
    scenes, images, draw = _scenes(3)
    told = [_captions(part, draw) for part in scenes]
    return _task("refshapes-captions", "matching", images, told, None, ("match",))


#: The same with regions.
load_refshapes_regions = functools.partial(load_refshapes, regions=True)
load_refshapes_answers_regions = functools.partial(load_refshapes_answers, regions=True)


def _scenes(
    number: int, *, regions: bool = False, named: bool = False
) -> tuple[list[Scenes], Array, np.random.RandomState]:
    """Return the scenes of each part, the pictures or regions of all, and the chances of a task."""
    draw = np.random.RandomState(_SEED)
    scenes = [draw_scenes(count, draw) for count in _SCENES]
    pictures = [paint(part, draw) for part in scenes]
    if regions:
        pictures = [detect(*own, draw, named=named) for own in zip(scenes, pictures, strict=True)]
    images = np.concatenate(pictures)
    return scenes, images, np.random.RandomState(_SEED + number)


#: A sentence: the number of its scene, its words, and what else is known of it.
_Sentence = tuple[int, str, Any]


class _Teller(NamedTuple):
    """Tells of tries which ones (n,) are good, and of one of those the words and what else."""

    good: Callable[[Tries], Array]
    tell: Callable[[Tries, int], tuple[str, Any]]


def _task(
    name: str,
    kind: str,
    images: Array,
    told: list[list[_Sentence]],
    labels: Any,  # by default the scenes
    class_names: tuple[str, ...],
) -> Task:
    before = np.cumsum([0, *_SCENES])
    scene = np.array([before[part] + s for part, own in enumerate(told) for s, _, _ in own])
    texts = np.array([text for own in told for _, text, _ in own])
    regions = images.dtype == np.float32
    image = Modality("image", "regions", images, scene)
    return Task(
        name=f"{name}-regions" if regions else name,
        kind=kind,
        modalities=(
            Modality("text", "text", texts),
            image if regions else replace(image, type="image", backbone="windows"),
        ),
        labels=scene if labels is None else np.asarray(labels),
        part=np.repeat(np.arange(3), [len(own) for own in told]),
        class_names=class_names,
        licence="CC0",
    )


def _collect(
    scenes: Scenes, a_scene: int, draw: np.random.RandomState, tellers: Sequence[_Teller]
) -> list[_Sentence]:
    """Return ``a_scene`` sentences a scene in the mean, all different in a scene, scene by scene.

    Each of the ``tellers`` tells as many.
    """
    count = len(scenes.there)
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    left = np.full(len(tellers), a_scene * count // len(tellers))
    while left.any():
        waiting = [s for s in range(count) if len(found[s]) < a_scene + _MORE]
        tries = draw_tries(scenes, np.repeat(waiting, _AT_ONCE), draw)
        good = np.stack([teller.good(tries) for teller in tellers]) & (left > 0)[:, None]
        some = np.flatnonzero(good.any(0))
        # One of those that could tell it, by chance.
        tellers_of = (good[:, some] * (1 - draw.random_sample((len(tellers), len(some))))).argmax(0)
        done = set()
        for row, own in zip(some.tolist(), tellers_of.tolist(), strict=True):
            scene = int(tries.place[row])
            if scene in done or not left[own]:
                continue
            text, more = tellers[own].tell(tries, row)
            if text not in found[scene]:
                found[scene][text] = more
                done.add(scene)
                left[own] -= 1
    return [(s, text, more) for s, own in enumerate(found) for text, more in own.items()]


def _exists(standing: int, wanted: bool) -> _Teller:
    """Ask whether there is such a shape at the place of ``standing``, where that is ``wanted``."""

    def tell(tries: Tries, row: int) -> tuple[str, str]:
        text = f"is there {tries.phrase(row, 0, article=True)} {tries.where(row)}"
        return text, "yes" if wanted else "no"

    return _Teller(lambda tries: _asks_place(tries, standing) & ((tries.count > 0) == wanted), tell)


def _number(standing: int, count: int) -> _Teller:
    """Ask how many such shapes there are at the place of ``standing``, where ``count`` are."""

    def tell(tries: Tries, row: int) -> tuple[str, str]:
        return f"how many {tries.phrase(row, 0)}s are {tries.where(row)}", str(count)

    return _Teller(lambda tries: _asks_place(tries, standing) & (tries.count == count), tell)


def _asks_place(tries: Tries, standing: int) -> Array:
    """Return where the words need their relation, a direction with ``standing`` shapes."""
    found: Array = tries.related & tries.directed & (tries.standing == standing)
    return found


def _other(tries: Tries, row: int) -> tuple[str, str]:
    """Ask for an attribute of a shape that its other words do not tell."""
    asked = tries.asked[row]
    value = tries.scenes.attributes[row, tries.target[row], asked]
    text = f"what {_ASKED[asked]} is the {tries.phrase(row, 0)} {tries.where(row)}"
    return text, ATTRIBUTES[asked][value]


def _asks_other(tries: Tries) -> Array:
    """Return where what is asked for is not told, nor the same of all that fit or stand there."""
    rows, values = np.arange(len(tries.target)), tries.scenes.attributes
    own = values[rows, :, tries.asked] == values[rows, tries.target, tries.asked][:, None]
    unlike = [(shapes & ~own).any(1) for shapes in (tries.fits, tries.stands)]
    good: Array = tries.refers & ~tries.told[rows, 0, tries.asked] & unlike[0] & unlike[1]
    return good


def _expression(tries: Tries, row: int) -> tuple[str, tuple[Array, str]]:
    """Name a shape; what else is its box, and the type of the relation."""
    just = "just " if tries.directed[row] else ""
    text = f"the {tries.phrase(row, 0)} {just}{tries.where(row)}"
    type_ = "direction" if tries.directed[row] else "distance" if tries.distant[row] else "line"
    return text, (tries.scenes.boxes[row, tries.target[row]], type_)


def _captions(scenes: Scenes, draw: np.random.RandomState) -> list[_Sentence]:
    """Return captions of two statements, where one shape is from another, of no other scene."""
    count, most = scenes.there.shape
    apart = scenes.centres[:, :, None] - scenes.centres[:, None]
    size = np.abs(apart)
    axis = size.argmax(-1)
    relation = 2 * axis + (np.take_along_axis(apart, axis[..., None], -1)[..., 0] > 0)
    limits = [len(words) for words in ATTRIBUTES]
    every = *limits, 4, *limits
    one, two = (np.moveaxis(np.expand_dims(scenes.attributes, k), -1, 0) for k in (2, 1))
    code = np.ravel_multi_index(np.broadcast_arrays(*one, relation, *two), every)
    true = scenes.there[:, :, None] & scenes.there[:, None] & ~np.eye(most, dtype=np.bool_)
    plain = true & (size.max(-1) >= CLEAR * size.min(-1))
    holds = np.zeros((math.prod(every), count), np.bool_)
    holds[code[true], np.nonzero(true)[0]] = True
    bits = np.packbits(holds, axis=1)

    def statement(code: int) -> str:
        *values, relation, one, two, three = np.unravel_index(code, every)
        names = [words_for(np.array(own), article=True) for own in (values, [one, two, three])]
        return f"{names[0]} {RELATIONS[relation]} {names[1]}"

    found = []
    for scene in range(count):
        told = draw.permutation(np.unique(code[scene][plain[scene]]))
        pairs = told[draw.permutation(np.argwhere(np.triu(np.ones((len(told),) * 2), 1)))]
        left = _A_SCENE
        for some in np.array_split(pairs, len(pairs) // _AT_ONCE + 1):
            # Of how many scenes both statements of a pair are true.
            both = np.bitwise_count(bits[some[:, 0]] & bits[some[:, 1]]).sum(1)
            good = some[both == 1][:left]
            found += [(scene, " and ".join(map(statement, pair)), None) for pair in good]
            left -= len(good)
            if not left:
                break
    return found


_EXPRESSIONS = (
    _Teller(lambda tries: tries.alone, _expression),
    _Teller(lambda tries: tries.first, _expression),
    *[_Teller(lambda tries: tries.refers & ~tries.directed & ~tries.distant, _expression)] * 2,
    *[_Teller(lambda tries: tries.refers & tries.distant, _expression)] * 2,
)
_QUESTIONS = (
    *[_exists(*known) for known in _EXIST],
    *[_number(*known) for known in _COUNTS],
    *[_Teller(_asks_other, _other)] * 4,
)
