from __future__ import annotations

import asyncio

from bmnas_serve.lifecycle import Lifecycle


def test_ready_between_start_and_stop():
    lifecycle = Lifecycle()
    assert not lifecycle.ready
    lifecycle.started = True
    assert lifecycle.ready
    asyncio.run(lifecycle.drain(0.0, 1.0))
    assert not lifecycle.ready


def test_drain_waits_for_requests_in_flight():
    async def go() -> None:
        lifecycle = Lifecycle()
        with lifecycle.requests:
            drain = asyncio.create_task(lifecycle.drain(0.01, 60.0))
            await asyncio.sleep(0.1)
            assert not drain.done()
            assert lifecycle.draining
        await drain
        assert lifecycle.requests.number == 0

    asyncio.run(go())


def test_drain_has_a_limit():
    async def go() -> None:
        lifecycle = Lifecycle()
        with lifecycle.requests:
            await lifecycle.drain(0.01, 0.05)
            assert lifecycle.requests.number == 1

    asyncio.run(go())


def test_drain_waits_for_unfinished_bodies_a_while_only():
    async def go() -> None:
        lifecycle = Lifecycle()
        with lifecycle.requests, lifecycle.receiving:
            drain = asyncio.create_task(lifecycle.drain(0.01, 2.0))
            await asyncio.sleep(0.1)
            assert not drain.done()
            await drain
            assert lifecycle.requests.number == 1

    asyncio.run(go())
