"""One connection: what it may take in time, and what becomes known of its client."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bmnas_serve.batcher import Client

#: Where the application finds the ``Client`` of a request in its scope.
CLIENT_KEY = "bmnas.client"

_SLACK = 1.0
#: How the head of an answer begins, but for 100 Continue, which has no body to wait for.
_FINAL_HEAD = tuple(b"HTTP/1.1 %d" % digit for digit in range(2, 6))


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections there may be, and how long each may take, in seconds.

    ``header`` is the time until the headers of a request are complete, ``body`` that for its body,
    ``send`` that in which a client has to take some of its answer, ``idle`` that between requests.
    """

    connections: int = 512
    header: float = 10.0
    body: float = 30.0
    send: float = 30.0
    idle: float = 60.0


class Connection(HttpToolsProtocol):
    """uvicorn's protocol of HTTP/1.1, with limits; ``expire`` has to be called about every second.

    A client that ends its side after a request still gets the answer.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits = limits
        self.peer = Client()
        self._begun = False
        self._in_headers = False
        self._malformed = False
        self._seconds = limits.header
        self._until = math.inf
        self._unsent = 0
        self._stuck_until = math.inf

    @property
    def half_open(self) -> bool:
        """Whether a request has begun and its body is not complete."""
        return self._answering and self.cycle.more_body

    @property
    def _answering(self) -> bool:
        """Whether a request whose headers are complete is not yet answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, or say that there are too many."""
        super().connection_made(transport)
        self._start_clock()
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"there are {self.limits.connections:,} connections already")

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the application know that nobody waits for its answer."""
        self.peer.gone = True
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether an answer is still to be sent to a client that sends no more."""
        cycle = self.cycle
        answers = cycle is not None and not (cycle.response_complete or cycle.more_body)
        self.peer.leaving = True
        return bool(answers) and self.scheme == "http"  # TLS has no half of a connection

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._begun = self._in_headers = True
        self._seconds = self.limits.header
        self._start_clock()
        self.scope[CLIENT_KEY] = self.peer  # type: ignore[literal-required]

    def on_headers_complete(self) -> None:
        """Begin the body of a request."""
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # whose answer has no body
            cycle = self.pipeline[0][0] if self.pipeline else self.cycle
            cycle.transport = _Answering(self.transport)  # type: ignore[assignment]
        self._in_headers = False
        # The application answers a body that is late, where it reads it.
        self._seconds = self.limits.body + _SLACK
        self._start_clock()

    def on_message_complete(self) -> None:
        """End a request."""
        self._seconds = self._until = math.inf
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, or end the connection."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if not self._answering and self._malformed:
            self._refuse_malformed()
        elif not self._answering and self.peer.leaving:
            self.transport.close()
        elif self._until == math.inf:
            self._start_clock()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        if self.half_open and not self.pipeline:
            self.transport.abort()  # it breaks off in the body of a request that is being read
        elif self._answering:
            self._malformed = True  # or the client would take it for the answer
        else:
            self._refuse_malformed()

    def expire(self, now: float) -> None:
        """End the connection where its client takes too long; ``now`` is the loop's time."""
        if now > self._until:
            self._until = math.inf
            if self.half_open:
                self.transport.abort()
            elif not self._begun:
                self.transport.close()
            else:
                self._refuse(408, f"received no complete request in {self.limits.header:g} s")
        unsent = self.transport.get_write_buffer_size()
        if not unsent or (unsent < self._unsent and not self.transport.is_closing()):
            self._stuck_until = math.inf
        elif self._stuck_until == math.inf:
            self._stuck_until = now + self.limits.send
        elif now > self._stuck_until:
            self.transport.abort()
        self._unsent = unsent

    def _start_clock(self) -> None:
        """Give what is being received its time, once the requests before it are answered."""
        waits = self._answering if self._in_headers else bool(self.pipeline)
        self._until = math.inf if waits else self.loop.time() + self._seconds

    def _refuse_malformed(self) -> None:
        self._refuse(400, "received no valid HTTP request, expected HTTP/1.1")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = (
            b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
            + str(len(body)).encode()
        )
        self.transport.write(STATUS_LINE[status] + head + b"\r\n\r\n" + body)
        self.transport.close()


class _Answering:
    """The transport for one answer: its head leaves with the first bytes of its body.

    uvicorn writes them one after the other: two system calls and two packets for a short answer.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if self._head or not data.startswith(_FINAL_HEAD):
            self._transport.write(self._head + data)
            self._head = b""
        else:
            self._head = data

    def close(self) -> None:
        """Close the connection; a head without a body is sent first."""
        self._transport.write(self._head)
        self._transport.close()
