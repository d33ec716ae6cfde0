from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bmnas_serve.errors import shorten


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\nb", '"a\\nb"'),
        ([1, [2.5, None], {"a": True}], '[1, [2.5, null], {"a": true}]'),
        ([0] * 17, "a list of 17 items"),
        ({str(n): n for n in range(17)}, "an object of 17 items"),
        (np.arange(300), "a list of 300 numbers"),
        ("a" * 100, '"' + "a" * 78 + "…"),
        pytest.param(10**5000, "int", id="more digits than Python writes"),
    ],
)
def test_values_are_shortened(value, expected):
    assert shorten(value) == expected


def test_no_more_of_a_value_is_read_than_is_shown():
    read: list[int] = []

    class Numbers(list[Any]):
        def __iter__(self) -> Any:
            for number in range(len(self)):
                read.append(number)
                yield number

    text = shorten([Numbers([0] * 1_000_000)])
    assert (len(text), text[:12]) == (80, "[[0, 1, 2, 3")
    assert len(read) < 80
