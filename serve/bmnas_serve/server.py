"""The process around the application: socket, signals, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.types import ASGIApp

from bmnas_serve.app import create_app
from bmnas_serve.bodies import Bodies
from bmnas_serve.connection import Connection
from bmnas_serve.errors import InferenceError, ServeError, one_line
from bmnas_serve.guard import Guard
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.logs import configure
from bmnas_serve.metrics import Metrics
from bmnas_serve.repository import Repository
from bmnas_serve.runner import CPU
from bmnas_serve.session import Session, Source
from bmnas_serve.settings import Settings
from bmnas_serve.traces import traced
from bmnas_serve.tuning import open_fastest

if TYPE_CHECKING:
    from bmnas_serve.grpc_server import GrpcServer

#: A stop begins when nothing was in flight for so long: requests may still be on their way.
QUIET_SECONDS = 0.3
#: What a stop keeps of its time for closing connections and models, as a share.
_CLOSING = 0.1

#: How often connections are looked at, in ticks of uvicorn, of which there are ten in a second.
_TICKS = 10
#: Options of glibc's mallopt (M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD) and their values:
#: the tensors of requests are below these sizes, for which each time the system takes a while.
_MALLOC = ((-8, 1), (-3, 4 * 2**20), (-1, 16 * 2**20))
_SWITCH_SECONDS = 0.0001
_GARBAGE = 50_000

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def serve(model: Path, settings: Settings) -> None:
    """Serve what ``Repository.open`` finds at ``model`` until SIGTERM or SIGINT; then return.

    The address is printed to standard error when the server is ready. After a signal, readiness
    turns 503 while liveness stays 200, requests in flight are finished, those whose bodies do not
    come to an end are dropped, and a second signal stops at once.
    Raises ServeError when the address cannot be had, BundleError when the model cannot be opened.
    """
    settings.check_tls()
    _keep_memory_low()
    with _bind(settings.host, settings.port) as listener, contextlib.ExitStack() as last:
        repository = Repository.open(model, partial(_open, settings), settings.queue)
        names = ", ".join(dict.fromkeys(served.name for served in repository.served()))
        lifecycle = Lifecycle()
        bodies = Bodies(
            settings.max_body_bytes, lifecycle=lifecycle, seconds=settings.connections.body
        )
        metrics = Metrics()
        app = create_app(
            repository,
            lifecycle=lifecycle,
            max_batch=settings.max_batch,
            bodies=bodies,
            metrics=metrics,
            model_control=settings.controllable,
            samples=settings.shows_samples,
        )
        guarded: ASGIApp = Guard(app, settings.hosts, settings.token, metrics)
        if settings.traces:
            guarded, send_last = traced(guarded)
            last.callback(send_last)
        scheme = "https" if settings.certificate else "http"
        address = _address(scheme, listener)
        server = _Server(
            _config(guarded, settings),
            lifecycle,
            settings.stop_seconds,
            lambda also: _say(f"serving {names} at {address}{also} (stop with Ctrl-C)"),
            _grpc_server(repository, lifecycle, bodies, settings, metrics),
        )
        configure(settings.log_format, requests=settings.log_requests)
        # uvicorn has one line for requests that a stop cancels; a traceback of each is noise.
        logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
        _keep_pauses_short()
        server.run(sockets=[listener])


def _config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    limits = settings.connections
    return uvicorn.Config(
        app,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=round(limits.idle),
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )


def _keep_memory_low() -> None:
    """Have glibc give back what large bodies and replaced models took; others do of themselves.

    By default it keeps memory for each thread apart, and after it had some MiB in one piece it
    keeps such pieces: six bodies of 28 MiB left 80 MiB.
    """
    if platform.libc_ver()[0] == "glibc":
        for option, value in _MALLOC:
            ctypes.CDLL(None).mallopt(option, value)


def _keep_pauses_short() -> None:
    # By default a thread may keep the others waiting for 5 ms, which is many requests. The event
    # loop waits anew after each answer that it sends, while a large body is read.
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    # To look for garbage in all that is there stops everything: what is there now stays, and a
    # list of thousands of rows is no reason to look.
    gc.freeze()
    gc.set_threshold(_GARBAGE, *gc.get_threshold()[1:])


def _open(settings: Settings, model: Path) -> Session:
    source = Source.read(model, settings.target)
    open_with = partial(Session.of_source, source, providers=settings.providers)
    if settings.threads is not None or tuple(settings.providers) != (CPU,):
        return open_with(intra_op_threads=settings.threads)
    try:
        session, found = open_fastest(lambda count: open_with(intra_op_threads=count))
    except InferenceError as error:
        _say(f"{model}: 1 thread, as it does not run on a sample of zeros: {error}")
        return open_with(intra_op_threads=1)
    _say(f"{session.name}: {found} is fastest here; sha256 {session.sha256}")
    return session


def _grpc_server(
    repository: Repository,
    lifecycle: Lifecycle,
    bodies: Bodies,
    settings: Settings,
    metrics: Metrics,
) -> GrpcServer | None:
    if settings.grpc_port is None:
        return None
    try:
        # Here, as it is an extra, and takes its time and memory.
        from bmnas_serve.grpc_server import GrpcServer, Service
    except ModuleNotFoundError as error:
        raise ServeError(
            f"gRPC needs the package {error.name}, which is not installed: run"
            " pip install 'bmnas[grpc]'"
        ) from error

    service = Service(repository, lifecycle, bodies, settings.max_batch, settings.controllable)
    return GrpcServer(service, settings, metrics)


class _Server(uvicorn.Server):
    """uvicorn's server, but a signal first drains: readiness 503, liveness 200, work goes on."""

    def __init__(
        self,
        config: uvicorn.Config,
        lifecycle: Lifecycle,
        stop_seconds: float,
        on_ready: Callable[[str], None],
        grpc_server: GrpcServer | None,
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._stop_seconds = stop_seconds
        self._stop_at = math.inf
        self._on_ready = on_ready
        self._grpc_server = grpc_server
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # First, as its port can be in use; that of HTTP is bound already.
        also = (
            "" if self._grpc_server is None else f" and gRPC at {await self._grpc_server.start()}"
        )
        await super().startup(sockets)
        self._on_ready(also)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                connection.expire(now)
        return await super().on_tick(counter)

    def _connections(self) -> list[Connection]:
        return cast(list[Connection], list(self.server_state.connections))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        dropped = [connection for connection in self._connections() if connection.half_open]
        if dropped and not self.force_exit:
            _say(f"unfinished requests dropped: {len(dropped)}")
        for connection in dropped:
            connection.transport.abort()
        if self._grpc_server is not None:
            await self._grpc_server.stop(0)
        left = self._stop_at - asyncio.get_running_loop().time()
        self.config.timeout_graceful_shutdown = max(1, math.floor(left))
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
            self._stop_at = asyncio.get_running_loop().time() + self._stop_seconds
            # Whatever happens, such as a run of the model that does not end.
            last = threading.Timer(self._stop_seconds, _give_up, [self._stop_seconds])
            last.daemon = True
            last.start()
            self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit())
            return
        self.should_exit = True
        self.force_exit = True
        _say(f"stopping at once; requests dropped: {self._lifecycle.requests.number}")
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _drain_and_exit(self) -> None:
        await self._lifecycle.drain(QUIET_SECONDS, self._stop_seconds * (1 - _CLOSING) - 1)
        self.should_exit = True


def _give_up(seconds: float) -> None:
    _say(f"not stopped within {seconds:g} s: leaving at once")
    os._exit(1)


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


def _address(scheme: str, listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
