"""What runs a model file on one target: three methods, whatever the target.

``OnnxRunner`` is the one of onnxruntime, which ``Session.open`` takes. Another target, such as an
engine or a remote server, is a subclass in a file of its own, and goes to ``Session.of_bundle``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from bmnas_serve.manifest import TensorSpec


@dataclass(frozen=True)
class Description:
    """What a model takes and gives, as its file says, and what it runs on.

    ``threads`` is the number that one product is spread over, ``providers`` what computes it, the
    preferred first.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int
    providers: tuple[str, ...]


class Runner(ABC):
    """A model file that is open on a target."""

    @classmethod
    @abstractmethod
    def open(cls, model: Path) -> Self:
        """Open the file ``model``; raises BundleError when that cannot be done."""

    @abstractmethod
    def describe(self) -> Description:
        """Return what the model takes and gives."""

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output by name for ``inputs`` by name, which have the described shapes.

        Raises InferenceError when the target does not accept them or fails.
        """
