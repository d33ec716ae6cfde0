"""What stands between features and logits, as plain data with a file of its own.

``Genotype`` is the one of BM-NAS; ``registry`` knows those of all spaces. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, write_text
from bmnas.machine.schema import SchemaError, plain, read
from bmnas.machine.schema import received as received_text

T = TypeVar("T")

_LIMIT = 1_000_000  # bytes; a genotype of ten Cells takes about two thousand
_FEATURE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+")


class GenotypeError(UserError):
    """A genotype is malformed; the message names the file, the place, the find, the need."""


def by_modality(features: Sequence[str]) -> dict[str, list[str]]:
    """Return the features of each modality, both in their order."""
    found: dict[str, list[str]] = {}
    for name in features:
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


def check_features(features: Sequence[str]) -> None:
    """Raise GenotypeError unless there are two features or more, all with good names."""
    if len(features) < 2:
        raise wrong("features", list(features), "at least two features")
    for f, name in enumerate(features):
        if not _FEATURE.fullmatch(name):
            raise wrong(f"features[{f}]", name, "a name such as 'image.1'")
    if len(set(features)) < len(features):
        raise wrong("features", list(features), "names that differ")


def parsed(kind: type[T], data: Any, file_format: str) -> T:
    """Return the plain ``data`` of a file as the dataclass ``kind``, see ``bmnas.machine.schema``.

    Raises GenotypeError, which tells every problem with its place in the file.
    """
    if not isinstance(data, dict):
        raise wrong("", data, "an object")
    if "format" not in data:
        raise GenotypeError("expected the key 'format', which is missing")
    if data["format"] != file_format:
        raise wrong("format", data["format"], repr(file_format))
    try:
        value = read(kind, {k: v for k, v in data.items() if k != "format"})
    except SchemaError as error:
        raise GenotypeError(str(error)) from error
    _check_finite(data.get("provenance", {}))
    return value


def _check_finite(provenance: Any) -> None:
    stack: list[Any] = [provenance]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            # JSON has no NaN, but 1e999 is valid JSON and reads as infinity.
            raise wrong("provenance", value, "finite numbers")


def wrong(place: str, received: Any, expected: str) -> GenotypeError:
    """Return the error that names a place in the file, what was found and what was expected."""
    text = received_text(received, expected)
    # The whole file has no place of its own: its name stands in front of the message.
    return GenotypeError(f"{place}: {text}" if place else text)


class Architecture(ABC):
    """An architecture over ``features``, as plain data.

    A subclass is a frozen dataclass whose annotations and ``__post_init__`` check it.
    ``provenance`` says where it comes from and does not count when two are compared.
    """

    #: What the file says under "format".
    FORMAT: ClassVar[str]

    #: False for a fusion by hand, which is not compared as a genotype.
    SEARCHED: ClassVar[bool] = True

    features: tuple[str, ...]
    provenance: Mapping[str, Any]

    @abstractmethod
    def live_features(self) -> tuple[str, ...]:
        """Return the features that its network reads, in the order of ``features``."""

    @abstractmethod
    def summary(self) -> str:
        """Return its size in a line of text."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready plain data in the format of the file: its fields by name."""
        return {"format": self.FORMAT, **plain(self)}

    def content(self) -> dict[str, Any]:
        """Return ``to_dict`` without where it comes from, which changes nothing in the network."""
        return {key: value for key, value in self.to_dict().items() if key != "provenance"}

    @classmethod
    def parse(cls, data: Any) -> Self:
        """Build it from what ``to_dict`` gives; raises GenotypeError that names the place in it.

        A subclass whose file holds something else than its fields overrides both.
        """
        return parsed(cls, data, cls.FORMAT)

    @classmethod
    def from_dict(cls, data: Any, source: str = "genotype") -> Self:
        """Build it from plain data; ``source`` is named in messages.

        Raises GenotypeError on anything that is not exactly the documented format.
        """
        try:
            return cls.parse(data)
        except GenotypeError as error:
            raise GenotypeError(f"{source}: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read its file; raises GenotypeError with one line that names the file."""
        return cls.from_dict(read_file(path, cls.FORMAT), str(path))

    def with_provenance(self, provenance: Mapping[str, Any]) -> Self:
        """Return the same architecture that says it comes from elsewhere."""
        same: Self = dataclasses.replace(cast(Any, self), provenance=provenance)
        return same

    def to_json(self) -> str:
        """Return the text of its file."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write its file, whole or not at all."""
        write_text(Path(path), self.to_json())


def read_file(path: str | Path, form: str) -> Any:
    """Return the plain data of a file, whose format is to be ``form``; raises GenotypeError."""
    try:
        return read_json(Path(path), limit=_LIMIT)
    except UserError as error:
        expected = f"a genotype.json ({form}), as 'bmnas search' writes it"
        raise GenotypeError(f"{error}; expected {expected}") from error
