"""Sentences about scenes of shapes, before they are told: drawn by chance, most of them no good.

Legend: M shapes of a scene at most, A attributes of a shape, n tries.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bmnas.tasks.kinds import Array
from bmnas.tasks.shapes import ATTRIBUTES, Scenes

#: By the middles of shapes: four directions, a quarter of the plane each, two opposite quarters,
#: and the least and the largest distance of all that fit the words before.
RELATIONS = (
    *("left of", "right of", "above", "below"),
    *("beside", "over or under"),
    *("nearest to", "farthest from"),
)
#: How often an attribute is named, of the target and of the anchor.
_TOLD = (0.4, 0.6, 0.7), (0.8, 0.95, 0.95)
_COUNT = np.bitwise_count(np.arange(256, dtype=np.uint8))
CLEAR = 1.25  # by so much one distance has to exceed another for a relation to be plain


@dataclass(frozen=True)
class Tries:
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

    @functools.cached_property
    def directed(self) -> Array:
        """Where the relation is a direction."""
        found: Array = self.relation < 4
        return found

    @functools.cached_property
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
    def outermost(self) -> Array:
        """Where, of what fits, the target is farthest out in a direction."""
        axis, side = np.divmod(self.relation % 4, 2)
        out = self.scenes.centres[np.arange(len(axis)), :, axis] * (2 * side - 1)[:, None]
        found: Array = np.where(self.fits, out, -np.inf).argmax(1) == self.target
        return found

    @functools.cached_property
    def nearest(self) -> Array:
        """How near (n, 2) others are: of what fits and stands, and of what only stands.

        As shares of the target's own distance to the anchor.
        """
        rows, places = np.arange(len(self.target)), self.scenes.centres
        apart = places - places[rows, self.anchor][:, None]
        distance = np.hypot(*apart.transpose(2, 0, 1))
        others = self.stands.copy()
        others[rows, self.target] = False
        found = [np.where(others & fit, distance, np.inf).min(1) for fit in (self.fits, ~self.fits)]
        return np.asarray(np.stack(found, 1) / distance[rows, self.target][:, None])

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

    @functools.cached_property
    def alone(self) -> Array:
        """Where the target alone fits in a direction, with something else nearer that stands."""
        found: Array = self.refers & self.directed & self.outermost & (self.nearest[:, 1] < 1)
        return found

    @functools.cached_property
    def first(self) -> Array:
        """Where the target is the nearest of several that fit in a direction, not the outermost."""
        several = self.stands[np.arange(len(self.target)), self.target] & (self.count > 1)
        plain = self.nearest[:, 0] >= CLEAR
        found: Array = self.usable & self.directed & several & plain & ~self.outermost
        return found

    def phrase(self, row: int, what: int, *, article: bool = False) -> str:
        """Return the words for the target, ``what`` 0, or the anchor, 1."""
        shape = (self.target, self.anchor)[what][row]
        return words_for(self.scenes.attributes[row, shape], self.told[row, what], article=article)

    def where(self, row: int) -> str:
        """Return the words for where the target is."""
        return f"{RELATIONS[self.relation[row]]} the {self.phrase(row, 1)}"


def draw_tries(scenes: Scenes, places: Array, draw: np.random.RandomState) -> Tries:
    """Return tries in the scenes ``places`` (n,), those whose words fit one anchor and others."""
    slots, number = np.argsort(~scenes.there, axis=1, kind="stable"), scenes.there.sum(1)

    def named(shape: Array, often: Sequence[float]) -> tuple[Array, Array]:
        told = draw.random_sample((len(places), len(ATTRIBUTES))) < often
        return told, scenes.named[places, shape, told @ (1 << np.arange(len(ATTRIBUTES)))]

    # Two of those there are.
    chance = draw.random_sample((2, len(places)))
    first = (chance[0] * number[places]).astype(np.int64)
    other = first + 1 + (chance[1] * (number[places] - 1)).astype(np.int64)
    anchor = slots[places, first]
    told_anchor, fits_anchor = named(anchor, _TOLD[1])
    single = np.flatnonzero(_COUNT[fits_anchor] == 1)
    places, anchor, fits_anchor = places[single], anchor[single], fits_anchor[single]
    target = slots[places, other[single] % number[places]]
    told_target, fits = named(target, _TOLD[0])
    good = np.flatnonzero((_COUNT[fits] > 1) & (fits & fits_anchor == 0))
    places, target, anchor = places[good], target[good], anchor[good]
    told = np.stack([told_target[good], told_anchor[single][good]], axis=1)
    fits = np.unpackbits(fits[good, None], axis=1, bitorder="little").astype(np.bool_)
    chosen, rows = scenes.take(places), np.arange(len(good))
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
    plain = high >= CLEAR * low
    plain[rows, target] |= distant[:, 0]
    others = chosen.there.copy()
    others[rows, anchor] = False
    return Tries(
        chosen,
        places,
        target,
        anchor,
        relation,
        told,
        fits,
        others & np.where(distant, one >= two, one > two),
        plain,
        asked=np.argmax(draw.random_sample((len(good), len(ATTRIBUTES))) * ~told[:, 0], axis=1),
    )


def words_for(
    attributes: Array, told: Sequence[bool] = (True,) * 3, *, article: bool = False
) -> str:
    """Return the words for a shape of these ``attributes`` (A,), those that are ``told`` (A,)."""
    each = zip(ATTRIBUTES, attributes, told, strict=True)
    words = [names[value] for names, value, named in each if named]
    text = " ".join(words if told[-1] else [*words, "shape"])
    return f"{'an' if text[0] == 'o' else 'a'} {text}" if article else text
