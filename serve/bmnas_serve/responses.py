"""Answers in JSON."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))


def to_json(content: Any) -> bytes:
    """Return JSON in ASCII: text that came in as a lone surrogate still goes out.

    A number that is not finite raises ValueError.
    """
    return _ENCODER.encode(content).encode("ascii")


class JsonResponse(Response):
    """An answer in JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body, see ``to_json``."""
        return to_json(content)
