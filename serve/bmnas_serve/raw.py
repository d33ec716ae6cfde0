"""Inputs of a model, made of what people have: pictures, sounds, videos, texts, fields, numbers.

They are made as ``bmnas predict`` and training make them, by the source in the manifest. Where a
task had arrays in place of files, a picture or sound is fitted to the input's shape and range.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.elements import to_array
from bmnas_serve.errors import DataError, DecoderError, FormatError, RequestError, shorten
from bmnas_serve.forms import Given
from bmnas_serve.manifest import InputSpec
from bmnas_serve.media import PICTURES, container_of, opened_picture, turned_size
from bmnas_serve.sources import (
    Categories,
    Files,
    Numbers,
    Pictures,
    Sounds,
    Source,
    Videos,
    number_of,
)
from bmnas_serve.texts import TextRule

_MOST_FRAME_PIXELS = 10_000_000  # of a video
_MOST_SECONDS = 20.0  # that decoding a video may take
_MOST_TEXT = 2**20  # bytes or characters

Row = NDArray[Any]


class RawInput:
    """One input of a model, and how it is made.

    ``kind`` is what a person gives: ``image``, ``sound``, ``video``, ``text``, ``fields`` (the
    columns of ``vector``) or ``numbers``, a list of the shape of a row. ``expected`` says it in
    words. Raises DataError where the manifest's rule cannot be used.
    """

    def __init__(self, spec: InputSpec) -> None:
        self.spec = spec
        self.shape = spec.shape[1:]
        told = spec.preprocessing
        source = told.get("source")
        found = Source() if source is None else Source.from_dict(source, f"{spec.name}: source")
        self.source, self.vector = found, found.vector
        self.files: Files | None = found.files or _files_of_arrays(spec)
        self.fitted = found.files is None
        self.texts = TextRule(told) if told.get("type") == "text" else None
        self.kind, self.expected, self._make = self._way()

    def _way(self) -> tuple[str, str, Callable[[Given], Row]]:
        if self.texts is not None:
            return "text", "a text in UTF-8", self._text
        match self.files:
            case Pictures():
                return "image", f"a picture ({', '.join(PICTURES)})", self._picture
            case Sounds():
                return "sound", "a sound (WAV, FLAC, OGG, MP3)", self._sound
            case Videos():
                return "video", "a video (.mp4, .webm, .avi, .mov, .mkv)", self._video
        if self.vector:
            columns = ", ".join(one.column for one in self.vector)
            return "fields", f"a JSON object of the fields {columns}", self._fields
        return "numbers", f"a JSON list of numbers of the shape {list(self.shape)}", self._numbers

    def row(self, given: Given) -> Row:
        """Return the row (*shape) of what is given, or of a list of numbers that is the row itself.

        Raises RequestError, which names the part and what was expected: 422, or 501 where what
        decodes it is not installed.
        """
        try:
            return self._numbers(given) if isinstance(given.value, list) else self._make(given)
        except DecoderError as error:
            status, told = 501, str(error)
        except (DataError, FormatError) as error:
            status, told = 422, str(error)
            if "expected" not in told:
                told = f"{told}, expected {self.expected}"
        # Not from the error, whose frames hold what was decoded so far.
        raise RequestError(status, f"part {shorten(self.spec.name)}: {told}")

    def size(self, given: Given) -> tuple[int, int] | None:
        """Return height and width of the picture that is given, None for what is no file of one."""
        if self.kind != "image" or given.content is None:
            return None
        with opened_picture(self._file(given)) as image:
            return turned_size(image)

    def nothing(self) -> Row | None:
        """Return the row that stands for an input left out, of texts an empty one; None: none."""
        if self.spec.optional:
            row: Row = self.spec.stand_ins(1)[0]
            return row
        return None if self.texts is None else self.texts.encode([""])[0]

    def _file(self, given: Given) -> io.BytesIO:
        if given.content is None:
            raise DataError(f"received {shorten(given.value)}")
        if not given.content:
            raise DataError("received an empty file")
        return io.BytesIO(given.content)

    def _picture(self, given: Given) -> Row:
        assert isinstance(self.files, Pictures)
        return self._as_trained(self.files.decode(self._file(given), bounded=True))

    def _sound(self, given: Given) -> Row:
        assert isinstance(self.files, Sounds)
        row = self.files.decode(self._file(given))
        if self.spec.dtype == "int16":
            row = (row * np.iinfo(np.int16).max).round()
        return row.astype(self.spec.dtype)

    def _video(self, given: Given) -> Row:
        assert isinstance(self.files, Videos)
        file = self._file(given)
        bounds = {"most_pixels": _MOST_FRAME_PIXELS, "most_seconds": _MOST_SECONDS}
        return self._as_trained(self.files.decode(file, container=container_of(file), **bounds))

    def _as_trained(self, pixels: NDArray[np.uint8]) -> Row:
        """Return pixels as the input has them: of arrays, black and white are what training saw."""
        if not self.fitted:
            return pixels
        low, high = self.spec.range or (0, 255)
        scaled = low + pixels * ((high - low) / 255)
        return (scaled.round() if self.spec.dtype[0] != "f" else scaled).astype(self.spec.dtype)

    def _text(self, given: Given) -> Row:
        assert self.texts is not None
        text = given.value
        if given.content is not None:
            _check_length(len(given.content), "bytes")
            try:
                text = given.content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise DataError(f"byte {error.start} is not UTF-8") from error
        if not isinstance(text, str):
            raise DataError(f"received {shorten(text)}")
        _check_length(len(text), "characters")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError("received half of a character pair, which is no text") from error
        row: Row = self.texts.encode([text])[0]
        return row

    def _fields(self, given: Given) -> Row:
        fields = given.json()
        if isinstance(fields, list):
            return self._numbers(Given(value=fields))
        if not isinstance(fields, dict):
            raise DataError(f"received {shorten(fields)}")
        known = {one.column: one for one in self.vector}
        if unknown := [name for name in fields if name not in known]:
            raise DataError(f"received the unknown field {shorten(unknown[0])}")
        made = self.source.vector_rows(lambda column, text: _field(known[column], fields))
        row: Row = made.astype(self.spec.dtype)[0]
        return row

    def _numbers(self, given: Given) -> Row:
        data = given.json()
        if not isinstance(data, list):
            raise DataError(f"received {shorten(data)}")
        row: Row = to_array(data, self.shape, self.spec.dtype, "numbers")
        return row


def _check_length(length: int, what: str) -> None:
    if length > _MOST_TEXT:
        raise DataError(f"received {length:,} {what}, expected at most {_MOST_TEXT:,}")


def _field(one: Numbers | Categories, fields: Mapping[str, Any]) -> NDArray[np.str_]:
    """Return the field of a column as the table of a single row has it, empty where it is not."""
    value = fields.get(one.column)
    if isinstance(value, bool):
        value = str(value).lower()
    if not isinstance(value, str | int | float | None):
        raise DataError(f"{one.column}: received {shorten(value)}, expected a number or a string")
    text = "" if value is None else str(value)
    if isinstance(one, Numbers):
        if number_of(text) is None:
            raise DataError(f"{one.column}: received {shorten(value)}, expected a number or null")
        with np.errstate(over="ignore"):
            if not np.isfinite(one.rows(np.array([text]))).all():
                raise DataError(f"{one.column}: received {shorten(value)}, which is too large")
    return np.array([text], np.str_)


def _files_of_arrays(spec: InputSpec) -> Files | None:
    """Return what fits files to an input that was trained on arrays, None where nothing does."""
    shape, told = spec.shape[1:], spec.preprocessing
    match told.get("type"):
        case "image" if len(shape) == 2 or shape[2:] == (3,):
            return Pictures(shape[0], shape[1], grey=len(shape) == 2)
        case "waveform" if type(rate := told.get("sample_rate")) is int and len(shape) == 1:
            return Sounds(rate, shape[0])
        case "clip" if len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3:
            return Videos(shape[0], shape[1])
    return None
