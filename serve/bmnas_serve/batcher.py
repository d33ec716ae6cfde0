"""Requests to one model: those that come in while it runs form its next batch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bmnas_serve.errors import InferenceError, RequestError, busy
from bmnas_serve.logs import LOG
from bmnas_serve.session import Session

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
#: What comes of a request: its outputs by name, or what is raised where it waits.
Outcome: TypeAlias = dict[str, NDArray[Any]] | Exception

#: How much the time of the last run counts in the estimate of the time that a row takes.
_RECENT = 0.2
#: How many batches the thread has at most: one that runs, and a full one.
_AHEAD = 2
#: Where requests come close together, a run begins when the event loop has had nothing else to do
#: for so many seconds: what it does is mostly to receive more of them.
_PAUSE_SECONDS = 0.0002
#: A turn of the loop that takes longer had something else to do.
_TURN_SECONDS = 0.00002
#: So long a run is put off at most.
_GATHER_SECONDS = 0.005
#: With so many rows it is put off no longer: more would keep the session waiting for the event
#: loop, and then the event loop for the session.
_ENOUGH = 8


@dataclass(frozen=True)
class QueueLimits:
    """What waits for a model: ``rows``, ``bytes`` of inputs, and a request for ``seconds``.

    A request of any size waits where nothing else does. Requests are run together up to
    ``batch_rows``, or as many as the session says; one that has more is run by itself.
    """

    rows: int = 1024
    bytes: int = 256 * 2**20
    seconds: float = 30.0
    batch_rows: int | None = None


@dataclass
class Client:
    """Who sent a request: ``leaving`` since it sends no more, ``gone`` since it hears no more."""

    leaving: bool = False
    gone: bool = False


#: The client of the request that a task answers, where the connection is known.
CLIENT: ContextVar[Client | None] = ContextVar("CLIENT", default=None)


@dataclass(frozen=True)
class Run:
    """A run of the model: ``waits`` are how long each of its requests waited for it, in seconds."""

    rows: int
    seconds: float
    waits: Sequence[float]
    failures: int


@dataclass(eq=False, slots=True)
class _Waiting:
    inputs: Arrays
    rows: int
    bytes: int
    kind: tuple[Any, ...]
    since: float
    answer: asyncio.Future[dict[str, NDArray[Any]]]
    client: Client


class Batcher:
    """Runs a session in one thread, so that the event loop never waits for it.

    A request that finds the session idle is run at once; those that come in meanwhile are run
    together after it, in order of arrival, and with those that the event loop is just receiving:
    a run for each would take more time than they wait. A full batch is handed over before the run
    under way ends, so that the thread need not wait for the event loop. One thread and not several:
    onnxruntime spreads a run over cores by itself. ``watch`` is called with every ``Run``. Used
    from the event loop's thread only.
    """

    def __init__(
        self,
        session: Session,
        limits: QueueLimits | None = None,
        watch: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self.session = session
        self.limits = limits or QueueLimits()
        self._watch = watch
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bmnas-session")
        self._queue: dict[_Waiting, None] = {}
        self._rows = 0
        self._bytes = 0
        self._row_seconds = 0.0
        #: The rows of the batches that the thread has: the first runs, the next one waits.
        self._handed: deque[int] = deque()
        #: Whether requests came in while another ran, and whether a run is put off for more.
        self._crowded = self._gathering = False
        self._closed = False
        self._batch_rows = self.limits.batch_rows or session.batch_rows

    def close(self) -> None:
        """Drop what waits; returns when the run under way has ended."""
        self._closed = True
        self._worker.shutdown(cancel_futures=True)

    @property
    def waiting(self) -> int:
        """The number of rows that wait, those of the batch that runs next among them."""
        return self._rows + sum(islice(self._handed, 1, None))

    async def predict(
        self, inputs: Arrays, *, deadline: float | None = None
    ) -> dict[str, NDArray[Any]]:
        """Return every output for checked ``inputs``, by name.

        ``deadline`` is a time of the event loop's clock, None for the limit of the queue.
        Raises RequestError: 503 when the queue is full, 504 at the deadline, 422 when an output
        is not finite; InferenceError when the model fails. Cancelled, it no longer waits.
        """
        if self._closed:
            raise RuntimeError(f"{self.session.name}: this version is closed")
        loop = asyncio.get_running_loop()
        now = loop.time()
        latest = now + self.limits.seconds
        until = latest if deadline is None else min(deadline, latest)
        if until <= now:
            message = "its time was over before the model could run: send it again"
            raise RequestError(504, message)
        waiting = self._enter(inputs, loop)
        timer = loop.call_at(until, _expire, waiting, until - now)
        try:
            self._run_soon(loop)
            return await waiting.answer
        finally:
            timer.cancel()
            self._leave(waiting)

    def check_room(self, rows: int = 1, size: int = 0) -> None:
        """Raise RequestError (503) when so many rows and bytes would not be let wait.

        Asked before a body is read, it saves the work on one that will be refused.
        """
        if not self._has_room(rows, size):
            self._drop_answered()
            if not self._has_room(rows, size):
                raise busy(
                    f"{self.session.name}: {self.waiting:,} rows wait already",
                    self.waiting * self._row_seconds,
                )

    def _enter(self, inputs: Arrays, loop: asyncio.AbstractEventLoop) -> _Waiting:
        rows = max((len(x) for x in inputs.values() if x.ndim), default=1)
        size = sum(x.nbytes for x in inputs.values())
        self.check_room(rows, size)
        kind = tuple((x.shape[1:], x.dtype) for x in inputs.values())
        client = CLIENT.get() or Client()
        since = time.monotonic()  # the loop's time goes in steps
        waiting = _Waiting(inputs, rows, size, kind, since, loop.create_future(), client)
        self._queue[waiting] = None
        self._rows += rows
        self._bytes += size
        return waiting

    def _has_room(self, rows: int, size: int) -> bool:
        fits = self.waiting + rows <= self.limits.rows and self._bytes + size <= self.limits.bytes
        return fits or not self.waiting

    def _drop_answered(self) -> None:
        for waiting in [w for w in self._queue if w.client.gone or w.answer.done()]:
            self._leave(waiting)
            _fail(waiting, RequestError(499, "the client has gone"))

    def _leave(self, waiting: _Waiting) -> None:
        if waiting in self._queue:
            del self._queue[waiting]
            self._rows -= waiting.rows
            self._bytes -= waiting.bytes

    def _run_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run what waits: at once, or where requests come close together, when they pause."""
        if self._handed or not (self._crowded and self.session.joins):
            self._run_next(loop)
        elif not self._gathering:
            self._gathering = True
            now = time.monotonic()
            loop.call_soon(self._gather, loop, now + _GATHER_SECONDS, now, now)

    def _gather(
        self, loop: asyncio.AbstractEventLoop, until: float, turned: float, busy: float
    ) -> None:
        """Run what waits by ``until``; the loop was at this place at ``turned``, ``busy`` then."""
        now = time.monotonic()
        if now - turned > _TURN_SECONDS:
            busy = now
        pause = min(until, busy + _PAUSE_SECONDS)
        if now < pause and self._rows < min(_ENOUGH, self._batch_rows):
            loop.call_soon(self._gather, loop, until, now, busy)
            return
        self._gathering = False
        self._run_next(loop)

    def _run_next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over the next batch to the idle thread; the one after it too, once it is full."""
        while len(self._handed) < _AHEAD:
            if self._handed and self.session.joins and self._rows < self._batch_rows:
                return
            batch, full = self._next_batch()
            if not batch or (self._handed and not full):
                return
            for waiting in batch:
                self._leave(waiting)
            self._handed.append(sum(waiting.rows for waiting in batch))
            done = loop.run_in_executor(self._worker, self._run, batch)
            done.add_done_callback(partial(self._finish, batch, loop))

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """Return the next batch, which still waits, and whether nothing more will join it.

        Requests stay in order, but those of clients that are leaving come last, one at a time.
        """
        self._drop_answered()
        if self._closed or not self._queue:
            return [], False
        present = (waiting for waiting in self._queue if not waiting.client.leaving)
        first = next(present, None)
        if first is None:
            return [next(iter(self._queue))], False
        batch, rows = [first], first.rows
        for waiting in present if self.session.joins else ():
            if waiting.kind != first.kind or rows + waiting.rows > self._batch_rows:
                return batch, True
            batch.append(waiting)
            rows += waiting.rows
        return batch, rows >= self._batch_rows or not self.session.joins

    def _finish(
        self,
        batch: list[_Waiting],
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[tuple[float, float, list[Outcome]]],
    ) -> None:
        rows = self._handed.popleft()
        self._crowded = len(batch) > 1 or bool(self._queue)
        if self._queue:
            self._run_soon(loop)
        if done.cancelled():
            return
        started, seconds, outcomes = done.result()
        self._row_seconds += _RECENT * (seconds / rows - self._row_seconds)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                _fail(waiting, outcome)
            elif not waiting.answer.done():
                waiting.answer.set_result(outcome)
        failures = sum(isinstance(outcome, Exception) for outcome in outcomes)
        self._watch(Run(rows, seconds, [started - w.since for w in batch], failures))

    def _run(self, batch: list[_Waiting]) -> tuple[float, float, list[Outcome]]:
        """Run a batch in the worker's thread; return its start, its seconds and what came of it."""
        started = time.monotonic()
        outcomes = self._outcomes(batch)
        return started, time.monotonic() - started, outcomes

    def _outcomes(self, batch: list[_Waiting]) -> list[Outcome]:
        """Return what comes of each request."""
        if len(batch) > 1:
            try:
                return self._together(batch)
            except Exception:
                pass  # one of them may be to blame: each is run by itself, and is told
        return [self._alone(waiting.inputs) for waiting in batch]

    def _together(self, batch: list[_Waiting]) -> list[Outcome]:
        names = batch[0].inputs
        joined = {name: np.concatenate([w.inputs[name] for w in batch]) for name in names}
        outputs = self.session.run(joined)
        ends = list(accumulate(waiting.rows for waiting in batch))
        for name, array in outputs.items():
            if len(array) != ends[-1]:
                raise InferenceError(f"{name!r} has {len(array)} rows, expected {ends[-1]}")
        starts = [end - waiting.rows for end, waiting in zip(ends, batch, strict=True)]
        parts = [
            {name: array[start:end] for name, array in outputs.items()}
            for start, end in zip(starts, ends, strict=True)
        ]
        # Only where something is wrong it is looked for in each.
        return list(parts if _problem(outputs) is None else map(self._answer, parts))

    def _alone(self, inputs: Arrays) -> Outcome:
        try:
            return self._answer(self.session.run(inputs))
        except Exception as error:
            return error  # raised where the request waits

    def _answer(self, outputs: dict[str, NDArray[Any]]) -> Outcome:
        """Return ``outputs``, or the error in their place; the model may be to blame for it."""
        problem = _problem(outputs)
        if problem is None:
            return outputs
        message = f"{self.session.name}: {problem}"
        LOG.warning(message)
        return RequestError(422, message)


def _problem(outputs: Arrays) -> str | None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return (
                f"the output {name!r} holds NaN or infinity for these inputs; check that they were"
                " preprocessed as the model's metadata says"
            )
    return None


def _expire(waiting: _Waiting, seconds: float) -> None:
    message = f"no answer within {round(seconds, 2):g} s: send it again, or fewer rows at a time"
    _fail(waiting, RequestError(504, message))


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)
