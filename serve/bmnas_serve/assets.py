"""The files of the page, and the headers that keep a browser from doing more than they need."""

from __future__ import annotations

import functools
import hashlib
from importlib.resources import files

from starlette.responses import Response

#: The files of the page by name, and what they are.
ASSETS = {
    "index.html": "text/html; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "inputs.js": "text/javascript; charset=utf-8",
    "answer.js": "text/javascript; charset=utf-8",
    "sound.js": "text/javascript; charset=utf-8",
}
#: Everything that the page loads comes from this server, and no script stands in its text.
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:;"
    " media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
#: What a bundle holds is looked at, and does nothing.
_CONTENT = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@functools.cache
def _asset(name: str) -> tuple[bytes, str]:
    content = (files("bmnas_serve") / "page" / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def asset(name: str, known: str | None = None) -> Response:
    """Return a file of the page, one of ``ASSETS``; 304 where its tag is ``known``."""
    content, tag = _asset(name)
    headers = {**_SECURITY, "content-security-policy": _PAGE, "etag": tag}
    headers["cache-control"] = "no-cache"  # that is: ask whether it has changed
    headers["permissions-policy"] = "microphone=(self), camera=(), geolocation=()"
    if known == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=ASSETS[name], headers=headers)


def content(body: bytes, media_type: str) -> Response:
    """Return what a bundle holds, or what was made of it, as ``media_type`` and nothing else."""
    headers = {**_SECURITY, "content-security-policy": _CONTENT, "cache-control": "no-cache"}
    return Response(body, media_type=media_type, headers=headers)
