from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import pytest
import uvicorn
from bmnas_serve.connection import Connection, ConnectionLimits
from uvicorn.server import ServerState

LATER = 1000.0
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def talk(
    sent: bytes, act: Callable[[asyncio.StreamReader, Connection, asyncio.Event], Awaitable[bytes]]
) -> bytes:
    """Return what ``act`` reads when ``sent`` arrives at an application that waits for an event."""

    async def go() -> bytes:
        begun, answer = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            begun.set()
            await answer.wait()
            headers = [(b"content-length", b"1")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"A"})

        config = uvicorn.Config(app, lifespan="off", log_config=None)
        state = ServerState()
        limits = ConnectionLimits(header=1)

        def connect() -> Connection:
            return Connection(config=config, server_state=state, app_state={}, limits=limits)

        loop = asyncio.get_running_loop()
        async with await loop.create_server(connect, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(sent)
            await begun.wait()
            (connection,) = state.connections
            assert isinstance(connection, Connection)
            found = await act(reader, connection, answer)
            writer.close()
            await writer.wait_closed()
        return found

    return asyncio.run(asyncio.wait_for(go(), 10))


async def statuses(reader: asyncio.StreamReader) -> bytes:
    return b" ".join(part[:3] for part in (await reader.read()).split(b"HTTP/1.1 ")[1:])


def test_a_late_request_behind_another_does_not_take_its_answer() -> None:
    async def act(
        reader: asyncio.StreamReader, connection: Connection, answer: asyncio.Event
    ) -> bytes:
        now = connection.loop.time()
        connection.expire(now + LATER)
        answer.set()
        head = await reader.readuntil(b"\r\n\r\nA")
        # Its time begins with the answer to the one before it.
        connection.expire(connection.loop.time() + 0.5)
        connection.expire(connection.loop.time() + LATER)
        return head[:12] + b" " + await statuses(reader)

    assert talk(GET + b"GET /b HT", act) == b"HTTP/1.1 200 408"


def test_the_body_of_a_request_behind_another_has_its_time_after_it() -> None:
    async def act(
        reader: asyncio.StreamReader, connection: Connection, answer: asyncio.Event
    ) -> bytes:
        connection.expire(connection.loop.time() + LATER)
        answer.set()
        return (await reader.readuntil(b"\r\n\r\nA"))[:12]

    post = b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{"
    assert talk(GET + post, act) == b"HTTP/1.1 200"


def test_what_is_no_http_behind_a_request_does_not_take_its_answer() -> None:
    async def act(
        reader: asyncio.StreamReader, connection: Connection, answer: asyncio.Event
    ) -> bytes:
        answer.set()
        return await statuses(reader)

    assert talk(GET + b"\0\0\0\0 HTTP/1.1\r\n\r\n", act) == b"200 400"


@pytest.mark.parametrize(("method", "end"), [(b"GET", b"\r\n\r\nA"), (b"HEAD", b"\r\n\r\n")])
def test_an_answer_is_written_at_once(method: bytes, end: bytes) -> None:
    written: list[bytes] = []

    async def act(
        reader: asyncio.StreamReader, connection: Connection, answer: asyncio.Event
    ) -> bytes:
        transport = type(connection.transport)
        write = transport.write

        def note(self: asyncio.Transport, data: bytes) -> None:
            written.append(data)
            write(self, data)

        with patch.object(transport, "write", note):
            answer.set()
            return await reader.readuntil(end)

    assert written == [talk(method + GET[3:], act)]


def test_the_head_of_an_answer_that_breaks_off_is_sent() -> None:
    async def act(
        reader: asyncio.StreamReader, connection: Connection, answer: asyncio.Event
    ) -> bytes:
        connection.cycle.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
        connection.cycle.transport.close()
        answer.set()
        return await statuses(reader)

    assert talk(GET, act) == b"200"
