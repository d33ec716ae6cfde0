"""The files in examples/deploy say what the server takes; no cluster is asked."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bmnas.cli import app

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "examples" / "deploy"


def options(arguments: list[str]) -> dict[str, Any]:
    """Return the options of ``bmnas serve`` with these arguments; raises where it does."""
    program: Any = typer.main.get_command(app)
    command = program.commands["serve"]
    return command.make_context("serve", list(arguments)).params


def dockerfile() -> dict[str, list[str]]:
    """Return the lists of the last stage of the Dockerfile, by instruction."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    return {name: json.loads(found) for name, found in re.findall(r"^(\w+) (\[.*\])$", text, re.M)}


def container() -> Any:
    service = yaml.safe_load((DEPLOY / "kserve.yaml").read_text("utf-8"))
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    [found] = service["spec"]["predictor"]["containers"]
    return found


def test_the_image_starts_the_server():
    lists = dockerfile()
    assert lists["ENTRYPOINT"] == ["bmnas", "serve"]
    found = options(lists["CMD"])
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert f"EXPOSE {found['port']} {found['grpc_port']}" in text
    assert "[serve,grpc]" in text


def test_the_service_starts_it_too_and_asks_its_port():
    found = container()
    started = options(found["args"])
    assert started["host"] == "0.0.0.0"
    ports = [found["ports"][0]["containerPort"]]
    ports += [found[f"{probe}Probe"]["httpGet"]["port"] for probe in ("readiness", "liveness")]
    assert ports == [started["port"]] * 3
    # KServe copies what STORAGE_URI names to this folder.
    assert str(started["model"]) == "/mnt/models"
    assert [variable["name"] for variable in found["env"]] == ["STORAGE_URI"]


@pytest.mark.parametrize("probe", ["readiness", "liveness"])
def test_probes_are_endpoints(probe):
    from bmnas_serve.metadata import index_data

    path = container()[f"{probe}Probe"]["httpGet"]["path"]
    assert f"GET {path}" in index_data([], "http://h")["endpoints"]


def test_a_stop_fits_into_the_time_that_kubernetes_grants():
    service = yaml.safe_load((DEPLOY / "kserve.yaml").read_text("utf-8"))
    grace = service["spec"]["predictor"]["terminationGracePeriodSeconds"]
    assert grace > options(container()["args"])["stop_seconds"]


def test_triton_on_kserve():
    service = yaml.safe_load((DEPLOY / "kserve-triton.yaml").read_text("utf-8"))
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"]["name"], model["protocolVersion"]) == ("triton", "v2")


def test_the_image_is_built_of_what_the_wheel_needs():
    kept = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8"), re.M)
    assert all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    packages = re.findall(r'^packages = \["(.*)"\]$', project, re.M)[0].split('", "')
    assert {package.split("/")[0] for package in packages} <= set(kept)
