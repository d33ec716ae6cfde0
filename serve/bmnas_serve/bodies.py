"""Bodies of requests: received within limits, and worked on beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, Self, TypeVar

from starlette.requests import Request

from bmnas_serve.batcher import CLIENT, Client
from bmnas_serve.errors import RequestError, busy
from bmnas_serve.lifecycle import Lifecycle

P = ParamSpec("P")
T = TypeVar("T")

MAX_BODY_BYTES = 32 * 2**20
#: All bodies that are in memory at once, but for small ones.
MAX_TOTAL_BYTES = 64 * 2**20
BODY_SECONDS = 30.0

#: Up to this size, in bytes, bodies do not count: connections bound how many there are.
_SMALL = 2**16
#: Up to this size, in bytes, work is done at once: a thread would take longer to wake up.
_AT_ONCE = 4096
#: From this size on, in bytes, bodies wait for each other and not for smaller ones.
_LARGE = 2**20
#: While there are other requests, large bodies are received in turns of so many seconds, of a
#: quarter of a MiB each at most: as fast as senders are they would take all of the event loop.
_TURN_SECONDS = 0.002
#: Up to this size, in bytes, tensors that came as bytes take no longer than a little JSON.
_FEW = 2**18


def effort(text: int, binary: int) -> int:
    """Return as how many bytes of JSON a body counts for ``beside``: ``text`` and ``binary``."""
    return text if binary <= _FEW else text + binary


def unless_gone(client: Client | None, work: Callable[[], T]) -> T:
    """Return what ``work`` returns; raises RequestError (499) where its client has gone."""
    if client is not None and client.gone:
        raise RequestError(499, "the client has gone")
    return work()


class Bodies:
    """Receives bodies and has two threads for them: one for large ones, one for the others.

    A body may have ``largest`` bytes, all that are in memory ``total``, and has to be received
    within ``seconds``; ``lifecycle`` learns of those that are not complete. Each thread works on
    one body at a time: what is made of one takes several times its memory. ``held`` is the bytes
    in memory, but for those of small bodies. Use it as a context manager.
    """

    def __init__(
        self,
        largest: int = MAX_BODY_BYTES,
        total: int = MAX_TOTAL_BYTES,
        lifecycle: Lifecycle | None = None,
        seconds: float = BODY_SECONDS,
    ) -> None:
        self._largest = largest
        self._total = max(total, largest)
        self._lifecycle = lifecycle or Lifecycle()
        self._seconds = seconds
        self.held = 0
        self._turn = asyncio.Lock()
        self._lane = ThreadPoolExecutor(1, "bmnas-bodies")
        self._large_lane = ThreadPoolExecutor(1, "bmnas-large-bodies")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for lane in (self._lane, self._large_lane):
            lane.shutdown(cancel_futures=True)

    @contextlib.asynccontextmanager
    async def received(
        self, request: Request, largest: int | None = None
    ) -> AsyncIterator[bytes | bytearray]:
        """Receive the body of ``request``; it counts as in memory until the block ends.

        It may have ``largest`` bytes where that is less than any body may have.
        Its bytes are counted, as Content-Length may be absent or wrong. Raises RequestError: 413
        when there are too many, 408 when they take too long, 503 when too many bodies are in
        memory, 400 when the connection breaks.
        """
        body = _Body(self, largest)
        try:
            await self._receive(request, body)
            yield body.content()
        finally:
            body.release()

    @contextlib.contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        self._take(size)
        try:
            yield
        finally:
            self.held -= size

    def holding(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Count a message of ``size`` bytes as in memory while the block runs.

        Raises RequestError (503) when too many bodies are in memory.
        """
        return self._holding(size) if size > _SMALL else contextlib.nullcontext()

    async def _receive(self, request: Request, body: _Body) -> None:
        try:
            if not await self._more(request, body):  # what came with the headers, as mostly
                return
            with self._lifecycle.receiving:
                async with asyncio.timeout(self._seconds):
                    while await self._more(request, body):
                        if body.size > _LARGE and self._lifecycle.others:
                            async with self._turn:
                                await asyncio.sleep(_TURN_SECONDS)
        except TimeoutError as error:
            raise RequestError(
                408,
                f"received {body.size:,} bytes within {self._seconds:g} s, expected the whole body",
            ) from error

    async def _more(self, request: Request, body: _Body) -> bool:
        """Receive a part of the body; tell whether there is more."""
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the connection broke before the end of the body")
        body.add(message.get("body", b""))
        return bool(message.get("more_body", False))

    async def beside(
        self, size: int, work: Callable[P, T], *arguments: P.args, **options: P.kwargs
    ) -> T:
        """Return ``work(*arguments)`` on a body of ``size`` bytes, beside the event loop.

        Raises RequestError (499) where the client has gone before it begins.
        """
        if size <= _AT_ONCE:
            return work(*arguments, **options)
        lane = self._lane if size < _LARGE else self._large_lane
        begin = partial(unless_gone, CLIENT.get(), partial(work, *arguments, **options))
        return await asyncio.wrap_future(lane.submit(begin))

    def _take(self, size: int) -> None:
        if self.held + size > self._total:
            raise busy("too many bytes of other requests are in memory")
        self.held += size


class _Body:
    def __init__(self, bodies: Bodies, largest: int | None) -> None:
        self._bodies = bodies
        self._limited = largest is not None and largest < bodies._largest
        self._largest = largest if largest is not None and self._limited else bodies._largest
        self._content: bytes | bytearray = b""
        self._counted = 0
        self.size = 0

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._largest:
            # The rest is read and dropped for a while: a client that is cut off while it sends
            # sees a broken connection in the place of the message.
            self.release()
            if self.size > 2 * self._bodies._largest:
                raise self._too_large()
            return
        if self.size > _SMALL:
            self._bodies._take(self.size - self._counted)
            self._counted = self.size
        if not self._content:
            self._content = chunk  # all that there is, mostly
            return
        if not isinstance(self._content, bytearray):
            self._content = bytearray(self._content)
        # It grows in place: to join the parts of a large body at its end stops everything.
        self._content += chunk

    def content(self) -> bytes | bytearray:
        if self.size > self._largest:
            raise self._too_large()
        content, self._content = self._content, b""
        return content

    def release(self) -> None:
        self._bodies.held -= self._counted
        self._counted = 0
        self._content = b""

    def _too_large(self) -> RequestError:
        message = f"the body has more than {self._largest:,} bytes"
        if not self._limited:
            message += ": send smaller batches, or start the server with a larger --max-body-mb"
        return RequestError(413, message)
