"""What the server does between requests: its readiness, and the thread that runs the model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.errors import InferenceError
from bmnas_serve.session import Session

_TURN_SECONDS = 0.02


class Lifecycle:
    """Readiness and the number of requests in flight; used from the event loop's thread only.

    A draining server answers what still reaches it, as requests may be on their way already,
    but calls itself not ready, so that load balancers send it no more.
    """

    def __init__(self) -> None:
        self.started = False
        self.draining = False
        self.in_flight = 0

    @property
    def ready(self) -> bool:
        """Tell whether the server has started and is not stopping."""
        return self.started and not self.draining

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request as in flight while the block runs."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def drain(self, quiet_seconds: float, limit_seconds: float) -> None:
        """Stop being ready; return when nothing was in flight for a while, or at the limit."""
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_seconds
        quiet = 0.0
        # Quiet is counted in turns of the loop: while it decodes a large body, requests that
        # have come in are not seen, and the clock alone would take that for silence.
        while quiet < quiet_seconds and loop.time() < deadline:
            await asyncio.sleep(_TURN_SECONDS)
            quiet = 0.0 if self.in_flight else quiet + _TURN_SECONDS


class Predictor:
    """Runs a session in one worker thread, so that the event loop never waits for it.

    One thread and not several: onnxruntime spreads a single run over the cores already, and
    requests that wait for one thread are those that can be joined to a batch. Use it as a
    context manager: on leaving, the runs that wait are dropped and the one under way ends.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bmnas-session")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._worker.shutdown(cancel_futures=True)

    async def predict(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every output for checked ``inputs``, by name.

        Raises InferenceError when the model fails or when an output is not finite.
        """
        loop = asyncio.get_running_loop()
        outputs = await loop.run_in_executor(self._worker, self.session.run, inputs)
        for name, array in outputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InferenceError(
                    f"{self.session.name}: the output {name!r} holds NaN or infinity for these"
                    " inputs; check that they were preprocessed as the model's metadata says"
                )
        return outputs
