from __future__ import annotations

import importlib.metadata
import socket
import sys

import bmnas_serve.server
import onnxruntime as ort
import pytest
import typer
from bmnas_serve.settings import Settings
from tiny_bundles import save_bundle
from typer.testing import CliRunner

import bmnas.cli
from bmnas.cli.serve import serve
from bmnas.machine.errors import UserError


def asked(*options: object) -> None:
    """Run ``bmnas serve`` in this process; what it raises is raised."""
    outcome = CliRunner().invoke(bmnas.cli.app, ["serve", *map(str, options)])
    if outcome.exception:
        raise outcome.exception


def test_help_ends_with_an_example():
    app = typer.Typer()
    app.command()(serve)
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert "Example: bmnas serve runs/digits/bundle --port 8000" in shown.stdout
    for option in ("--host", "--port", "--threads", "--device", "--max-batch", "--max-body-mb"):
        assert option in shown.stdout


def test_options_reach_the_server(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        bmnas_serve.server, "serve", lambda model, settings: calls.append((model, settings))
    )
    app = typer.Typer()
    app.command()(serve)
    options = [
        "net.onnx",
        "--port",
        "0",
        "--target",
        "onnx-int8",
        "--threads",
        "2",
        "--device",
        "cuda",
        "--max-body-mb",
        "1",
    ]
    assert CliRunner().invoke(app, options).exit_code == 0
    [(model, settings)] = calls
    assert model.name == "net.onnx"
    assert settings == Settings(
        target="onnx-int8",
        port=0,
        threads=2,
        providers=("CUDAExecutionProvider",),
        max_body_bytes=2**20,
    )


@pytest.fixture
def settings_of(tmp_path, monkeypatch):
    """Return the settings that ``bmnas serve`` makes of options, environment and file."""
    calls: list[Settings] = []
    monkeypatch.setattr(bmnas_serve.server, "serve", lambda model, settings: calls.append(settings))

    def settings_of(*options: str, file: str = "", **environment: str) -> Settings:
        (tmp_path / "serve.toml").write_text(file)
        for name, value in environment.items():
            monkeypatch.setenv(f"BMNAS_SERVE_{name}", value)
        asked("net.onnx", "--config", tmp_path / "serve.toml", *options)
        return calls[-1]

    return settings_of


def test_an_option_counts_before_the_environment_and_that_before_the_file(settings_of):
    assert settings_of(file="queue_rows = 5").queue.rows == 5
    assert settings_of(file="queue_rows = 5", QUEUE_ROWS="6").queue.rows == 6
    found = settings_of("--queue-rows", "7", file="queue_rows = 5\nport = 9", QUEUE_ROWS="6")
    assert (found.queue.rows, found.port) == (7, 9)
    names = settings_of(file='allowed_host = ["a.example", "b.example"]')
    assert names.hosts == {"a.example", "b.example", "127.0.0.1"}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("queue_row = 5", "received 'queue_row', expected some of model, host, port"),
        ("queue_rows =", "cannot be read as TOML"),
    ],
)
def test_a_file_that_is_wrong_is_a_user_error(settings_of, file, message):
    with pytest.raises(UserError, match=message):
        settings_of(file=file)


def test_a_token_comes_from_a_file(settings_of, tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert settings_of("--token-file", str(path)).token == "0123456789abcdef"
    path.write_text("short")
    with pytest.raises(UserError, match="expected a token of at least 16 ASCII characters"):
        settings_of("--token-file", str(path))
    with pytest.raises(UserError, match="cannot be read as a token"):
        settings_of("--token-file", str(tmp_path / "absent"))


def test_mistakes_of_the_user_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        asked(tmp_path / "absent", "--port", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--port"):
        asked(tmp_path, "--port", taken.getsockname()[1])


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_cuda_without_cuda_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="this onnxruntime has no CUDAExecutionProvider"):
        asked(save_bundle(tmp_path / "b"), "--port", 0, "--device", "cuda")


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "bmnas_serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"the package uvicorn.*pip install 'bmnas\[serve\]'"):
        asked(tmp_path)


def test_grpc_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "bmnas_serve.grpc_server", raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(UserError, match=r"gRPC needs the package grpc, .*'bmnas\[grpc\]'"):
        asked(save_bundle(tmp_path / "b"), "--port", 0, "--grpc-port", 0)


def test_two_builds_of_onnxruntime_are_a_user_error(tmp_path, monkeypatch):
    for name in ("server", "app", "session", "runner", "settings", "metadata", "repository"):
        monkeypatch.delitem(sys.modules, f"bmnas_serve.{name}", raising=False)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: object())
    with pytest.raises(UserError, match="both onnxruntime and onnxruntime-gpu are installed"):
        asked(tmp_path)
