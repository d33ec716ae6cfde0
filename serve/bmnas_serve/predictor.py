"""Between the protocol and the session: what runs when, and in which thread."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.errors import InferenceError
from bmnas_serve.session import Session


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
