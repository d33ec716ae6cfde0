"""Scenes of coloured shapes, drawn by chance from a seed: pictures, and what is in them.

Legend: S scenes, M shapes of a scene at most, A attributes of a shape: size, colour, form, D
numbers of a region.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from bmnas.tasks.kinds import Array

#: Pixels on a side of a picture.
SIDE = 64
#: What a shape can be, by attribute: A lists of words.
ATTRIBUTES = (
    ("small", "large"),
    ("red", "green", "blue", "yellow", "purple", "orange"),
    ("circle", "square", "triangle"),
)

_LEAST, _MOST = 5, 8  # shapes of a scene
_PLACES = 5, 55  # that a shape is tried at, the rest of them where it had no room
_GAP = 1  # pixels between two shapes
_SIDES = (13, 15), (19, 23)  # of a small and of a large shape, in pixels
#: Of a detector: how often it finds a shape, by how much of its side it errs, regions of nothing,
#: how often each of those is there, and pixels of a region on a side; or what it gives for a word
#: that is right, and how far that and others are from it.
_FOUND, _MOVED, _FALSE, _FALSELY, _CROP, _SURE, _UNSURE = 0.95, 0.15, 2, 0.5, 6, 2, 0.4
_COLOURS = np.array(
    [[230, 40, 40], [40, 190, 60], [50, 80, 240], [235, 220, 50], [165, 60, 200], [245, 140, 30]]
)
#: How a shape comes to be: as one before it, or as one before it but for one attribute, or anew.
_SAME, _ALIKE = 0.15, 0.8


@dataclass(frozen=True)
class Scenes:
    """What S scenes hold, up to M shapes each.

    ``there`` (S, M) tells which shapes there are, ``attributes`` (S, M, A) what they are, see
    ``ATTRIBUTES``; ``boxes`` (S, M, 4) are the first and last pixels that they cover, x1, y1, x2,
    y2.
    """

    there: Array
    attributes: Array
    boxes: Array

    @functools.cached_property
    def centres(self) -> Array:
        """The middle x, y of every shape, (S, M, 2)."""
        middles: Array = (self.boxes[..., :2] + self.boxes[..., 2:]) / np.float32(2)
        return middles

    @functools.cached_property
    def differences(self) -> Array:
        """In which attributes two shapes differ, (S, M, M) uint8: bit a is set for attribute a."""
        differ = self.attributes[:, :, None] != self.attributes[:, None]
        return np.asarray(differ @ (1 << np.arange(len(ATTRIBUTES))), np.uint8)

    @functools.cached_property
    def named(self) -> Array:
        """Which shapes words name, (S, M, 2 to the A) uint8: bit m of them is set for shape m.

        The words are those of a shape's attributes of which the last axis has the bits.
        """
        told = np.arange(1 << len(ATTRIBUTES), dtype=np.uint8)
        alike = (self.differences[:, :, None] & told[:, None]) == 0
        named: Array = np.packbits(alike & self.there[:, None, None], -1, bitorder="little")[..., 0]
        return named

    def take(self, chosen: Array) -> Scenes:
        """Return the scenes ``chosen`` (n,), in that order."""
        return Scenes(self.there[chosen], self.attributes[chosen], self.boxes[chosen])


def draw_scenes(count: int, draw: np.random.RandomState) -> Scenes:
    """Return ``count`` scenes of 5 to 8 shapes, a few fewer where there was no room.

    Shapes do not touch. Many are like another one of their scene, in all or in all but one of their
    attributes, so that a word alone rarely tells which one is meant.
    """
    attributes = _attributes(count, draw)
    sides = np.take(_SIDES, attributes[..., 0], axis=0)
    sides = sides[..., 0] + draw.randint(0, sides[..., 1] - sides[..., 0] + 1)
    number = draw.randint(_LEAST, _MOST + 1, count)
    wanted = np.arange(_MOST) < number[:, None]
    boxes, there = _placed(np.where(wanted, sides, SIDE), draw)
    there &= wanted
    boxes[~there] = 0
    return Scenes(there, attributes, boxes)


def paint(scenes: Scenes, draw: np.random.RandomState) -> Array:
    """Return the pictures (S, 64, 64, 3) uint8: shapes of varying light on noisy grey."""
    count = len(scenes.there)
    grey = draw.randint(60, 140, (count, 1, 1, 1), dtype=np.uint8)
    noise = np.frombuffer(draw.bytes(count * SIDE * SIDE * 3), np.uint8) % 24
    images = grey + noise.reshape(count, SIDE, SIDE, 3)
    light = 0.75 + 0.25 * draw.random_sample(scenes.there.shape)
    colours = (_COLOURS[scenes.attributes[..., 1]] * light[..., None]).astype(np.uint8)
    place = np.argwhere(scenes.there)
    x1, y1, x2, _ = scenes.boxes[scenes.there].T
    looks = np.stack([scenes.attributes[scenes.there][:, 2], x2 - x1 + 1], axis=1)
    alike, which = np.unique(looks, axis=0, return_inverse=True)
    for number, (form, side) in enumerate(alike.tolist()):
        own = np.flatnonzero(which == number)
        y, x = (inside[None] for inside in np.nonzero(_inside(form, side)))
        scene, shape = place[own].T[..., None]
        images[scene, y1[own, None] + y, x1[own, None] + x] = colours[scene, shape]
    return images


def detect(
    scenes: Scenes, images: Array, draw: np.random.RandomState, *, named: bool = False
) -> Array:
    """Return regions (S, M + 2, D + 4) float32 of the pictures, as from a detector that errs a bit.

    A shape in twenty is not found, corners are up to 15 % of its side away, and up to two
    regions are of nothing in particular; they come in any order, rows of 0 fill up. A region has
    6 x 6 pixels of its picture, from -2 to 2, or, where it is ``named``, how sure the detector is
    of each word for size, colour and form, near 2 of the right ones and near 0 of others; then its
    corners, from -4 to 4, and its corners in pixels.
    """
    count, most = scenes.there.shape
    boxes = np.zeros((count, most + _FALSE, 4))
    side = (scenes.boxes[..., 2:3] - scenes.boxes[..., :1] + 1).astype(float)
    boxes[:, :most] = scenes.boxes + _MOVED * side * draw.uniform(-1, 1, (count, most, 4))
    size = draw.uniform(_SIDES[0][0], _SIDES[1][1], (count, _FALSE, 2))
    corner = draw.random_sample((count, _FALSE, 2)) * (SIDE - size)
    boxes[:, most:] = np.concatenate([corner, corner + size - 1], axis=-1)
    found = draw.random_sample(boxes.shape[:2]) < (_FOUND,) * most + (_FALSELY,) * _FALSE
    found[:, :most] &= scenes.there
    boxes = np.where(found[..., None], boxes.clip(0, SIDE - 1), 0)
    order = np.argsort(draw.random_sample(found.shape), axis=1)[..., None]
    boxes = np.take_along_axis(boxes, order, 1).astype(np.float32)
    looks = np.take_along_axis(_named(scenes, draw), order, 1) if named else _pixels(boxes, images)
    places = boxes * (8 / SIDE) - 4
    rows = np.concatenate([looks, places, boxes], axis=-1, dtype=np.float32)
    rows[~np.take_along_axis(found, order[..., 0], 1)] = 0
    return rows


def _pixels(boxes: Array, images: Array) -> Array:
    """Return the pixels nearest to the middles of 6 x 6 cells of each region, (S, M + 2, 108)."""
    part = (np.arange(_CROP) + 0.5) / _CROP
    x, y = (
        (boxes[..., axis, None] * (1 - part) + boxes[..., axis + 2, None] * part + 0.5).astype(int)
        for axis in (0, 1)
    )
    seen = images[np.arange(len(boxes))[:, None, None, None], y[..., None], x[..., None, :]]
    pixels: Array = (seen.reshape(*boxes.shape[:2], -1).astype(np.float32) - 127.5) / 64
    return pixels


def _named(scenes: Scenes, draw: np.random.RandomState) -> Array:
    """Return how sure a detector is of each word, of shapes and of nothing, (S, M + 2, 11)."""
    count, most = scenes.there.shape
    limits = [len(words) for words in ATTRIBUTES]
    taken_for = draw.randint(0, limits, (count, most + _FALSE, len(limits)))
    taken_for[:, :most] = scenes.attributes
    right = [np.eye(limit)[taken_for[..., a]] for a, limit in enumerate(limits)]
    sure = _SURE * np.concatenate(right, axis=-1)
    return np.asarray(sure + draw.normal(0, _UNSURE, sure.shape))


def _attributes(count: int, draw: np.random.RandomState) -> Array:
    """Return what every shape is, (S, M, A)."""
    limits = [len(words) for words in ATTRIBUTES]
    found = draw.randint(0, limits, (count, _MOST, len(limits)))
    for place in range(1, _MOST):
        other = found[np.arange(count), draw.randint(0, place, count)]
        how, changed = draw.random_sample(count), draw.randint(0, len(limits), count)
        new = np.arange(len(limits)) == changed[:, None]
        kept = (how < _SAME)[:, None] | ((how < _ALIKE)[:, None] & ~new)
        found[:, place] = np.where(kept, other, found[:, place])
    return found


def _placed(sides: Array, draw: np.random.RandomState) -> tuple[Array, Array]:
    """Return boxes (S, M, 4) of shapes of these ``sides`` (S, M), and which found room (S, M)."""
    count, most = sides.shape
    boxes = np.zeros((count, most, 4), np.int16)
    there = np.zeros((count, most), np.bool_)
    # The largest first: it is hard to find room for them later.
    for place in np.argsort(-sides, axis=1, kind="stable").T:
        scene = np.flatnonzero(sides[np.arange(count), place] < SIDE)
        for tries in _PLACES:
            own = place[scene]
            side = sides[scene, own][:, None, None]
            corners = (draw.random_sample((len(scene), tries, 2)) * (SIDE - side + 1)).astype(int)
            tried = np.concatenate([corners, corners + side - 1], -1, dtype=np.int16)[:, :, None]
            apart = (tried[..., :2] > boxes[scene, None, :, 2:] + _GAP) | (
                tried[..., 2:] < boxes[scene, None, :, :2] - _GAP
            )
            free = np.all(apart[..., 0] | apart[..., 1] | ~there[scene, None], axis=-1)
            found = np.any(free, axis=1)
            boxes[scene[found], own[found]] = tried[found, free[found].argmax(1), 0]
            there[scene[found], own[found]] = True
            scene = scene[~found]
    return boxes, there


@functools.cache
def _inside(form: int, side: int) -> Array:
    """Return which pixels (side, side) of its box a shape covers; it touches all four sides."""
    y, x = np.mgrid[:side, :side] + 0.5
    across = np.abs(x - side / 2)
    if ATTRIBUTES[2][form] == "circle":
        covered = across**2 + (y - side / 2) ** 2 <= (side / 2) ** 2
    elif ATTRIBUTES[2][form] == "triangle":
        covered = across <= (y + 0.5) / 2
    else:
        covered = np.ones((side, side), np.bool_)
    return np.asarray(covered)
