"""Scenes of coloured shapes, drawn by chance from a seed: pictures, and what is in them.

Legend: S scenes, M shapes of a scene at most, A attributes of a shape: size, colour, form.
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
_PLACES = 60  # that a shape is tried at
_GAP = 1  # pixels between two shapes
_SIDES = (13, 15), (19, 23)  # of a small and of a large shape, in pixels
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
        middles: Array = (self.boxes[..., :2] + self.boxes[..., 2:]) / 2
        return middles

    @functools.cached_property
    def differences(self) -> Array:
        """In which attributes two shapes differ, (S, M, M) uint8: bit a is set for attribute a."""
        differ = self.attributes[:, :, None] != self.attributes[:, None]
        return np.asarray(differ @ (1 << np.arange(len(ATTRIBUTES))), np.uint8)

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
    images = grey + draw.randint(0, 24, (count, SIDE, SIDE, 3), dtype=np.uint8)
    light = 0.75 + 0.25 * draw.random_sample(scenes.there.shape)
    colours = (_COLOURS[scenes.attributes[..., 1]] * light[..., None]).astype(np.uint8)
    for scene, shape in np.argwhere(scenes.there):
        x1, y1, x2, y2 = scenes.boxes[scene, shape]
        inside = _inside(int(scenes.attributes[scene, shape, 2]), int(x2 - x1 + 1))
        images[scene, y1 : y2 + 1, x1 : x2 + 1][inside] = colours[scene, shape]
    return images


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
    boxes = np.zeros((count, most, 4), np.int64)
    there = np.zeros((count, most), np.bool_)
    scene = np.arange(count)
    # The largest first: it is hard to find room for them later.
    for place in np.argsort(-sides, axis=1, kind="stable").T:
        side = sides[scene, place][:, None]
        corners = (draw.random_sample((count, _PLACES, 2)) * (SIDE - side + 1)[..., None]).astype(
            np.int64
        )
        tried = np.concatenate([corners, corners + side[..., None] - 1], axis=-1)[:, :, None]
        apart = (tried[..., :2] > boxes[:, None, :, 2:] + _GAP) | (
            tried[..., 2:] < boxes[:, None, :, :2] - _GAP
        )
        free = (apart.any(-1) | ~there[:, None]).all(-1) & (side < SIDE)
        boxes[scene, place] = tried[scene, free.argmax(1), 0]
        there[scene, place] = free.any(1)
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
