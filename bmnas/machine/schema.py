"""Typed files: frozen dataclasses read from plain data, with every problem told at once.

The fields of a dataclass are the keys of a TOML table or a JSON object. Their annotations say what
a value may be: ``bool``, ``int``, ``float``, ``str``, ``Any``, another dataclass, a ``tuple`` or
``list``, a ``Mapping`` with strings as keys, a ``Literal``, or a union of these. Bounds are given
by ``Annotated``, ``cells: Annotated[int, Range(1)] = 2``, with objects whose method ``expected``
returns what is expected instead of a value, or None. A class whose fields bound each other has a
method ``problems()``, which yields pairs of a field's name and what is wrong with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from bmnas.machine.errors import UserError, close

T = TypeVar("T")

_SHOWN = 12
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_LISTS = {int: "a list of integers", float: "a list of numbers", str: "a list of strings"}


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, ends included; ``above`` and ``below`` leave theirs out."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def expected(self, value: float) -> str | None:
        """Return the range in words unless ``value`` lies in it; no infinity or NaN does."""
        if self.low <= value <= self.high and self.above < value < self.below:
            return None
        if self.above > -math.inf:
            if self.below < math.inf:
                return f"between {self.above} and {self.below}"
            return f"more than {self.above}"
        if self.high < math.inf:
            return f"from {self.low} to {self.high}"
        if self.below < math.inf:
            return f"from {self.low} to below {self.below}"
        return "0 or more" if self.low == 0 else f"at least {self.low}"


@dataclass(frozen=True)
class OneOf:
    """Strings out of ``choices``, or of what it returns when a value is checked."""

    choices: Collection[str] | Callable[[], Collection[str]]

    def expected(self, value: str) -> str | None:
        """Return the choices in words unless ``value`` is one of them."""
        known = list(self.choices() if callable(self.choices) else self.choices)
        return None if value in known else f"one of {', '.join(known)}{close(value, known)}"


class NotEmpty:
    """Strings, lists and tables that hold something."""

    def expected(self, value: Collection[Any]) -> str | None:
        """Return what is expected of an empty ``value``."""
        return None if value else "one that is not empty"


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place: ``path`` are the keys and list positions that lead there."""

    path: tuple[str | int, ...]
    text: str

    def __str__(self) -> str:
        """Return place and text, such as ``search.cells: received 0, expected at least 1``."""
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in self.path)
        return f"{place.removeprefix('.')}: {self.text}" if place else self.text


class SchemaError(UserError):
    """Names ``source``, a file, and tells of all ``problems`` in one line."""

    def __init__(self, problems: Collection[Problem], source: str = "") -> None:
        self.problems = tuple(problems)
        shown = [str(problem) for problem in self.problems[:_SHOWN]]
        rest = len(self.problems) - len(shown)
        message = "; ".join([*shown, *([f"and {rest} more"] if rest else [])])
        super().__init__(" ".join(f"{source}: {message}".split()) if source else message)


def read(kind: type[T], data: Any, source: str = "", *, ignore_unknown: bool = False) -> T:
    """Return ``data`` as the dataclass ``kind``; keys that are missing take their defaults.

    ``ignore_unknown`` leaves out keys that ``kind`` does not have. Raises SchemaError with
    ``source``, the name of the file, and every problem.
    """
    reader = _Reader(ignore_unknown)
    value: T = reader.value(kind, data, ())
    if reader.problems:
        raise SchemaError(reader.problems, source)
    return value


def plain(value: Any) -> Any:
    """Return dataclasses, mappings and tuples inside ``value`` as dicts and lists, for a file."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def received(value: Any, expected: str) -> str:
    """Return ``received …, expected …``, a long value cut short."""
    shown = repr(value)
    return f"received {shown if len(shown) <= 80 else f'{shown[:77]}…'}, expected {expected}"


@functools.cache
def _fields(kind: type) -> Mapping[str, tuple[Any, bool]]:
    """Return the annotation of every field, and whether it must be given."""
    hints = typing.get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    return {
        f.name: (hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(kind)
        if f.init
    }


class _Reader:
    """Reads values by their annotations and collects what is wrong."""

    def __init__(self, ignore_unknown: bool) -> None:
        self.ignore_unknown = ignore_unknown
        self.problems: list[Problem] = []

    def value(self, kind: Any, data: Any, path: tuple[str | int, ...]) -> Any:
        """Return ``data`` as ``kind``; what it returns after a problem is of no use."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._bounded(arguments[0], arguments[1:], data, path)
        if origin in (Union, types.UnionType):
            fitting = [member for member in arguments if _fits(member, data)]
            if fitting:
                return self.value(fitting[0], data, path)
        if not _fits(kind, data):
            return self._add(path, received(data, _words(kind)))
        if origin is Literal and data not in arguments:
            return self._add(path, received(data, _words(kind) + close(str(data), arguments)))
        if dataclasses.is_dataclass(kind):
            return self._table(typing.cast(type, kind), data, path)
        if origin in (tuple, list):
            inner = arguments[0] if arguments else Any
            return origin(self.value(inner, item, (*path, n)) for n, item in enumerate(data))
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {key: self.value(arguments[1], item, (*path, key)) for key, item in data.items()}
        return float(data) if kind is float else data

    def _table(self, kind: type, data: Mapping[str, Any], path: tuple[str | int, ...]) -> Any:
        fields = _fields(kind)
        before = len(self.problems)
        for key in data:
            if key not in fields and not self.ignore_unknown:
                near = close(str(key), list(fields))
                self._add(path, f"received key {key!r}, expected only {', '.join(fields)}{near}")
        for name, (_, required) in fields.items():
            if required and name not in data:
                self._add(path, f"expected the key {name!r}, which is missing")
        values = {
            name: self.value(annotation, data[name], (*path, name))
            for name, (annotation, _) in fields.items()
            if name in data
        }
        if len(self.problems) > before:
            return None
        table = kind(**values)
        for name, text in getattr(table, "problems", tuple)():
            self._add((*path, name), text)
        return table

    def _bounded(
        self, kind: Any, bounds: tuple[Any, ...], data: Any, path: tuple[str | int, ...]
    ) -> Any:
        before = len(self.problems)
        value = self.value(kind, data, path)
        for bound in bounds if len(self.problems) == before else ():
            expected = bound.expected(value)
            if expected is not None:
                self._add(path, received(data, expected))
        return value

    def _add(self, path: tuple[str | int, ...], text: str) -> None:
        self.problems.append(Problem(path, text))


def _fits(kind: Any, data: Any) -> bool:
    """Tell whether ``data`` has the outer form of ``kind``; what is inside is not looked at."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _fits(get_args(kind)[0], data)
    if origin in (Union, types.UnionType):
        return any(_fits(member, data) for member in get_args(kind))
    if origin is Literal:
        return type(data) in {type(choice) for choice in get_args(kind)}
    if kind is float:
        # A longer integer would not fit a float.
        return type(data) is float or (type(data) is int and abs(data) < 1 << 53)
    if kind is int:
        return type(data) is int
    if origin in (tuple, list):
        return isinstance(data, list | tuple)
    if dataclasses.is_dataclass(kind):
        return isinstance(data, Mapping)
    return kind is Any or isinstance(data, origin or kind)


def _words(kind: Any) -> str:
    """Return what ``kind`` is in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_words(member) for member in arguments if member is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (tuple, list):
        inner = arguments[0]
        inner = get_args(inner)[0] if get_origin(inner) is Annotated else inner
        return _LISTS.get(inner, "a list")
    return _WORDS.get(kind, "a table")
