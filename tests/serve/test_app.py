from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from bmnas_serve import app, metadata
from bmnas_serve.app import create_app
from bmnas_serve.bodies import Bodies
from bmnas_serve.codec import decode_request, encode_tensor
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.manifest import InputSpec, TensorSpec
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from onnx import TensorProto, helper
from tiny_bundles import CLASSES, classifier_manifest, sample, save_bundle, save_model, value

INFER = "/v2/models/pets/infer"


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return Session.open(save_bundle(tmp_path_factory.mktemp("app") / "pets"), intra_op_threads=1)


class Threads:
    """The threads in which functions were called, each with its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.seen: list[tuple[str, str]] = []

    def __call__(self, name: str, module: Any) -> None:
        """Watch a function of ``module``."""
        function = getattr(module, name)

        def watched(*arguments: Any) -> Any:
            self.seen.append((name, threading.current_thread().name))
            return function(*arguments)

        self._monkeypatch.setattr(module, name, watched)


@pytest.fixture
def threads(monkeypatch):
    return Threads(monkeypatch)


def talk(
    session: Session, act: Callable[[httpx.AsyncClient], Awaitable[Any]], **options: Any
) -> Any:
    """Return what ``act`` returns for a client of the application, opened as a server does."""

    @contextlib.asynccontextmanager
    async def client() -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(Repository.of_session(session), **options)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://pets.test") as opened,
        ):
            yield opened

    async def go() -> Any:
        async with client() as opened:
            return await act(opened)

    return asyncio.run(go())


def get(session: Session, path: str, **options: Any) -> httpx.Response:
    return talk(session, lambda client: client.get(path), **options)


def post(
    session: Session, content: Any, path: str = INFER, headers: Any = None, **options: Any
) -> httpx.Response:
    if isinstance(content, dict):
        content = json.dumps(content).encode()
    return talk(
        session, lambda client: client.post(path, content=content, headers=headers), **options
    )


def request(inputs: dict[str, np.ndarray], **fields: Any) -> dict[str, Any]:
    return {"inputs": [encode_tensor(name, array) for name, array in inputs.items()], **fields}


def refused(response: httpx.Response, status: int, message: str) -> None:
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


def test_health_and_server_metadata(session):
    assert get(session, "/v2/health/live").json() == {"live": True}
    ready = get(session, "/v2/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})
    assert get(session, "/v2").json()["name"] == "bmnas"
    for path in ("/v2/models/pets/ready", "/v2/models/pets/versions/1/ready"):
        assert get(session, path).json() == {"name": "pets", "ready": True}


def test_bodies_that_arrive_are_counted_without_bodies_of_ones_own(session):
    lifecycle, seen = Lifecycle(), []

    async def act(client: httpx.AsyncClient) -> httpx.Response:
        async def body() -> AsyncIterator[bytes]:
            content = json.dumps(request(sample(1))).encode()
            yield content[:10]
            await asyncio.sleep(0.05)
            seen.append(lifecycle.receiving.number)
            yield content[10:]

        return await client.post(INFER, content=body())

    assert talk(session, act, lifecycle=lifecycle).status_code == 200
    assert seen == [1]


def test_draining_server_is_alive_and_not_ready_and_still_answers(session):
    lifecycle = Lifecycle()

    async def act(client: httpx.AsyncClient) -> list[httpx.Response]:
        lifecycle.draining = True
        return [
            await client.get("/v2/health/live"),
            await client.get("/v2/health/ready"),
            await client.get("/v2/models/pets/ready"),
            await client.post(INFER, json=request(sample(1))),
        ]

    answers = talk(session, act, lifecycle=lifecycle)
    assert [answer.status_code for answer in answers] == [200, 503, 503, 200]
    assert answers[3].headers["connection"] == "close"
    assert not lifecycle.started


def test_metadata_of_a_bundle(session):
    body = get(session, "/v2/models/pets").json()
    assert body == get(session, "/v2/models/pets/versions/1").json()
    assert body["name"] == "pets"
    assert body["versions"] == ["1"]
    assert body["platform"] == "onnxruntime_onnx"
    assert body["inputs"][0] == {
        "name": "image",
        "datatype": "UINT8",
        "shape": [-1, 2, 3],
        "parameters": {"meaning": "grey values", "preprocessing": {"scale": 255}},
    }
    assert body["outputs"][1] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}
    assert body["parameters"]["class_names"] == list(CLASSES)
    assert body["parameters"]["threshold"] is None


def test_metadata_are_without_tokenizers(tmp_path):
    text = {"type": "text", "tokenizer": {"model": "large"}, "length": 3}
    words = InputSpec("image", (-1, 2, 3), "uint8", "a text", text)
    inputs = (words, classifier_manifest().inputs[1])
    session = Session.open(save_bundle(tmp_path / "b", inputs=inputs))
    described = get(session, "/v2/models/pets").json()["inputs"][0]["parameters"]
    assert described["preprocessing"] == {"type": "text", "length": 3}


def test_metadata_say_what_pixels_span(tmp_path):
    pixels = InputSpec("image", (-1, 2, 3), "uint8", "raw pixel values", range=(0, 16))
    inputs = (pixels, classifier_manifest().inputs[1])
    session = Session.open(save_bundle(tmp_path / "b", inputs=inputs))
    described = get(session, "/v2/models/pets").json()["inputs"][0]["parameters"]
    assert described == {"meaning": "raw pixel values", "range": [0, 16]}


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("path", [INFER, "/v2/models/pets/versions/1/infer"])
def test_predictions_equal_the_session_exactly(session, batch, path):
    inputs = sample(batch)
    response = post(session, request(inputs, id="a7"), path)
    assert response.status_code == 200
    body = response.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("pets", "1", "a7")
    expected = session.run(inputs)
    assert [output["name"] for output in body["outputs"]] == list(expected)
    for output in body["outputs"]:
        received = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(received, expected[output["name"]])


def test_outputs_asked_for(session):
    body = post(session, request(sample(1), outputs=[{"name": "probabilities"}])).json()
    assert [output["name"] for output in body["outputs"]] == ["probabilities"]
    refused(
        post(session, request(sample(1), outputs=[{"name": "scores"}])),
        400,
        'received "scores", expected the model\'s outputs "logits", "probabilities"',
    )


def test_text_that_is_no_unicode_is_echoed(session):
    content = json.dumps(request(sample(1), id="\ud800")).encode()
    assert b'"id":"\\ud800"' in post(session, content).content


def test_the_example_request_is_made_once_beside_the_loop_and_answered(session, threads):
    threads("example_json", metadata)

    async def act(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.get("/v2/models/pets/example.json") for _ in range(2)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "example_bytes", lambda session: 10_000)
        first, second = talk(session, act)
    assert first.content == second.content
    assert threads.seen == [("example_json", "bmnas-bodies_0")]
    assert post(session, first.json()).status_code == 200


def test_examples_have_every_datatype():
    specs = tuple(TensorSpec(name, (-1, 3), name) for name in PROTOCOL)
    session: Any = SimpleNamespace(inputs=specs)
    content = metadata.example_json(session)
    assert metadata.example_bytes(session) <= len(content)
    for array in decode_request(content, specs, (), 1).inputs.values():
        assert array.tolist() == [[0, 0, 0]]


def test_large_tensors_in_bytes_and_classes_are_worked_on_beside_the_loop(session, threads):
    threads("decode_request", app)
    threads("encode_response", app)
    arrays = sample(50_000)
    inputs, binary = [], []
    for name, array in arrays.items():
        binary.append(array.tobytes())
        tensor = {**encode_tensor(name, array), "parameters": {"binary_data_size": len(binary[-1])}}
        del tensor["data"]
        inputs.append(tensor)
    output = {"name": "logits", "parameters": {"binary_data": True, "classification": 1}}
    head = json.dumps({"inputs": inputs, "outputs": [output]}).encode()
    headers = {app.JSON_SIZE: str(len(head))}
    answer = post(session, head + b"".join(binary), headers=headers, max_batch=50_000)
    assert answer.status_code == 200
    assert [name for _, name in threads.seen] == ["bmnas-large-bodies_0"] * 2


def test_concurrent_requests_get_their_own_answers(session):
    batches = [sample(1 + seed % 3, seed) for seed in range(16)]

    async def act(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post(INFER, json=request(batch)) for batch in batches))

    for batch, response in zip(batches, talk(session, act), strict=True):
        logits = response.json()["outputs"][0]
        expected = session.run(batch)["logits"]
        assert logits["data"] == expected.ravel().tolist()


def test_requests_that_do_not_fit_are_refused(session):
    wrong = request({**sample(1), "sound": np.zeros((1, 5), np.float32)})
    refused(post(session, wrong), 400, "received the shape [1, 5], expected [-1, 4]")
    refused(post(session, b"{"), 400, "the body is not JSON")
    refused(post(session, b""), 400, "it is empty")
    refused(post(session, request(sample(9)), max_batch=8), 400, "expected at most 8")


def test_unknown_models_versions_paths_and_methods(session):
    refused(get(session, "/v2/models/dogs"), 404, "received the model \"dogs\", expected 'pets'")
    refused(get(session, "/v2/models/pets/versions/2"), 404, 'received the version "2"')
    refused(post(session, b"{}", "/v2/models/dogs/infer"), 404, "expected 'pets'")
    refused(get(session, "/v3"), 404, 'there is nothing at "/v3"')
    response = get(session, INFER)
    refused(response, 405, "GET is not allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"content-type": "text/plain"}, 'received Content-Type "text/plain"'),
        ({"content-type": "multipart/form-data"}, "expected application/json"),
        ({"content-type": "application/json; charset=utf-16"}, "expected application/json"),
        ({"content-encoding": "gzip"}, 'received the encoding "gzip", expected none'),
    ],
)
def test_other_media_are_refused(session, headers, message):
    refused(post(session, request(sample(1)), headers=headers), 415, message)


@pytest.mark.parametrize(
    "declared",
    [
        "application/json",
        "application/json; charset=utf-8",
        'Application/JSON;charset="UTF-8"',
        "application/octet-stream",  # what aiohttp declares unasked
    ],
)
def test_json_may_be_declared_in_several_ways(session, declared):
    headers = {"content-type": declared, "content-encoding": "identity"}
    assert post(session, request(sample(1)), headers=headers).status_code == 200


def test_body_limit_counts_what_arrives(session):
    content = json.dumps(request(sample(1))).encode()
    exact = len(content)
    assert post(session, content, bodies=Bodies(exact)).status_code == 200
    refused(post(session, content, bodies=Bodies(exact - 1)), 413, f"more than {exact - 1:,} bytes")

    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    # A declared length of 1 must not get 10,000 bytes through; nor must none at all.
    for headers in ({"content-length": "1"}, None):
        response = post(session, trickle(), headers=headers, bodies=Bodies(1000))
        refused(response, 413, "more than 1,000 bytes")
        assert response.headers["connection"] == "close"


def test_broken_connection_is_no_defect(session):
    async def act(client: httpx.AsyncClient) -> list[dict[str, Any]]:
        app = client._transport.app  # type: ignore[attr-defined]
        sent: list[dict[str, Any]] = []
        messages = iter(
            [
                {"type": "http.request", "body": b"{", "more_body": True},
                {"type": "http.disconnect"},
            ]
        )

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": INFER,
            "query_string": b"",
            "headers": [],
        }
        await app(scope, receive, send)
        return sent

    assert talk(session, act)[0]["status"] == 400


def test_outputs_that_are_not_finite_are_a_mistake_of_the_inputs(tmp_path):
    model = save_model(
        tmp_path / "log.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
    )
    session = Session.open(model)
    bad = request({"x": np.array([-1], np.float32)})
    refused(post(session, bad, "/v2/models/log/infer"), 422, "'y' holds NaN or infinity")
    good = request({"x": np.array([1], np.float32)})
    assert post(session, good, "/v2/models/log/infer").json()["outputs"][0]["data"] == [0.0]


def test_a_defect_does_not_leak(session, monkeypatch):
    monkeypatch.setattr(session, "run", lambda inputs: {}["secret"])
    response = post(session, request(sample(1)))
    refused(response, 500, "a defect of the server")
    assert "secret" not in response.text


def test_index_for_programs(session):
    body = get(session, "/").json()
    assert [model["name"] for model in body["models"]] == ["pets"]
    assert "POST /v2/models/{name}/infer" in body["endpoints"]
    assert body["example"].startswith("curl -s http://pets.test/v2/models/pets/example.json |")


def test_index_for_people_is_the_page_with_nothing_from_outside_in_it(session):
    hostile = {"accept": "text/html,*/*", "host": "x'><script>alert(1)</script>"}
    response = talk(session, lambda client: client.get("/", headers=hostile))
    assert response.headers["content-type"].startswith("text/html")
    assert "alert(1)" not in response.text
    assert "pets" not in response.text


def test_a_large_body_is_answered_as_a_small_one_is(session, monkeypatch):
    inputs = {"inputs": [encode_tensor(name, array) for name, array in sample(200).items()]}
    large = post(session, inputs)
    monkeypatch.setattr("bmnas_serve.bodies._AT_ONCE", 1 << 30)
    assert large.status_code == 200
    assert large.content == post(session, inputs).content


def test_a_large_body_that_is_wrong_is_a_mistake_of_the_client(session):
    repeated = b"{" + b",".join(b'"%d":0' % (n % 8_999) for n in range(9_000)) + b"}"
    answer = post(session, repeated)
    assert answer.status_code == 400
    assert "the key '0' stands twice" in answer.json()["error"]


def test_a_full_queue_refuses_before_it_reads_the_body(session, monkeypatch):
    monkeypatch.setattr("bmnas_serve.batcher.Batcher._has_room", lambda self, rows, size: False)
    answer = post(session, b"no JSON")
    refused(answer, 503, "pets: 0 rows wait already")
    assert answer.headers["retry-after"] == "1"
