"""``bmnas serve``: answer requests for a model over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from bmnas.machine.errors import UserError


def serve(
    model: Annotated[
        Path, Argument(help="A bundle folder that 'bmnas export' wrote, or an .onnx file.")
    ],
    target: Annotated[
        str | None, Option(help="Which of the bundle's targets to run, by default onnx.")
    ] = None,
    host: Annotated[
        str, Option(help="Address to listen on; 0.0.0.0 is every address of the machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, Option(min=0, max=65535, help="Port for HTTP; 0 takes any free one.")
    ] = 8000,
    threads: Annotated[
        int | None, Option(min=1, help="Threads of one model run, by default one a CPU.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "tensorrt"],
        Option(help="Where the model runs; all but cpu need the extra gpu."),
    ] = "cpu",
    max_batch: Annotated[
        int, Option(min=1, help="Largest number of samples in one request.")
    ] = 1024,
    max_body_mb: Annotated[int, Option(min=1, help="Largest request body, in MiB.")] = 32,
) -> None:
    """Serve a bundle or a model.onnx over the Open Inference Protocol v2 (HTTP, JSON tensors).

    The address is printed to standard error when the server is ready; a browser shows there what
    is served and a command to try. SIGTERM and Ctrl-C finish the requests in flight, then stop.

    Example: bmnas serve runs/digits/bundle --port 8000
    """
    with needing("serve", "serving"):
        from bmnas_serve.runner import PROVIDERS
        from bmnas_serve.server import serve as run_server

        run_server(
            model,
            target=target,
            host=host,
            port=port,
            intra_op_threads=threads,
            providers=PROVIDERS[device],
            max_batch=max_batch,
            max_body_bytes=max_body_mb * 2**20,
        )


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
