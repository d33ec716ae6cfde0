from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from command_line import bmnas_command, one_line_error

import bmnas
import bmnas.cli
from bmnas.machine.errors import UserError

COMMANDS = [
    "init",
    "pretrain",
    "search",
    "train",
    "genotype",
    "sweep",
    "export",
    "verify",
    "predict",
    "serve",
    "show",
    "compare",
    "bench",
    "plan",
    "check",
    "tasks",
    "presets",
    "tabular",
]

HEAVY = """
import sys
from unittest import mock
import bmnas.cli
with mock.patch.object(sys, "argv", ["bmnas", *sys.argv[1:]]):
    try:
        bmnas.cli.main()
    except SystemExit as end:
        assert not end.code, end.code
heavy = {"torch", "matplotlib", "sklearn", "safetensors", "onnx", "onnxruntime", "starlette",
         "uvicorn", "transformers", "scipy", "pandas"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["search", "--help"]])
def test_help_is_quick_because_nothing_heavy_is_imported(words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAVY, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP of GNU tells its settings")
@pytest.mark.parametrize("said", [None, "active"])
def test_threads_of_torch_wait_without_counting_unless_told_to(said: str | None) -> None:
    policy = {} if said is None else {"OMP_WAIT_POLICY": said}
    unsaid = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-m", "bmnas", "check", "--task", "digits"],
        env={**unsaid, **policy, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert found
    assert (int(found[1]) == 0) == (said is None)


def test_import_is_light() -> None:
    program = "import sys, bmnas; print(sorted({'torch', 'numpy', 'typer'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_every_name_of_the_package_is_there() -> None:
    for name in bmnas.__all__:
        assert getattr(bmnas, name) is not None
    with pytest.raises(AttributeError, match="module 'bmnas' has no attribute 'serch'"):
        _ = bmnas.serch  # type: ignore[attr-defined]


def test_help_lists_every_command() -> None:
    printed = bmnas_command("--help")
    assert (printed.status, printed.err) == (0, "")
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", printed.out)


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["tabular", "build"]])
def test_the_help_of_every_command_ends_in_an_example(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    printed = bmnas_command(*words, "--help")
    assert (printed.status, printed.err) == (0, "")
    assert f"Example: bmnas {' '.join(words)} " in printed.out
    assert "\x1b" not in printed.out


def test_no_command_is_left_out() -> None:
    callbacks = [info.callback for info in bmnas.cli.app.registered_commands]
    names = [c.__name__ for c in callbacks if c is not None]
    names += [str(group.name) for group in bmnas.cli.app.registered_groups]
    assert names == COMMANDS


def test_the_version_is_printed() -> None:
    assert bmnas_command("--version").out == f"{bmnas.__version__}\n"
    done = subprocess.run(
        [sys.executable, "-m", "bmnas", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{bmnas.__version__}\n"


def test_without_a_command_the_help_is_shown() -> None:
    printed = bmnas_command()
    assert printed.status == 2
    assert "Usage: bmnas" in printed.out + printed.err
    assert "error:" not in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serch"], "No such command 'serch'.*; see bmnas --help"),
        (["search", "--epoch", "3"], "No such option.*--epoch.*; see bmnas search --help"),
        (["search", "--epochs", "ten"], "Invalid value for '--epochs'.*; see bmnas search --help"),
        (["search", "--epochs"], "--epochs.*requires an argument; see bmnas .*--help"),
        (["search", "digits"], "digits: there is no such table.*--task digits"),
        (["train"], "received neither of --genotype and --fusion, expected one of them"),
        (["show"], "Missing argument.*; see bmnas show --help"),
        (["tabular", "mnist"], "No such command 'mnist'.*; see bmnas tabular --help"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], message: str) -> None:
    assert re.search(message, one_line_error(bmnas_command(*words)))


def raising(error: BaseException) -> Any:
    def app(**options: Any) -> NoReturn:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("a file: received 3"), 2, "a file: received 3"),
        (UserError("a\nname"), 2, "a name"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (OSError(28, "No space left on device", "a/b"), 1, "a/b: No space left on device"),
        (OSError("odd"), 1, "odd"),
        (typer.Abort(), 1, "stopped; pretrain, search and train go on with --resume"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "this needs the package torch, which is not installed: run pip install 'bmnas[search]'",
        ),
    ],
)
def test_the_exit_status_says_whose_fault_it_is(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bmnas.cli, "app", raising(error))
    assert one_line_error(bmnas_command(), status) == line


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no", name="of_the_user"), RuntimeError("a bug")]
)
def test_a_bug_is_not_hidden(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bmnas.cli, "app", raising(error))
    with pytest.raises(type(error)) as raised:
        bmnas_command()
    assert raised.value is error


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> NoReturn:
        raise KeyboardInterrupt

    # bmnas.cli.tasks is also the command of that name.
    monkeypatch.setattr(sys.modules["bmnas.cli.tasks"], "preset_names", interrupt)
    printed = bmnas_command("presets")
    assert printed.status == 1
    assert printed.err.strip() == "error: stopped; pretrain, search and train go on with --resume"


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "bmnas", "presets"],
            stdout=gone,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")
