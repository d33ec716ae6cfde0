"""What can go wrong, sorted by whose mistake it is, and how messages stay one line."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np


class ServeError(Exception):
    """The server cannot start as asked; the message is one line for the person who asked."""


class BundleError(ServeError):
    """A bundle, its manifest or a model file cannot be used."""


class FormatError(ServeError):
    """Data from outside breaks its format: the message names the place; answered with 400."""


class DataError(ServeError):
    """What a person gave cannot become an input: one line, which does not name the place."""


class DecoderError(DataError):
    """A package that decodes is not installed where the server runs; answered with 501."""


class RequestError(Exception):
    """A request cannot be answered; ``status`` is the HTTP status: 4xx, 503 or 504.

    ``retry_after`` is the number of seconds after which it may be sent again, None for never.
    """

    def __init__(self, status: int, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


class InferenceError(Exception):
    """The model failed on a valid request; the message is one line."""


def busy(reason: str, retry_after: float = 1.0) -> RequestError:
    """Return the error of a request that is not taken in, as the server has enough to do."""
    seconds = max(1, math.ceil(retry_after))
    return RequestError(503, f"{reason}: send the request again in {seconds} s", seconds)


def shorten(value: Any, limit: int = 80) -> str:
    """Return ``value`` for a message: on one line, and cut where it grows long."""
    if isinstance(value, dict | list | tuple) and len(value) > 16:
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,} items"
    if isinstance(value, np.ndarray):
        return f"a list of {len(value):,} numbers"
    text = _as_json(value[:limit] if isinstance(value, str) else value, limit)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def one_line(error: BaseException, limit: int = 400) -> str:
    """Return an exception's message on one line, cut where it grows long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _as_json(value: Any, limit: int) -> str:
    """Return the JSON of ``value``, made only as far as it exceeds ``limit`` characters."""
    text = ""
    try:
        for piece in _ENCODER.iterencode(value):
            text += piece
            if len(text) > limit:
                break
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__
    return text


_ENCODER = json.JSONEncoder()
