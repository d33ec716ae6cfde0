from __future__ import annotations

import importlib.metadata
import socket
import sys

import bmnas_serve.server
import onnxruntime as ort
import pytest
import typer
from tiny_bundles import save_bundle
from typer.testing import CliRunner

from bmnas.cli.serve import serve
from bmnas.machine.errors import UserError


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
        bmnas_serve.server, "serve", lambda model, **options: calls.append((model, options))
    )
    app = typer.Typer()
    app.command()(serve)
    asked = [
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
    assert CliRunner().invoke(app, asked).exit_code == 0
    [(model, options)] = calls
    assert model.name == "net.onnx"
    assert options == {
        "target": "onnx-int8",
        "host": "127.0.0.1",
        "port": 0,
        "intra_op_threads": 2,
        "providers": ("CUDAExecutionProvider",),
        "max_batch": 1024,
        "max_body_bytes": 1048576,
    }


def test_mistakes_of_the_user_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="there is no such file or folder"):
        serve(tmp_path / "absent", port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="--port"):
        serve(tmp_path, port=taken.getsockname()[1])


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_cuda_without_cuda_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="this onnxruntime has no CUDAExecutionProvider"):
        serve(save_bundle(tmp_path / "b"), port=0, device="cuda")


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "bmnas_serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"the package uvicorn.*pip install 'bmnas\[serve\]'"):
        serve(tmp_path)


def test_two_builds_of_onnxruntime_are_a_user_error(tmp_path, monkeypatch):
    for name in ("server", "app", "session", "runner", "lifecycle", "metadata", "repository"):
        monkeypatch.delitem(sys.modules, f"bmnas_serve.{name}", raising=False)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: object())
    with pytest.raises(UserError, match="both onnxruntime and onnxruntime-gpu are installed"):
        serve(tmp_path)
