from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bmnas_serve.app import create_app
from bmnas_serve.codec import encode_tensor
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from onnx import TensorProto, helper
from starlette.testclient import TestClient
from tiny_bundles import sample, save_bundle, save_model, value


def open_session(path: Path) -> Session:
    return Session.open(path, intra_op_threads=1)


@pytest.fixture
def folder(tmp_path):
    save_bundle(tmp_path / "cats")
    for version in ("1", "2"):
        save_bundle(tmp_path / "dogs" / version)
    return tmp_path


def client(path: Path, **options: Any) -> TestClient:
    return TestClient(create_app(Repository.open(path, open_session), max_batch=8, **options))


def body(batch: int) -> dict[str, Any]:
    return {"inputs": [encode_tensor(name, array) for name, array in sample(batch).items()]}


def refused(answer: Any, status: int, message: str) -> None:
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_models_are_loaded_and_unloaded(folder):
    with client(folder) as asked:
        everything = asked.post("/v2/repository/index").json()
        assert [(one["name"], one["version"], one["state"]) for one in everything] == [
            ("cats", "1", "READY"),
            ("dogs", "1", "READY"),
            ("dogs", "2", "READY"),
        ]
        assert asked.post("/v2/repository/models/dogs/unload").json() == {}
        refused(asked.post("/v2/models/dogs/infer", json=body(1)), 404, "expected 'cats'")
        ready = asked.post("/v2/repository/index", json={"ready": True}).json()
        assert ready == everything[:1]
        everything = asked.post("/v2/repository/index", json={"ready": False}).json()
        assert everything[2] == {
            "name": "dogs",
            "version": "2",
            "state": "UNAVAILABLE",
            "reason": "not loaded",
        }
        assert asked.post("/v2/repository/models/dogs/load", json={}).status_code == 200
        assert asked.post("/v2/models/dogs/infer", json=body(1)).json()["model_version"] == "2"
        assert asked.get("/v2/models/dogs").json()["versions"] == ["1", "2"]


def test_requests_are_answered_by_one_model_or_the_other_while_they_are_replaced(folder, tmp_path):
    dogs = folder / "dogs" / "2"
    spare = save_bundle(tmp_path / ".spare", seed=1)
    models = [open_session(path) for path in (dogs, spare)]
    app = create_app(Repository.open(folder, open_session))
    replaced: list[int] = []
    answered_by: set[int] = set()

    async def ask(http: httpx.AsyncClient, seed: int) -> None:
        inputs = sample(2, seed)
        tensors = [encode_tensor(name, array) for name, array in inputs.items()]
        expected = [model.run(inputs)["logits"].ravel() for model in models]
        while len(replaced) < 5:
            answer = await http.post("/v2/models/dogs/infer", json={"inputs": tensors})
            assert answer.status_code == 200, answer.text
            found = answer.json()["outputs"][0]["data"]
            same = [n for n, logits in enumerate(expected) if np.allclose(found, logits, 1e-5)]
            assert len(same) == 1, (seed, found, expected)
            answered_by.update(same)

    async def replace(http: httpx.AsyncClient) -> None:
        for _ in range(5):
            for source, target in ((dogs, "former"), (spare, dogs), (tmp_path / "former", spare)):
                source.rename(tmp_path / target)
            answer = await http.post("/v2/repository/models/dogs/load")
            assert answer.status_code == 200, answer.text
            replaced.append(1)

    async def go() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http,
        ):
            await asyncio.gather(replace(http), *(ask(http, seed) for seed in range(8)))
            answer = await http.get("/v2/models/dogs/versions/2/stats")
            counts = answer.json()["model_stats"][0]["inference_stats"]
            assert counts["success"]["count"] >= 8
            assert counts["fail"]["count"] == 0

    asyncio.run(go())
    assert answered_by == {0, 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"config": {}}', 'unknown field "config"'),
        (b'{"parameters": {"config": "{}"}}', "a model's configuration is its bundle's"),
        (b'{"parameters": {"file:1/model.onnx": ""}}', 'unknown field "file:1/model.onnx"'),
        (b'{"parameters": {"unload_dependents": 1}}', "received 1, expected true or false"),
    ],
)
@pytest.mark.parametrize("action", ["load", "unload"])
def test_wishes_that_are_not_honoured_are_refused(folder, action, content, message):
    with client(folder) as asked:
        answer = asked.post(f"/v2/repository/models/cats/{action}", content=content)
        refused(answer, 400, message)
        assert asked.get("/v2/models/cats/ready").json() == {"name": "cats", "ready": True}


def test_bodies_about_models_are_small(folder):
    with client(folder) as asked:
        for end in ("index", "models/cats/load", "models/cats/unload"):
            answer = asked.post(f"/v2/repository/{end}", content=b" " * (2**16 + 1))
            refused(answer, 413, "the body has more than 65,536 bytes")
            assert "--max-body-mb" not in answer.text
        assert asked.post("/v2/repository/index", content=b"{}".ljust(2**16)).status_code == 200


def test_models_are_not_changed_by_web_pages_nor_where_it_is_not_allowed(folder):
    unload = "/v2/repository/models/cats/unload"
    with client(folder) as asked:
        page = asked.post(unload, headers={"origin": "http://testserver"})
        refused(page, 403, "web pages may not load and unload models")
    with client(folder, model_control=False) as asked:
        refused(asked.post(unload), 403, "start the server with --model-control")
        refused(asked.post(unload.replace("unload", "load")), 403, "--model-control")
        assert asked.get("/v2/models/cats/ready").status_code == 200


def test_unknown_models_and_versions(folder):
    with client(folder) as asked:
        for action in ("load", "unload"):
            answer = asked.post(f"/v2/repository/models/fish/{action}")
            refused(answer, 404, "received the model \"fish\", expected 'cats', 'dogs'")
        for end in ("config", "stats"):
            refused(asked.get(f"/v2/models/fish/{end}"), 404, "fish")
            refused(asked.get(f"/v2/models/cats/versions/7/{end}"), 404, 'the version "7"')


def test_configuration(folder, tmp_path):
    with client(folder) as asked:
        config = asked.get("/v2/models/dogs/config").json()
        assert config == asked.get("/v2/models/dogs/versions/1/config").json()
    assert (config["name"], config["backend"]) == ("dogs", "onnxruntime")
    assert config["max_batch_size"] == 8
    assert config["input"][0] == {"name": "image", "data_type": "TYPE_UINT8", "dims": [2, 3]}
    assert config["output"][1] == {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]}
    assert config["version_policy"] == {"specific": {"versions": [1, 2]}}


def test_configuration_of_a_model_without_batches(tmp_path):
    model = save_model(
        tmp_path / "net.onnx",
        [helper.make_node("Neg", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [2])],
        [value("y", TensorProto.FLOAT, [2])],
    )
    with client(model) as asked:
        config = asked.get("/v2/models/net/config").json()
    assert config["max_batch_size"] == 0
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}]


def test_statistics_go_on_when_a_model_is_replaced(folder):
    with client(folder) as asked:
        for batch in (1, 3):
            asked.post("/v2/models/cats/infer", json=body(batch))
        asked.post("/v2/models/cats/infer", json={})
        asked.post("/v2/repository/models/cats/load")
        asked.post("/v2/models/cats/infer", json=body(3))
        [stats] = asked.get("/v2/models/cats/stats").json()["model_stats"]
        assert stats == asked.get("/v2/models/stats").json()["model_stats"][0]
        assert len(asked.get("/v2/models/dogs/stats").json()["model_stats"]) == 2
        one = asked.get("/v2/models/dogs/versions/2/stats").json()["model_stats"]
        assert [(found["name"], found["version"]) for found in one] == [("dogs", "2")]
    assert (stats["inference_count"], stats["execution_count"]) == (7, 3)
    assert stats["last_inference"] > 0
    counts = {name: found["count"] for name, found in stats["inference_stats"].items()}
    assert counts == {
        "success": 3,
        "fail": 1,
        "queue": 3,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
    }
    assert [(run["batch_size"], run["compute_infer"]["count"]) for run in stats["batch_stats"]] == [
        (1, 1),
        (3, 2),
    ]
    steps = [
        stats["inference_stats"][name]["ns"] for name in counts if name not in ("success", "fail")
    ]
    assert all(ns > 0 for ns in steps)
    assert stats["inference_stats"]["success"]["ns"] >= sum(steps)
