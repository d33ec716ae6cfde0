"""The genotype: a fusion architecture as plain data, the one thing search and network share.

Standard library only. A genotype names the features that exist, and for every Cell its two
inputs and its steps (BM-NAS, sections 3.2 and 3.3). Files carry it as JSON, see ``Genotype.load``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmnas.errors import UserError
from bmnas.files import read_json, write_text

FORMAT = "bmnas.genotype/1"

#: The pool of primitive operations (Eq. 4 to 8), in the order of the gamma logits.
PRIMITIVES = ("zero", "sum", "attention", "linear_glu", "concat_fc")

_LIMIT = 1_000_000  # bytes; a genotype of ten Cells takes about two thousand
_FEATURE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+")


class GenotypeError(UserError):
    """A genotype is malformed; the message names the file, the place, the find, the need."""


@dataclass(frozen=True)
class Step:
    """One primitive operation; ``inputs`` name ``x``, ``y`` or earlier steps (``step1``, …)."""

    op: str
    inputs: tuple[str, str]


@dataclass(frozen=True)
class Cell:
    """Two inputs, features or earlier Cells (``cell1``, …), and the steps that fuse them."""

    inputs: tuple[str, str]
    steps: tuple[Step, ...]

    def live_steps(self) -> tuple[int, ...]:
        """Return the numbers (from 0) of the steps that are not ``zero``."""
        return tuple(m for m, step in enumerate(self.steps) if step.op != "zero")

    def reads_y(self) -> bool:
        """Tell whether any step that is not ``zero`` reads y; x is always read (residual)."""
        return any("y" in self.steps[m].inputs for m in self.live_steps())


@dataclass(frozen=True)
class Genotype:
    """A fusion architecture over ``features``, with C ``channels`` and length L ``length``.

    Raises GenotypeError when it breaks a rule of the specification: unknown operations or
    inputs, a reference to something later, a Cell both of whose inputs were taken before.
    """

    features: tuple[str, ...]
    channels: int
    length: int
    cells: tuple[Cell, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        _check(self)

    def live_features(self) -> tuple[str, ...]:
        """Return the features that a Cell really reads, in node order.

        A feature that only ``zero`` steps would read is dropped with them.
        """
        read = {cell.inputs[0] for cell in self.cells}
        read |= {cell.inputs[1] for cell in self.cells if cell.reads_y()}
        return tuple(name for name in self.features if name in read)

    def to_dict(self) -> dict[str, Any]:
        """Return the genotype as JSON-ready plain data in the format of the file."""
        return {
            "format": FORMAT,
            "features": list(self.features),
            "channels": self.channels,
            "length": self.length,
            "cells": [
                {
                    "inputs": list(cell.inputs),
                    "steps": [{"op": s.op, "inputs": list(s.inputs)} for s in cell.steps],
                }
                for cell in self.cells
            ],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: Any, source: str = "genotype") -> Genotype:
        """Build a genotype from plain data; ``source`` is named in messages.

        Raises GenotypeError on anything that is not exactly the documented format.
        """
        try:
            return _genotype(data)
        except GenotypeError as error:
            raise GenotypeError(f"{source}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Genotype:
        """Read a genotype file; raises GenotypeError with one line that names the file."""
        try:
            data = read_json(Path(path), limit=_LIMIT)
        except UserError as error:
            raise GenotypeError(f"{error}; expected a {FORMAT} file") from error
        return cls.from_dict(data, str(path))

    def to_json(self) -> str:
        """Return the text of the genotype's file."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the genotype's file, whole or not at all."""
        write_text(Path(path), self.to_json())


#: The steps of known fusion modules: DARTS' sum, MFAS' concatenation, Transformer, AoANet.
FUSION_MODULES: Mapping[str, tuple[Step, ...]] = {
    "sum": (Step("sum", ("x", "y")),),
    "concat_fc": (Step("concat_fc", ("x", "y")),),
    "mha2": (Step("attention", ("x", "y")), Step("attention", ("x", "y"))),
    "aoa": (Step("attention", ("x", "y")), Step("linear_glu", ("x", "step1"))),
}


#: Cells that the paper found, those that it tells in words: MM-IMDB's Image_2 and Text_0 by
#: ConcatFC, then that Cell and Text_0 by LinearGLU. Here ``x`` and ``y`` are the two features.
#: The Cells of NTU and EgoGesture are published as pictures alone.
FOUND_CELLS: Mapping[str, tuple[Cell, ...]] = {
    "mmimdb": (
        Cell(("x", "y"), (Step("concat_fc", ("x", "y")),)),
        Cell(("y", "cell1"), (Step("linear_glu", ("x", "y")),)),
    ),
}


def known_genotype(name: str, features: Sequence[str], *, channels: int, length: int) -> Genotype:
    """Return a known fusion module, or Cells that the paper found, over two ``features``.

    Raises UserError when ``name`` is in neither ``FUSION_MODULES`` nor ``FOUND_CELLS``.
    """
    modules = {module: (Cell(("x", "y"), steps),) for module, steps in FUSION_MODULES.items()}
    known = {**modules, **FOUND_CELLS}
    if name not in known:
        raise UserError(f"received genotype {name!r}, expected one of {', '.join(known)}")
    x, y = features
    nodes = {"x": x, "y": y}
    cells = []
    for cell in known[name]:
        first, second = (nodes.get(node, node) for node in cell.inputs)
        cells.append(Cell((first, second), cell.steps))
    return Genotype((x, y), channels, length, tuple(cells))


def _check(genotype: Genotype) -> None:
    for name in ("channels", "length"):
        value = getattr(genotype, name)
        if type(value) is not int or not 1 <= value <= 65536:
            raise _wrong(name, value, "an integer from 1 to 65536")
    _check_features(genotype.features)
    if not genotype.cells:
        raise _wrong("cells", [], "at least one Cell")
    nodes = set(genotype.features)
    taken: set[str] = set()
    for k, cell in enumerate(genotype.cells):
        place = f"cells[{k}].inputs"
        _check_pair(cell.inputs, nodes, place, "a feature or an earlier Cell")
        if taken.issuperset(cell.inputs):
            expected = "at least one input that no earlier Cell has taken"
            raise _wrong(place, list(cell.inputs), expected)
        taken.update(cell.inputs)
        nodes.add(f"cell{k + 1}")
        _check_steps(cell.steps, f"cells[{k}].steps")


def _check_features(features: Sequence[str]) -> None:
    if len(features) < 2:
        raise _wrong("features", list(features), "at least two features")
    for f, name in enumerate(features):
        if not _FEATURE.fullmatch(name):
            raise _wrong(f"features[{f}]", name, "a name such as 'image.1'")
    if len(set(features)) < len(features):
        raise _wrong("features", list(features), "names that differ")


def _check_steps(steps: Sequence[Step], place: str) -> None:
    if not steps:
        raise _wrong(place, [], "at least one step")
    nodes = {"x", "y"}
    for m, step in enumerate(steps):
        if step.op not in PRIMITIVES:
            raise _wrong(f"{place}[{m}].op", step.op, f"one of {', '.join(PRIMITIVES)}")
        _check_pair(step.inputs, nodes, f"{place}[{m}].inputs", "x, y or an earlier step")
        nodes.add(f"step{m + 1}")


def _check_pair(inputs: Sequence[str], nodes: set[str], place: str, expected: str) -> None:
    if len(inputs) != 2 or inputs[0] == inputs[1]:
        raise _wrong(place, list(inputs), "two different names")
    for name in inputs:
        if name not in nodes:
            raise _wrong(place, name, f"{expected}: {', '.join(sorted(nodes))}")


def _genotype(data: Any) -> Genotype:
    required = ("format", "features", "channels", "length", "cells")
    top = _object(data, "", required, optional=("provenance",))
    if top["format"] != FORMAT:
        raise _wrong("format", top["format"], repr(FORMAT))
    cells = _list(top["cells"], "cells")
    return Genotype(
        features=tuple(_strings(top["features"], "features")),
        channels=top["channels"],
        length=top["length"],
        cells=tuple(_cell(cell, f"cells[{k}]") for k, cell in enumerate(cells)),
        provenance=_provenance(top.get("provenance", {})),
    )


def _cell(data: Any, place: str) -> Cell:
    cell = _object(data, place, required=("inputs", "steps"))
    steps = _list(cell["steps"], f"{place}.steps")
    return Cell(
        _pair(cell["inputs"], f"{place}.inputs"),
        tuple(_step(step, f"{place}.steps[{m}]") for m, step in enumerate(steps)),
    )


def _step(data: Any, place: str) -> Step:
    step = _object(data, place, required=("op", "inputs"))
    if not isinstance(step["op"], str):
        raise _wrong(f"{place}.op", step["op"], f"one of {', '.join(PRIMITIVES)}")
    return Step(step["op"], _pair(step["inputs"], f"{place}.inputs"))


def _pair(data: Any, place: str) -> tuple[str, str]:
    names = _strings(data, place)
    if len(names) != 2:
        raise _wrong(place, data, "two names")
    return names[0], names[1]


def _strings(data: Any, place: str) -> list[str]:
    names = _list(data, place)
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise _wrong(f"{place}[{number}]", name, "a name")
    return names


def _list(data: Any, place: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(place, data, "a list")
    return data


def _object(
    data: Any, place: str, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong(place, data, "an object")
    missing = [key for key in required if key not in data]
    if missing:
        raise GenotypeError(f"{_at(place)}expected {missing[0]!r}, which is missing")
    unknown = [key for key in data if key not in (*required, *optional)]
    if unknown:
        raise _wrong(place, unknown[0], f"only {', '.join((*required, *optional))}")
    return data


def _provenance(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise _wrong("provenance", data, "an object")
    stack: list[Any] = [data]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            # JSON has no NaN, but 1e999 is valid JSON and reads as infinity.
            raise _wrong("provenance", value, "finite numbers")
    return data


def _wrong(place: str, received: Any, expected: str) -> GenotypeError:
    return GenotypeError(f"{_at(place)}received {_show(received)}, expected {expected}")


def _at(place: str) -> str:
    # The whole file has no place of its own: its name stands in front of the message.
    return f"{place}: " if place else ""


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
