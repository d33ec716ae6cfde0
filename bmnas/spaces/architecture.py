"""What stands between features and logits, as plain data with a file of its own.

``Genotype`` is the one of BM-NAS; ``registry`` knows those of all spaces. Standard library only.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json, write_text
from bmnas.machine.schema import plain
from bmnas.spaces.plain_data import GenotypeError, parsed

_LIMIT = 1_000_000  # bytes; a genotype of ten Cells takes about two thousand


class Architecture(ABC):
    """An architecture over ``features``, those pooled to ``length`` positions, as plain data.

    A subclass is a frozen dataclass whose annotations and ``__post_init__`` check it.
    ``provenance`` says where it comes from and does not count when two are compared.
    """

    #: What the file says under "format".
    FORMAT: ClassVar[str]

    #: False for a fusion by hand, which is not compared as a genotype.
    SEARCHED: ClassVar[bool] = True

    features: tuple[str, ...]
    length: int
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


def read_file(path: str | Path, expected: str) -> Any:
    """Return the plain data of a file; raises GenotypeError that says what was ``expected``."""
    try:
        return read_json(Path(path), limit=_LIMIT)
    except UserError as error:
        raise GenotypeError(f"{error}; expected a {expected} file") from error
