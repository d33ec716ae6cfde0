"""refshapes: sentences about scenes of coloured shapes, made from a seed; nothing is downloaded.

One set of scenes gives three tasks: ``refshapes``, which shape is meant by "the red circle left of
the large square"; ``refshapes-answers``, questions of the same build; ``refshapes-captions``, which
caption belongs to which scene. An expression needs the words of its shape and of its relation:
another shape of the scene fits its attributes, and another one stands in its relation. It needs its
anchor too, but for directions, where what fits and is farthest out is mostly what is meant.

Legend: S scenes, M shapes of a scene at most, A attributes of a shape, n tries.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bmnas.tasks.kinds import BOX, Array
from bmnas.tasks.shapes import ATTRIBUTES, Scenes, draw_scenes, paint
from bmnas.tasks.task import Modality, Task

#: By the middles of shapes: four directions, a quarter of the plane each, two opposite quarters,
#: and the least and the largest distance of all that fit the words before.
RELATIONS = (
    *("left of", "right of", "above", "below"),
    *("beside", "over or under"),
    *("nearest to", "farthest from"),
)
_SEED = 20201012
_SCENES = 3000, 375, 750  # of each part
_A_SCENE = 4  # sentences of a scene, in the mean
_MORE = 4  # than that has no scene
_AT_ONCE = 16  # tries of a scene
#: How often an attribute is named, of the target and of the anchor.
_TOLD = (0.4, 0.6, 0.7), (0.8, 0.95, 0.95)
_CLEAR = 1.25  # by so much one distance has to exceed another for a relation to be plain
_ASKED = "size", "colour", "shape"
_TYPES = {"is": "yes/no", "how": "number", "what": "other"}  # of questions, as in VQA
#: Of how many shapes at a place it is asked whether and how many there are of a kind, and how many
#: those are: as many of each, so that neither the place nor the question tells the answer.
_EXIST = (1, False), (1, True), (2, False), (2, True)
_COUNTS = (1, 0), (1, 1), (2, 1), (2, 2)


@dataclass(frozen=True)
class _Tries:
    """Shapes, relations and words by chance, for a sentence each.

    The ``target`` (n,) is to stand in ``relation`` to the ``anchor``, in a scene of number
    ``place``; ``told`` (n, 2, A) are the attributes that are named of both. Of the shapes (n, M),
    ``fits`` are those that the target's words name, ``stands`` those that stand as the target
    should, ``plain`` those for which that is beyond doubt. ``asked`` (n,) is an attribute that is
    not told if there is one.
    """

    scenes: Scenes
    place: Array
    target: Array
    anchor: Array
    relation: Array
    told: Array
    fits: Array
    stands: Array
    plain: Array
    asked: Array

    @property
    def directed(self) -> Array:
        """Where the relation is a direction."""
        found: Array = self.relation < 4
        return found

    @property
    def distant(self) -> Array:
        """Where the relation is one of distances."""
        found: Array = self.relation >= len(RELATIONS) - 2
        return found

    @functools.cached_property
    def related(self) -> Array:
        """Where the words of the target need the relation, and it is plain."""
        unclear = (self.fits & ~self.plain).any(1)
        return np.asarray(~unclear & (self.fits & ~self.stands).any(1))

    @functools.cached_property
    def usable(self) -> Array:
        """Where the words of the target and its relation need each other."""
        return np.asarray(self.related & (self.stands & ~self.fits).any(1))

    @functools.cached_property
    def count(self) -> Array:
        """How many shapes (n,) fit the target's words and stand as it should."""
        number: Array = (self.fits & self.stands).sum(1)
        return number

    @functools.cached_property
    def standing(self) -> Array:
        """How many shapes (n,) stand as the target should."""
        number: Array = self.stands.sum(1)
        return number

    @functools.cached_property
    def refers(self) -> Array:
        """Where the sentence means the target alone."""
        rows = np.arange(len(self.target))
        alone = self.stands[rows, self.target] & (self.count == 1)
        found: Array = self.usable & alone
        return found

    def phrase(self, row: int, what: int, *, article: bool = False) -> str:
        """Return the words for the target, ``what`` 0, or the anchor, 1."""
        shape = (self.target, self.anchor)[what][row]
        return _words(self.scenes.attributes[row, shape], self.told[row, what], article=article)

    def where(self, row: int) -> str:
        """Return the words for where the target is."""
        return f"{RELATIONS[self.relation[row]]} the {self.phrase(row, 1)}"


def load_refshapes_answers() -> Task:
    """Return 12,000 / 1,500 / 3,000 questions about 3,000 / 375 / 750 scenes, and their answers.

    A third asks whether there is such a shape at such a place, a third how many, a third for the
    colour, size or form of the shape that is meant.
    """
    scenes, images, draw = _scenes(2)
    told = [_collect(part, _A_SCENE, draw, _QUESTIONS) for part in scenes]
    answers = sorted({answer for part in told for _, _, answer in part})
    numbers = [[answers.index(answer)] for part in told for _, _, answer in part]
    task = _task("refshapes-answers", "answers", images, told, numbers, tuple(answers))
    types = [_TYPES[text.split()[0]] for part in told for _, text, _ in part]
    return replace(task, types=np.array(types))


def load_refshapes() -> Task:
    """Return 12,000 / 1,500 / 3,000 expressions, each with the box of the shape that it means.

    Their types are those of their relations, a third each: a direction, a line through both shapes,
    a distance.
    """
    scenes, images, draw = _scenes(1)
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


def _scenes(number: int) -> tuple[list[Scenes], Array, np.random.RandomState]:
    """Return the scenes of each part, the pictures of all, and the chances of a task."""
    draw = np.random.RandomState(_SEED)
    scenes = [draw_scenes(count, draw) for count in _SCENES]
    images = np.concatenate([paint(part, draw) for part in scenes])
    return scenes, images, np.random.RandomState(_SEED + number)


#: A sentence: the number of its scene, its words, and what else is known of it.
_Sentence = tuple[int, str, Any]


class _Teller(NamedTuple):
    """Tells of tries which ones (n,) are good, and of one of those the words and what else."""

    good: Callable[[_Tries], Array]
    tell: Callable[[_Tries, int], tuple[str, Any]]


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
    return Task(
        name=name,
        kind=kind,
        modalities=(
            Modality("text", "text", np.array([text for own in told for _, text, _ in own])),
            Modality("image", "image", images, scene, backbone="windows"),
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
    left = [a_scene * count // len(tellers)] * len(tellers)
    while any(left):
        waiting = [s for s in range(count) if len(found[s]) < a_scene + _MORE]
        tries = _tries(scenes, np.repeat(waiting, _AT_ONCE), draw)
        number = draw.choice(np.flatnonzero(left), len(tries.place))
        good = np.stack([teller.good(tries) for teller in tellers])
        done = set()
        for row in np.flatnonzero(good[number, np.arange(len(number))]).tolist():
            scene, own = int(tries.place[row]), int(number[row])
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

    def tell(tries: _Tries, row: int) -> tuple[str, str]:
        text = f"is there {tries.phrase(row, 0, article=True)} {tries.where(row)}"
        return text, "yes" if wanted else "no"

    return _Teller(lambda tries: _asks_place(tries, standing) & ((tries.count > 0) == wanted), tell)


def _number(standing: int, count: int) -> _Teller:
    """Ask how many such shapes there are at the place of ``standing``, where ``count`` are."""

    def tell(tries: _Tries, row: int) -> tuple[str, str]:
        return f"how many {tries.phrase(row, 0)}s are {tries.where(row)}", str(count)

    return _Teller(lambda tries: _asks_place(tries, standing) & (tries.count == count), tell)


def _asks_place(tries: _Tries, standing: int) -> Array:
    """Return where the words need their relation, a direction with ``standing`` shapes."""
    found: Array = tries.related & tries.directed & (tries.standing == standing)
    return found


def _other(tries: _Tries, row: int) -> tuple[str, str]:
    """Ask for an attribute of a shape that its other words do not tell."""
    asked = tries.asked[row]
    value = tries.scenes.attributes[row, tries.target[row], asked]
    text = f"what {_ASKED[asked]} is the {tries.phrase(row, 0)} {tries.where(row)}"
    return text, ATTRIBUTES[asked][value]


def _asks_other(tries: _Tries) -> Array:
    """Return where what is asked for is not told, nor the same of all that fit or stand there."""
    rows, values = np.arange(len(tries.target)), tries.scenes.attributes
    own = values[rows, :, tries.asked] == values[rows, tries.target, tries.asked][:, None]
    unlike = [(shapes & ~own).any(1) for shapes in (tries.fits, tries.stands)]
    good: Array = tries.refers & ~tries.told[rows, 0, tries.asked] & unlike[0] & unlike[1]
    return good


def _expression(tries: _Tries, row: int) -> tuple[str, tuple[Array, str]]:
    """Name a shape; what else is its box, and the type of the relation."""
    text = f"the {tries.phrase(row, 0)} {tries.where(row)}"
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
    plain = true & (size.max(-1) >= _CLEAR * size.min(-1))
    holds = np.zeros((math.prod(every), count), np.float32)
    holds[code[true], np.nonzero(true)[0]] = 1

    def statement(code: int) -> str:
        *values, relation, one, two, three = np.unravel_index(code, every)
        names = [_words(np.array(own), article=True) for own in (values, [one, two, three])]
        return f"{names[0]} {RELATIONS[relation]} {names[1]}"

    found = []
    for scene in range(count):
        told = draw.permutation(np.unique(code[scene][plain[scene]]))
        scenes_of = holds[told] @ holds[told].T  # how many scenes two statements are true of
        pairs = draw.permutation(np.argwhere(np.triu(scenes_of == 1, 1)))[:_A_SCENE]
        found += [(scene, " and ".join(map(statement, told[pair])), None) for pair in pairs]
    return found


_EXPRESSIONS = (
    _Teller(lambda tries: tries.refers & tries.directed, _expression),
    _Teller(lambda tries: tries.refers & ~tries.directed & ~tries.distant, _expression),
    _Teller(lambda tries: tries.refers & tries.distant, _expression),
)
_QUESTIONS = (
    *[_exists(*known) for known in _EXIST],
    *[_number(*known) for known in _COUNTS],
    *[_Teller(_asks_other, _other)] * 4,
)


def _tries(scenes: Scenes, places: Array, draw: np.random.RandomState) -> _Tries:
    """Return tries in the scenes ``places`` (n,), those whose words fit one anchor and others."""
    there = scenes.there[places]
    # Two of those there are.
    order = np.argsort(draw.random_sample(there.shape) * there, axis=1)
    told = draw.random_sample((len(places), 2, len(ATTRIBUTES))) < _TOLD
    words = [_named(scenes, places, order[:, -1 - what], told[:, what]) for what in (0, 1)]
    single = words[1].sum(1) == 1
    good = np.flatnonzero(single & (words[0].sum(1) > 1) & ~(words[0] & words[1]).any(1))
    chosen, fits = scenes.take(places[good]), words[0][good]
    rows, target, anchor = np.arange(len(good)), order[good, -1], order[good, -2]
    apart = chosen.centres - chosen.centres[rows, anchor][:, None]
    own = apart[rows, target]
    axis = np.abs(own).argmax(1)
    # Half of the directions are the one that the target is in.
    relation = draw.randint(0, len(RELATIONS), len(good))
    true = (relation < 4) & (draw.random_sample(len(good)) < 0.5)
    relation = np.where(true, 2 * axis + (own[rows, axis] > 0), relation)
    axis = np.where(relation < 4, relation // 2, relation % 2)
    sign = (2 * (relation % 2) - 1)[:, None]
    along, across = apart[rows, :, axis], np.abs(apart[rows, :, 1 - axis])
    along = np.where(relation[:, None] < 4, sign * along, np.abs(along))
    # What is compared: two differences of a shape, or two distances, its own and the target's.
    distant = (relation >= len(RELATIONS) - 2)[:, None]
    far = sign * np.hypot(*apart.transpose(2, 0, 1))
    one, two = np.where(distant, far, along), np.where(distant, far[rows, target][:, None], across)
    high, low = np.maximum(np.abs(one), np.abs(two)), np.minimum(np.abs(one), np.abs(two))
    plain = high >= _CLEAR * low
    plain[rows, target] |= distant[:, 0]
    others = chosen.there.copy()
    others[rows, anchor] = False
    return _Tries(
        chosen,
        places[good],
        target,
        anchor,
        relation,
        told[good],
        fits,
        others & np.where(distant, one >= two, one > two),
        plain,
        asked=np.argmax(draw.random_sample((len(good), len(ATTRIBUTES))) * ~told[good, 0], axis=1),
    )


def _words(attributes: Array, told: Sequence[bool] = (True,) * 3, *, article: bool = False) -> str:
    """Return the words for a shape of these ``attributes`` (A,), those that are ``told`` (A,)."""
    each = zip(ATTRIBUTES, attributes, told, strict=True)
    words = [names[value] for names, value, named in each if named]
    text = " ".join(words if told[-1] else [*words, "shape"])
    return f"{'an' if text[0] == 'o' else 'a'} {text}" if article else text


def _named(scenes: Scenes, places: Array, shape: Array, told: Array) -> Array:
    """Return which shapes (n, M) of ``places`` (n,) have what is ``told`` (n, A) of ``shape``."""
    bits = told @ (1 << np.arange(len(ATTRIBUTES)))
    differ = scenes.differences[places, shape] & bits[:, None].astype(np.uint8)
    found: Array = (differ == 0) & scenes.there[places]
    return found
