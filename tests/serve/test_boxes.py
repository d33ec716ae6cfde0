"""Boxes of pictures and of the rows made of them: against pixels that were really resized."""

from __future__ import annotations

import io

import numpy as np
import pytest
from bmnas_serve.boxes import in_pictures, in_rows
from bmnas_serve.sources import Pictures

pillow = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize(
    "pictures",
    [
        Pictures(64, 48),
        Pictures(64, 48, "pad"),
        Pictures(48, 64, "squeeze"),
        Pictures(48, 48, resize=(56,)),
        Pictures(48, 48, resize=(56, 60)),
        Pictures(80, 80, resize=(56,)),
    ],
)
def test_a_box_is_where_its_pixels_are(pictures: Pictures) -> None:
    draw = np.random.default_rng(0)
    for height, width in draw.integers(60, 300, (20, 2)):
        box = np.array([[width * 4 // 10, height * 4 // 10, width * 6 // 10, height * 6 // 10]])
        x1, y1, x2, y2 = box[0]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y1 : y2 + 1, x1 : x2 + 1] = 255
        file = io.BytesIO()
        pillow.fromarray(pixels).save(file, "PNG")
        file.seek(0)
        there = np.argwhere(pictures.decode(file)[..., 0] > 127)[:, ::-1]
        found = in_rows(pictures, box, [(height, width)])
        np.testing.assert_allclose(found[0], [*there.min(0), *there.max(0)], atol=0.51)
        back = in_pictures(pictures, found, [(height, width)])
        np.testing.assert_allclose(back, box, atol=1e-9)


def test_boxes_end_where_rows_and_pictures_do() -> None:
    wide = [(10, 40)]
    # Of which the middle is cut out.
    assert in_rows(Pictures(10, 10), np.array([[0, 2, 39, 5]]), wide).tolist() == [[0, 2, 9, 5]]
    # Padded above and below.
    padded = Pictures(40, 40, "pad")
    assert in_pictures(padded, np.array([[0, 0, 39, 39]]), wide).tolist() == [[0, 0, 39, 9]]
