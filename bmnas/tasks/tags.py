"""Labels that are lists of names, for tasks with several labels a sample.

Legend: n samples, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bmnas.machine.errors import UserError, few
from bmnas.tasks.kinds import Array

_SEPARATORS = "|", ";", ","


def tag_matrix(
    labels: Array, seen: Array, names: Sequence[str] | None, separator: str | None
) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    """Return the 0/1 matrix (n, K), the classes, and remarks.

    ``labels`` are strings (n,) of tags with ``separator`` between them, or (n, most) with empty
    ones. Classes are ``names``, or the tags of the samples ``seen`` (n,), by the alphabet; what
    other samples have beyond them is left out, and remarked. Raises UserError without a separator,
    and for tags that are none of ``names``, all at once.
    """
    if labels.ndim == 1 and separator is None:
        found = next((s for s in _SEPARATORS if any(s in str(tags) for tags in labels)), "|")
        example = next((tags for tags in labels.tolist() if found in tags), labels[0])
        raise UserError(
            f"received strings such as {str(example)[:60]!r}, expected a 0/1 matrix, or the key "
            f"separator for lists of tags: separator = {found!r}"
        )
    rows = [
        {tag.strip() for tag in (tags.split(separator) if labels.ndim == 1 else tags)} - {""}
        for tags in labels.tolist()
    ]
    known = {tag for row, one in zip(rows, seen.tolist(), strict=True) if one for tag in row}
    classes = tuple(sorted(known) if names is None else names)
    numbers = {name: number for number, name in enumerate(classes)}
    matrix = np.zeros((len(rows), len(classes)), np.float32)
    others: dict[str, int] = {}
    for number, row in enumerate(rows):
        for tag in row:
            if tag in numbers:
                matrix[number, numbers[tag]] = 1
            else:
                others.setdefault(tag, number)
    if not others:
        return matrix, classes, ()
    told = few((f"{tag!r} (row {row})" for tag, row in sorted(others.items())), 20)
    if names is not None:
        raise UserError(f"received {told}, expected tags of class_names: {few(classes, 8)}")
    return matrix, classes, (f"tags that no train sample has are left out: {told}",)
