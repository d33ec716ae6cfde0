"""What the server does between requests: whether it is ready, and how it stops."""

from __future__ import annotations

import asyncio

_TURN_SECONDS = 0.02


class Count:
    """How many blocks run under it: ``with count:``."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> None:
        self.number += 1

    def __exit__(self, *exception: object) -> None:
        self.number -= 1


class Lifecycle:
    """Readiness and the number of requests in flight; used from the event loop's thread only.

    A draining server answers what still reaches it, as requests may be on their way already,
    but calls itself not ready, so that load balancers send it no more. ``requests`` counts what is
    in flight, ``receiving`` those of them whose bodies are not complete.
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False
        self.requests = Count()
        self.receiving = Count()

    @property
    def ready(self) -> bool:
        """Tell whether the server has started and is not stopping."""
        return self.started and not self.draining

    @property
    def others(self) -> bool:
        """Tell whether there are requests in flight whose bodies are complete."""
        return self.requests.number > self.receiving.number

    async def drain(self, quiet_seconds: float, limit_seconds: float) -> None:
        """Stop being ready; return when nothing was in flight for a while, or at the limit.

        Bodies that are not complete are waited for in the first quarter of the time only.
        """
        self.draining = True
        loop = asyncio.get_running_loop()
        start = loop.time()
        quiet = 0.0
        # Quiet is counted in turns of the loop: while it decodes a large body, requests that
        # have come in are not seen, and the clock alone would take that for silence.
        while quiet < quiet_seconds and (spent := loop.time() - start) < limit_seconds:
            await asyncio.sleep(_TURN_SECONDS)
            late = spent > limit_seconds / 4
            busy = self.requests.number - (self.receiving.number if late else 0)
            quiet = 0.0 if busy else quiet + _TURN_SECONDS
