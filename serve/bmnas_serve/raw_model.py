"""One model, for people: what its inputs are made of, its samples, and what a page tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.answers import answer, difference
from bmnas_serve.boxes import in_pictures
from bmnas_serve.errors import (
    BundleError,
    DataError,
    DecoderError,
    FormatError,
    RequestError,
    shorten,
)
from bmnas_serve.forms import Given
from bmnas_serve.manifest import Manifest
from bmnas_serve.raw import RawInput
from bmnas_serve.samples import SAMPLES_FILE, member, read_samples, shown, usual
from bmnas_serve.session import Session
from bmnas_serve.sources import Categories, Pictures, Sounds

DRAWING_FILE = "architecture.svg"


@dataclass(frozen=True)
class Asked:
    """What is asked beside what is given.

    What is not given is that of the bundle's ``sample``, but for the inputs ``without``; what is
    then missing is left out. ``explain``: also run the model without each input.
    """

    sample: int | None = None
    without: tuple[str, ...] = ()
    explain: bool = False


@dataclass(frozen=True)
class Made:
    """Rows that the model takes, by input: the first is what was asked.

    Each further row has one of ``explained`` as if it were left out. ``left_out`` are the inputs
    for which the request and its sample hold nothing. ``sizes`` are height and width of pictures
    that were given as files, where the answer is a box in them.
    """

    inputs: Mapping[str, NDArray[Any]]
    left_out: tuple[str, ...]
    explained: tuple[str, ...]
    sizes: Mapping[str, tuple[int, int]]


class RawModel:
    """What is made of requests to one bundle; ``samples``: clients may see those that it holds.

    Raises RequestError where a bundle does not allow it: 422 for a model alone and for a manifest
    of an earlier version, 501 where a package that reads its inputs is not installed.
    """

    def __init__(self, session: Session, samples: bool = True) -> None:
        if session.manifest is None or session.folder is None:
            raise RequestError(
                422,
                f"the model {session.name!r} has no bundle that says what its inputs are: send"
                f" tensors to /v2/models/{session.name}/infer",
            )
        self.name, self.manifest = session.name, session.manifest
        try:
            self.inputs = {spec.name: RawInput(spec) for spec in self.manifest.inputs}
            stored = member(session.folder, self.manifest, SAMPLES_FILE)
            self.drawing = member(session.folder, self.manifest, DRAWING_FILE)
            self.rows = {} if stored is None else read_samples(stored, self.inputs)
        except DecoderError as error:
            raise RequestError(501, f"the model {self.name!r}: {error}") from error
        except (DataError, FormatError, BundleError) as error:
            raise RequestError(422, f"the model {self.name!r}: {error}") from error
        self.count = min(map(len, self.rows.values()), default=0) if samples else 0
        self._usual = {name: usual(one, self.rows.get(name)) for name, one in self.inputs.items()}

    def made(self, given: Mapping[str, Given], asked: Asked) -> Made:
        """Return the rows for what is given.

        Raises RequestError: 422 for an input that is unknown, cannot be read, or can neither be
        found nor be left out, 404 for a sample that is not there.
        """
        for name in (*given, *asked.without):
            if name not in self.inputs:
                expected = ", ".join(map(repr, self.inputs))
                raise RequestError(422, f"received the part {shorten(name)}, expected {expected}")
        if asked.sample is not None:
            self.check_sample(asked.sample)
        rows, sizes, left_out = {}, {}, []
        boxes = self.manifest.task.kind == "grounding"
        for name, one in self.inputs.items():
            if name in given:
                rows[name] = one.row(given[name])
                if boxes and (size := one.size(given[name])) is not None:
                    sizes[name] = size
            elif asked.sample is not None and name not in asked.without:
                rows[name] = self.rows[name][asked.sample]
            else:
                rows[name] = self._left_out(one)
                left_out.append(name)
        if len(left_out) == len(rows):
            told = "; ".join(f"{name}: {one.expected}" for name, one in self.inputs.items())
            raise RequestError(422, f"received none of the inputs, expected {told}")
        without = {
            name: row
            for name, row in self._usual.items()
            if asked.explain and name not in left_out and row is not None
        }
        stacked = {
            name: np.stack([row, *(without[e] if name == e else row for e in without)])
            for name, row in rows.items()
        }
        return Made(stacked, tuple(left_out), tuple(without), sizes)

    def answer(self, made: Made, outputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Return what the outputs for ``made`` say, as JSON-ready plain data."""
        told = answer(self.manifest, outputs, 0)
        if self.manifest.task.kind == "grounding":
            told["outputs"] |= self._boxes(made, outputs["box"][:1])
        told["left_out"] = list(made.left_out)
        if made.explained:
            told["importance"] = {
                name: round(difference(self.manifest, outputs, 0, row), 6)
                for row, name in enumerate(made.explained, start=1)
            }
        return told

    def _boxes(self, made: Made, box: NDArray[Any]) -> dict[str, list[float]]:
        """Return the box in pixels of the picture that was given; of a sample it stays."""
        for name, size in made.sizes.items():
            files = self.inputs[name].files
            assert isinstance(files, Pictures)
            (found,) = in_pictures(files, box, [size])
            return {"box": [round(corner, 2) for corner in found.tolist()]}
        return {}

    def shown(self, sample: int, name: str) -> tuple[str, bytes]:
        """Return media type and content of an input of a sample; raises RequestError (404, 501)."""
        self.check_sample(sample)
        if name not in self.inputs:
            raise RequestError(404, f"received the input {shorten(name)}, which the model has not")
        try:
            return shown(self.inputs[name], self.rows[name][sample])
        except DecoderError as error:
            raise RequestError(501, str(error)) from error

    def check_sample(self, sample: int) -> None:
        """Raise RequestError (404) unless the bundle has the sample."""
        if not 0 <= sample < self.count:
            raise RequestError(
                404,
                f"received the sample {sample}, expected one of {self.count:,}, from 0: a server"
                " for other machines shows those of its bundles with --samples alone",
            )

    def card(self) -> dict[str, Any]:
        """Return what a person wants to know of the model, as JSON-ready plain data."""
        manifest = self.manifest
        return {
            "task": manifest.task.name,
            "kind": manifest.task.kind,
            "decision": "numbers" if manifest.scale else manifest.task.decision,
            "classes": list(manifest.class_names),
            "threshold": manifest.threshold,
            "inputs": [self._input(one) for one in self.inputs.values()],
            "samples": self.count,
            "drawing": self.drawing is not None,
            "architecture": _architecture(manifest),
            "scores": manifest.scores,
            "parity": manifest.parity,
            "latency": manifest.latency,
            "graph": manifest.graph,
            "targets": {name: found.precision for name, found in manifest.targets.items()},
            "versions": manifest.versions,
        }

    def _left_out(self, one: RawInput) -> NDArray[Any]:
        row = self._usual[one.spec.name]
        if row is None:
            raise RequestError(
                422,
                f"received no part {shorten(one.spec.name)}, expected {one.expected}: the bundle"
                " has nothing that could stand for it",
            )
        return row

    def _input(self, one: RawInput) -> dict[str, Any]:
        told: dict[str, Any] = {
            "name": one.spec.name,
            "kind": one.kind,
            "expected": one.expected,
            "meaning": one.spec.meaning,
            "shape": list(one.shape),
            "dtype": one.spec.dtype,
            "optional": self._usual[one.spec.name] is not None,
        }
        match one.files:
            case Pictures() as pictures if one.kind == "image":
                told |= {"height": pictures.height, "width": pictures.width, "grey": pictures.grey}
            case Sounds() as sounds if one.kind == "sound":
                told["seconds"] = sounds.samples / sounds.sample_rate
        if one.kind == "fields":
            told["fields"] = [
                {"name": column.column, "choices": list(column.names)}
                if isinstance(column, Categories)
                else {"name": column.column, "mean": column.mean, "deviation": column.deviation}
                for column in one.vector
            ]
        return told


def _architecture(manifest: Manifest) -> str:
    """Return in a few words what the network is, where there is no drawing."""
    if manifest.fusion is not None:
        return f"a hand-made fusion: {manifest.fusion.get('name', 'without a name')}"
    found = (manifest.genotype or {}).get("format", "")
    return f"found by a search ({found})" if found else ""
