"""Bodies that hold what people have: multipart forms, a part for each input, and JSON."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import multipart

from bmnas_serve.checks import plain_object, table
from bmnas_serve.errors import FormatError, RequestError, shorten
from bmnas_serve.strict_json import parse_json

FORM, JSON = "multipart/form-data", "application/json"
_MOST_PARTS = 64


@dataclass(frozen=True)
class Given:
    """What a request holds of one input: the ``content`` of a file or a field, or a JSON value."""

    content: bytes | None = None
    value: Any = None

    def json(self) -> Any:
        """Return the JSON value, that in ``content`` where there is one; raises FormatError."""
        return self.value if self.content is None else _json(self.content, "received no JSON")


def media_type(content_type: str) -> str:
    """Return ``FORM`` or ``JSON``; raises RequestError (415) for anything else."""
    found = content_type.partition(";")[0].strip().lower()
    if found not in (FORM, JSON):
        raise RequestError(
            415, f"received Content-Type {shorten(content_type)}, expected {FORM} or {JSON}"
        )
    return found


def read_inputs(body: bytes | bytearray, content_type: str) -> dict[str, Given]:
    """Return what a body holds of each input, by name.

    Raises RequestError (415) for a body that is neither a form nor JSON, FormatError for one that
    is malformed or has an input twice.
    """
    if media_type(content_type) == FORM:
        return _of_form(body, content_type)
    asked = table(_json(body, "the body is not JSON"), "", {"inputs": plain_object}, {})
    return {name: _of_value(name, value) for name, value in asked["inputs"].items()}


def _of_form(body: bytes | bytearray, content_type: str) -> dict[str, Given]:
    boundary = multipart.parse_options_header(content_type)[1].get("boundary", "")
    if not boundary:
        raise FormatError(f"Content-Type: received {shorten(content_type)}, expected a boundary")
    found: dict[str, Given] = {}
    try:
        parser = multipart.MultipartParser(
            io.BytesIO(body),
            boundary,
            strict=True,
            part_limit=_MOST_PARTS,
            # The body is in memory already, and small enough.
            spool_limit=len(body),
            memory_limit=len(body),
        )
        for part in parser:
            if part.name in found:
                raise FormatError(f"part {shorten(part.name)}: stands twice, expected once")
            found[part.name] = _of_part(part)
    except (multipart.MultipartError, ValueError) as error:
        raise FormatError(f"the body is not {FORM}: {shorten(str(error))}") from error
    return found


def _of_part(part: Any) -> Given:
    content: bytes = part.raw
    if part.content_type.partition(";")[0].strip().lower() == JSON:
        return Given(value=_json(content, f"part {shorten(part.name)}: received no JSON"))
    return Given(content)


def _of_value(name: str, value: Any) -> Given:
    """Return a JSON value as it is; ``{"base64": …}`` stands for the content of a file."""
    if not isinstance(value, Mapping) or value.keys() != {"base64"}:
        return Given(value=value)
    text = value["base64"]
    try:
        return Given(base64.b64decode(text, validate=True))
    except (TypeError, ValueError) as error:
        raise FormatError(f"input {shorten(name)}: base64: {shorten(str(error))}") from error


def _json(content: bytes | bytearray, problem: str) -> Any:
    try:
        return parse_json(content)
    except ValueError as error:
        raise FormatError(f"{problem}: {error}") from error
