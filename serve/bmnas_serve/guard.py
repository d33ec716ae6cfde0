"""What every request passes first: who may ask, and how the request is called in logs."""

from __future__ import annotations

import hmac
import ipaddress
import itertools
import logging
import re
import secrets
import time
from base64 import b64decode
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bmnas_serve.batcher import CLIENT
from bmnas_serve.connection import CLIENT_KEY
from bmnas_serve.errors import shorten
from bmnas_serve.logs import LOG, REQUEST_ID
from bmnas_serve.metrics import Metrics
from bmnas_serve.responses import JsonResponse

#: What answers without a token: probes have none.
_OPEN = ("/v2/health/live", "/v2/health/ready")
_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_PORT = re.compile(r":[0-9]*$")


class Guard:
    """Lets requests through to ``app``: for ``hosts``, with ``token``; None lets all through.

    Every request is counted in ``metrics``, logged, and called by a name.
    A request for a host by number is let through too: another site can lead a browser here by
    a name of its own alone. The token comes as ``Authorization: Bearer``, or as the password of
    ``Basic``, which browsers ask for. Every answer has the header X-Request-Id.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str] | None = None,
        token: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics or Metrics()
        self._paths: dict[tuple[Any, ...], str] = {}
        self._name = secrets.token_hex(4).encode()
        self._numbers = itertools.count(1)
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        name = given if _ID.fullmatch(given) else b"%b-%x" % (self._name, next(self._numbers))
        REQUEST_ID.set(name.decode())
        CLIENT.set(scope.get(CLIENT_KEY))
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        try:
            if (refusal := self._refusal(scope, headers)) is not None:
                status, message, challenges = refusal
                refused = JsonResponse({"error": message}, status_code=status)
                refused.raw_headers += challenges
                await refused(scope, receive, send_named)
            else:
                await self._app(scope, receive, send_named)
        except Exception:
            if not status:
                raise
            LOG.exception("a defect of the server, or of what it runs")
        finally:
            self._count(scope, status, time.perf_counter() - start)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        self._metrics.answered(self._route(scope), str(status), seconds)
        if LOG.isEnabledFor(logging.INFO):
            fields = {
                "method": scope["method"],
                "path": shorten(scope["path"]),
                "status": status,
                "ms": round(1000 * seconds, 3),
            }
            LOG.info("answered", extra={"fields": fields})

    def _route(self, scope: Scope) -> str:
        """Return the path of the route that answered, ``none`` where there was none."""
        if (endpoint := scope.get("endpoint")) is None:
            return "none"
        if not self._paths:
            self._paths = {
                (route.endpoint, *sorted(route.param_convertors)): route.path
                for route in scope["app"].routes
            }
        return self._paths[endpoint, *sorted(scope["path_params"])]

    def _refusal(
        self, scope: Scope, headers: dict[bytes, bytes]
    ) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        if self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1")
            if not self._is_allowed(host):
                names = ", ".join(sorted(self._hosts))
                message = f"received the host {shorten(host)}, expected {names} or an address"
                return 421, f"{message}; start the server with --allowed-host for others", []
        if self._token is None or scope["path"] in _OPEN:
            return None
        if not hmac.compare_digest(_token(headers.get(b"authorization", b"")), self._token):
            ask = [(b"www-authenticate", scheme) for scheme in (b"Bearer", b'Basic realm="bmnas"')]
            return 401, "expected the header Authorization: Bearer with the server's token", ask
        return None

    def _is_allowed(self, host: str) -> bool:
        assert self._hosts is not None
        name = _PORT.sub("", host).lower()
        return name in self._hosts or _is_address(name.strip("[]"))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _token(authorization: bytes) -> bytes:
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return given.strip()
    if scheme.lower() == b"basic":
        try:
            return b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""
