"""``bmnas serve``: answer requests for a model over HTTP."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Context, Option

from bmnas.cli.options import grouped
from bmnas.machine.errors import UserError

#: Shorter ones can be guessed.
_SHORTEST_TOKEN = 16


def _read(context: Context, path: Path | None) -> Path | None:
    """Make the values of the file the defaults of the options."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: cannot be read as TOML: {error}") from error
    known = [str(option.name) for option in context.command.params if option.name != "config"]
    for name in values:
        if name not in known:
            raise UserError(f"{path}: received {name!r}, expected some of {', '.join(known)}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


@dataclass(frozen=True)
class Listening:
    """Where it listens, and to whom."""

    host: Annotated[
        str, Option(help="Address to listen on; 0.0.0.0 is every address of the machine.")
    ] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535, help="Port for HTTP; 0 takes any free one.")] = (
        8000
    )
    grpc_port: Annotated[
        int | None,
        Option(min=0, max=65535, help="Port for gRPC too; 0 takes any free one, by default none."),
    ] = None
    allowed_host: Annotated[
        list[str] | None,
        Option(
            help="A name that the server may be asked under, several times for several; * for"
            " any. By default that of this machine where it listens to itself alone."
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        Option(help="A file with a token that clients show as Authorization: Bearer TOKEN."),
    ] = None
    tls_cert: Annotated[Path | None, Option(help="A certificate in PEM, for HTTPS.")] = None
    tls_key: Annotated[Path | None, Option(help="The key of the certificate, in PEM.")] = None


@dataclass(frozen=True)
class Running:
    """How models run."""

    target: Annotated[
        str | None, Option(help="Which of the bundle's targets to run, by default onnx.")
    ] = None
    device: Annotated[
        Literal["cpu", "cuda", "tensorrt"],
        Option(help="Where the model runs; all but cpu need the extra gpu."),
    ] = "cpu"
    threads: Annotated[
        int | None,
        Option(min=1, help="Threads of one model run; by default a measurement chooses."),
    ] = None
    batch_rows: Annotated[
        int | None,
        Option(
            min=1,
            help="Requests that wait are run together up to so many samples; by default a"
            " measurement chooses.",
        ),
    ] = None


@dataclass(frozen=True)
class Limits:
    """Limits."""

    max_batch: Annotated[int, Option(min=1, help="Largest number of samples in one request.")] = (
        1024
    )
    max_body_mb: Annotated[int, Option(min=1, help="Largest request body, in MiB.")] = 32
    queue_rows: Annotated[
        int, Option(min=1, help="Samples that may wait for a model; more are answered with 503.")
    ] = 1024
    timeout: Annotated[
        float, Option(min=0.001, help="Seconds after which a request that waits gets 504.")
    ] = 30.0
    max_connections: Annotated[int, Option(min=1, help="Connections at once.")] = 512
    stop_seconds: Annotated[float, Option(min=2, help="Longest time from SIGTERM to the end.")] = (
        20.0
    )


@dataclass(frozen=True)
class Showing:
    """What clients may do and see, and what is told."""

    model_control: Annotated[
        bool | None,
        Option(
            help="Whether clients may load and unload models; by default where the server listens"
            " to its own machine alone.",
        ),
    ] = None
    samples: Annotated[
        bool | None,
        Option(
            help="Whether clients may see the test samples in bundles; by default where the server"
            " listens to its own machine alone.",
        ),
    ] = None
    log_format: Annotated[
        Literal["text", "json"], Option(help="How lines of the log are written.")
    ] = "text"
    log_requests: Annotated[
        bool, Option("--log-requests", help="Log every request, not problems alone.")
    ] = False
    traces: Annotated[
        bool,
        Option("--traces", help="Send a span of each request to OTEL_EXPORTER_OTLP_ENDPOINT."),
    ] = False


@grouped
def serve(
    model: Annotated[
        Path,
        Argument(
            help="A bundle folder that 'bmnas export' wrote, a folder of such, or an .onnx file."
        ),
    ],
    listening: Listening,
    running: Running,
    limits: Limits,
    showing: Showing,
    config: Annotated[
        Path | None,
        Option(help="A TOML file of these options: max_batch = 64.", is_eager=True, callback=_read),
    ] = None,
) -> None:
    """Serve a bundle or a model.onnx over the Open Inference Protocol v2 (HTTP, gRPC).

    The address is printed to standard error when the server is ready; a browser shows there a page
    on which the model is tried. SIGTERM and Ctrl-C finish the requests in flight, then stop.
    Every option can be given in the environment too, as BMNAS_SERVE_MAX_BATCH=64, and in the file
    of --config: an option counts before the environment, and that before the file.

    Example: bmnas serve runs/digits/bundle --port 8000
    """
    with needing("serve", "serving"):
        from bmnas_serve.batcher import QueueLimits
        from bmnas_serve.connection import ConnectionLimits
        from bmnas_serve.runner import PROVIDERS
        from bmnas_serve.server import serve as run_server
        from bmnas_serve.settings import Settings

        settings = Settings(
            host=listening.host,
            port=listening.port,
            grpc_port=listening.grpc_port,
            target=running.target,
            threads=running.threads,
            providers=PROVIDERS[running.device],
            max_batch=limits.max_batch,
            max_body_bytes=limits.max_body_mb * 2**20,
            queue=QueueLimits(
                rows=limits.queue_rows, batch_rows=running.batch_rows, seconds=limits.timeout
            ),
            connections=ConnectionLimits(connections=limits.max_connections),
            stop_seconds=limits.stop_seconds,
            allowed_hosts=listening.allowed_host or (),
            token=None if listening.token_file is None else _token(listening.token_file),
            certificate=listening.tls_cert,
            key=listening.tls_key,
            log_format=showing.log_format,
            log_requests=showing.log_requests,
            traces=showing.traces,
            model_control=showing.model_control,
            samples=showing.samples,
        )
        run_server(model, settings)


def _token(path: Path) -> str:
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a token: {error}") from error
    if not token.isascii() or not token.isprintable() or len(token) < _SHORTEST_TOKEN:
        raise UserError(
            f"{path}: expected a token of at least {_SHORTEST_TOKEN} ASCII characters on one line,"
            " such as 'openssl rand -hex 32' prints"
        )
    return token


@contextmanager
def needing(extra: str, doing: str) -> Iterator[None]:
    """Tell the user in one line what ``bmnas_serve`` cannot use, or which package is missing."""
    from bmnas_serve.errors import ServeError

    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{doing} needs the package {error.name}, which is not installed: run "
            f"pip install 'bmnas[{extra}]'"
        ) from error
    except ServeError as error:
        raise UserError(str(error)) from error
