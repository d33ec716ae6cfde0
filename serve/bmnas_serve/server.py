"""The process around the application: socket, signals, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn

from bmnas_serve.app import MAX_BATCH, create_app
from bmnas_serve.bodies import MAX_BODY_BYTES, Bodies
from bmnas_serve.errors import ServeError, one_line
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.repository import Repository
from bmnas_serve.runner import CPU
from bmnas_serve.session import Session

#: How long a stop waits for requests in flight.
DRAIN_SECONDS = 30.0
#: A stop begins when nothing was in flight for so long: requests may still be on their way.
QUIET_SECONDS = 0.3

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(
    model: Path,
    *,
    target: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    intra_op_threads: int | None = None,
    providers: Sequence[str] = (CPU,),
    max_batch: int = MAX_BATCH,
    max_body_bytes: int = MAX_BODY_BYTES,
    drain_seconds: float = DRAIN_SECONDS,
) -> None:
    """Serve what ``Repository.open`` finds at ``model`` until SIGTERM or SIGINT; then return.

    ``target`` is as in ``Session.open``.
    Port 0 takes any free port; the address is printed to standard error when the server is
    ready. After a signal, readiness turns 503 while liveness stays 200, requests in flight are
    finished for at most ``drain_seconds``, and a second signal stops at once.
    Raises ServeError when the address cannot be had, BundleError when the model cannot be opened.
    """
    with _bind(host, port) as listener:
        open_session = partial(
            Session.open, target=target, intra_op_threads=intra_op_threads, providers=providers
        )
        repository = Repository.open(model, open_session)
        names = ", ".join(dict.fromkeys(served.name for served in repository.served()))
        lifecycle = Lifecycle()
        app = create_app(
            repository, lifecycle=lifecycle, max_batch=max_batch, bodies=Bodies(max_body_bytes)
        )
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            ws="none",
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
        message = f"serving {names} at {_address(listener)} (stop with Ctrl-C)"
        # uvicorn has one line for requests that a stop cancels; a traceback of each is noise.
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        server = _Server(config, lifecycle, drain_seconds, lambda: _say(message))
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn's server, but a signal first drains: readiness 503, liveness 200, work goes on."""

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        drain_seconds: float,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_seconds = drain_seconds
        self._on_ready = on_ready
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # Left out by uvicorn, which would end the lifespan with a traceback.
            await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own version stops at once and raises the signal again at the end, so that
        # the process would not exit with 0. Only the main thread may set handlers.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop)

        before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit())
            return
        self.should_exit = True
        self.force_exit = True
        _say(f"stopping at once; requests dropped: {self._lifecycle.in_flight}")
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _drain_and_exit(self) -> None:
        await self._lifecycle.drain(QUIET_SECONDS, self._drain_seconds)
        self.should_exit = True


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address; taken before the model is read, as it fails fast."""
    if not 0 <= port <= 65535:
        raise ServeError(f"cannot listen at port {port}: expected 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ServeError(
            f"cannot listen at {host}: {one_line(error)}; 127.0.0.1 is this machine alone,"
            " 0.0.0.0 all its addresses"
        ) from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A server that was just stopped leaves the port in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ServeError(
            f"cannot listen at {host} port {port}: {error.strerror}; choose another with --port,"
            " 0 takes any free one"
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
