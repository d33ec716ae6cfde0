from __future__ import annotations

import pytest
from bmnas_export.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("what went wrong\npages of advice\n", "what went wrong"),
        ("\n\n  what went wrong  \n", "what went wrong"),
        ("", "ValueError"),
        ("x" * 301, "x" * 299 + "…"),
        ("x" * 300, "x" * 300),
    ],
)
def test_the_first_line_that_says_something(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
