"""The command line: one Typer program.

Progress and messages go to standard error, results to standard output. Exit status: 0 done, 2 the
user's input is wrong (one line), 1 anything else.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import typer

from bmnas.cli.check import check
from bmnas.cli.export import export
from bmnas.cli.genotype import genotype
from bmnas.cli.init import init
from bmnas.cli.plan import plan
from bmnas.cli.predict import predict
from bmnas.cli.pretrain import pretrain
from bmnas.cli.search import search
from bmnas.cli.serve import serve
from bmnas.cli.show import compare, show
from bmnas.cli.sweep import bench, sweep
from bmnas.cli.tabular import tabular
from bmnas.cli.tasks import presets, tasks
from bmnas.cli.train import train
from bmnas.cli.verify import verify
from bmnas.machine.errors import UserError

#: Packages that some commands need, by the extra that brings them.
_EXTRAS = {
    "PIL": "media",
    "av": "media",
    "h5py": "paper",
    "matplotlib": "search",
    "pyarrow": "media",
    "ray": "sweep",
    "safetensors": "search",
    "sklearn": "search",
    "soundfile": "media",
    "soxr": "media",
    "torch": "search",
    "transformers": "hf",
}

_INTERRUPTED = 130  # what typer makes of Ctrl-C

#: What a wrong option or argument raises: typer's copy of click has it, or click itself.
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="bmnas",
    help="Multimodal architecture search, from pretrained unimodal networks to a served model.",
    epilog="Start with: bmnas search",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_commands = (
    init, pretrain, search, train, genotype, sweep, export, verify, predict, serve, show, compare,
    bench, plan, check, tasks, presets,
)  # fmt: skip
#: Of predict, whose further options are the columns of a table.
_ANY_OPTION: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
#: Of serve, whose options may come from the environment.
_FROM_ENVIRONMENT: dict[str, Any] = {"auto_envvar_prefix": "BMNAS_SERVE"}
_settings: dict[Any, Any] = {predict: _ANY_OPTION, serve: _FROM_ENVIRONMENT}
for _command in _commands:
    app.command(context_settings=_settings.get(_command))(_command)
app.add_typer(tabular, name="tabular")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from bmnas import __version__

        print(__version__)
        raise typer.Exit


def _joined() -> AbstractContextManager[None]:
    """Join the other processes if torchrun started this one; else do not wait for torch."""
    if "WORLD_SIZE" not in os.environ:
        return nullcontext()
    from bmnas.machine.distributed import joined

    return joined()


def main() -> None:
    """Run the command line and leave with its exit status."""
    # Read when torch is loaded. A thread that waits by counting keeps the one that it waits for
    # from a core, where other programs need cores too: 60 times as long for a small step.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    status = _run()
    if "WORLD_SIZE" in os.environ:
        # DistributedDataParallel keeps threads of gloo, which may abort a process that ends slowly.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run() -> int:
    """Run a command and return its exit status; what went wrong is told in one line."""
    try:
        with _joined():
            status = app(prog_name="bmnas", standalone_mode=False)
            if status == _INTERRUPTED:
                raise typer.Abort
        return status or 0
    except UserError as error:
        return _failed(2, str(error))
    except _UsageError as error:
        # Without a command the help was printed, and nothing is left to say.
        if not error.format_message():
            return 2
        command = "bmnas" if error.ctx is None else error.ctx.command_path
        return _failed(2, f"{error.format_message().rstrip('.')}; see {command} --help")
    except typer.Abort:
        return _failed(1, "stopped; pretrain, search and train go on with --resume")
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        install = f"pip install 'bmnas[{_EXTRAS[error.name]}]'"
        return _failed(
            2, f"this needs the package {error.name}, which is not installed: run {install}"
        )
    except BrokenPipeError:
        # Whoever read our output has gone (`bmnas show … | head`); nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _failed(1, f"{place}{error.strerror or error}")


def _failed(status: int, message: str) -> int:
    # One line, whatever the names of files and arrays are made of.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
