from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from bmnas_serve.batcher import Client
from bmnas_serve.bodies import Bodies, unless_gone
from bmnas_serve.errors import RequestError
from bmnas_serve.lifecycle import Lifecycle
from starlette.requests import Request

MIB = 2**20


def request(chunks: AsyncIterator[bytes]) -> Request:
    async def receive() -> dict[str, Any]:
        chunk = await anext(chunks, None)
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def pieces(*sizes: int, then: Callable[[], Awaitable[Any]] | None = None):
    for size in sizes:
        yield b" " * size
    if then is not None:
        await then()


def test_bodies_in_memory_are_bounded_in_total_and_small_ones_always_welcome():
    async def go() -> None:
        with Bodies(largest=2 * MIB, total=3 * MIB) as bodies:
            async with bodies.received(request(pieces(MIB, MIB))) as first:
                assert len(first) == 2 * MIB
                with pytest.raises(RequestError, match="send the request again in 1 s") as caught:
                    async with bodies.received(request(pieces(MIB, MIB))):
                        pass
                assert (caught.value.status, caught.value.retry_after) == (503, 1)
                async with bodies.received(request(pieces(60_000))) as small:
                    assert len(small) == 60_000
            async with bodies.received(request(pieces(MIB, MIB))) as again:
                assert len(again) == 2 * MIB

    asyncio.run(go())


def test_unfinished_bodies_count_by_what_was_received():
    async def go() -> None:
        more = asyncio.Event()
        with Bodies(largest=MIB, total=MIB) as bodies:

            async def slow() -> None:
                async with bodies.received(request(pieces(MIB - 1000, then=more.wait))):
                    pass

            waiting = asyncio.create_task(slow())
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="too many bytes"):
                async with bodies.received(request(pieces(MIB // 2))):
                    pass
            more.set()
            await waiting

    asyncio.run(go())


@pytest.mark.parametrize("others", [True, False])
def test_large_bodies_are_received_in_turns_while_others_wait(monkeypatch, others):
    turns: list[float] = []
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        turns.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", short)

    async def go() -> None:
        lifecycle = Lifecycle()
        with Bodies(lifecycle=lifecycle) as bodies, lifecycle.requests:
            with lifecycle.requests if others else contextlib.nullcontext():
                async with bodies.received(request(pieces(MIB, MIB, MIB))) as body:
                    assert len(body) == 3 * MIB
            async with bodies.received(request(pieces(60_000, 60_000))):
                pass

    asyncio.run(go())
    assert len(turns) == (2 if others else 0)


def test_a_body_has_to_arrive_in_time():
    async def go() -> None:
        with (
            Bodies(seconds=0.05) as bodies,
            pytest.raises(RequestError, match=r"received 7 bytes within 0\.05 s") as caught,
        ):
            async with bodies.received(request(pieces(7, then=asyncio.Event().wait))):
                pass
        assert caught.value.status == 408

    asyncio.run(go())


def test_large_bodies_are_worked_on_one_at_a_time_and_hold_nobody_up():
    async def go() -> list[str]:
        first = threading.Event()
        done: list[str] = []

        def work(name: str, wait: bool = False) -> str:
            if wait:
                assert first.wait(10)
            done.append(name)
            return threading.current_thread().name

        with Bodies() as bodies:
            large = [
                asyncio.create_task(bodies.beside(2 * MIB, work, "large", wait=True)),
                asyncio.create_task(bodies.beside(2 * MIB, work, "large too")),
            ]
            await asyncio.sleep(0)
            assert (await bodies.beside(10_000, work, "usual")).startswith("bmnas-bodies")
            assert await bodies.beside(100, work, "small") == threading.current_thread().name
            first.set()
            await asyncio.gather(*large)
        return done

    assert asyncio.run(go()) == ["usual", "small", "large", "large too"]


def test_work_for_a_client_that_is_gone_is_dropped() -> None:
    client = Client(gone=True)
    with pytest.raises(RequestError, match="the client has gone"):
        unless_gone(client, lambda: pytest.fail("was done"))
    client.gone = False
    assert unless_gone(client, lambda: 1) == 1
