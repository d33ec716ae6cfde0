"""tritonclient's own calls, over HTTP and gRPC, with and without asyncio, as their users write."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from bmnas_serve.session import Session
from server_process import Server
from tiny_bundles import CLASSES, sample, save_bundle
from tritonclient.utils import InferenceServerException

KINDS = ("http", "http.aio", "grpc", "grpc.aio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    save_bundle(models / "pets")
    save_bundle(models / "slow", work=300)
    for version in ("1", "2"):
        save_bundle(models / "zoo" / version)
    return models


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder, {"grpc_port": 0, "max_batch": 64})
    yield server
    server.kill()


@pytest.fixture(scope="module")
def session(folder):
    return Session.open(folder / "pets", intra_op_threads=1)


class Client:
    """A client of one of ``KINDS``: its calls, awaited where they must be."""

    def __init__(self, kind: str, server: Server) -> None:
        self.over_http = kind.startswith("http")
        self.module: Any = tritonclient.http if self.over_http else tritonclient.grpc
        clients: Any = {
            "http": tritonclient.http,
            "http.aio": tritonclient.http.aio,
            "grpc": tritonclient.grpc,
            "grpc.aio": tritonclient.grpc.aio,
        }[kind]
        self._client = clients.InferenceServerClient(
            server.address if self.over_http else server.grpc
        )

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        found = getattr(self._client, name)(*arguments, **options)
        return await found if inspect.isawaitable(found) else found

    async def plain(self, name: str, *arguments: Any) -> Any:
        """Return an answer that both protocols have, as plain data."""
        return await self.call(name, *arguments, **({} if self.over_http else {"as_json": True}))

    def inputs(self, arrays: dict[str, np.ndarray], **options: Any) -> list[Any]:
        tensors = []
        for name, array in arrays.items():
            datatype = {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name]
            tensor = self.module.InferInput(name, list(array.shape), datatype)
            tensor.set_data_from_numpy(array, **options)
            tensors.append(tensor)
        return tensors

    async def infer(self, arrays: dict[str, np.ndarray], **options: Any) -> Any:
        return await self.call("infer", "pets", self.inputs(arrays), **options)


@pytest.fixture(params=KINDS)
def ask(request, server) -> Callable[[Callable[[Client], Awaitable[Any]]], None]:
    """Run a coroutine with a client of each kind, and close the client."""

    def run(act: Callable[[Client], Awaitable[Any]]) -> None:
        async def go() -> None:
            client = Client(request.param, server)
            try:
                await act(client)
            finally:
                await client.call("close")

        asyncio.run(go())

    return run


def numbers(value: Any) -> Any:
    """Return plain data whose integers are not texts, as protobuf's JSON has them."""
    if isinstance(value, dict):
        return {key: numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [numbers(inner) for inner in value]
    return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value


def test_health_and_metadata(ask):
    async def act(client: Client) -> None:
        assert await client.call("is_server_live")
        assert await client.call("is_server_ready")
        assert await client.call("is_model_ready", "pets")
        assert await client.call("is_model_ready", "zoo", "2")
        assert not await client.call("is_model_ready", "zoo", "3")
        assert not await client.call("is_model_ready", "dogs")
        about = await client.plain("get_server_metadata")
        assert about["name"] == "bmnas"
        assert "binary_tensor_data" in about["extensions"]
        model = numbers(await client.plain("get_model_metadata", "zoo"))
        assert (model["name"], model["versions"]) == ("zoo", [1, 2])
        assert [tensor["shape"] for tensor in model["inputs"]] == [[-1, 2, 3], [-1, 4]]
        assert model["outputs"][0]["datatype"] == "FP32"

    ask(act)


def test_configuration(ask):
    async def act(client: Client) -> None:
        config = numbers(await client.plain("get_model_config", "zoo", "1"))
        config = config if client.over_http else config["config"]
        assert config["name"] == "zoo"
        assert config["max_batch_size"] == 64
        assert config["input"][1] == {"name": "sound", "data_type": "TYPE_FP32", "dims": [4]}
        assert config["version_policy"] == {"specific": {"versions": [1, 2]}}

    ask(act)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_default_predictions_equal_the_session_exactly(ask, session, batch):
    async def act(client: Client) -> None:
        arrays = sample(batch, seed=batch)
        expected = session.run(arrays)
        result = await client.infer(arrays, request_id="r1")
        for name, array in expected.items():
            np.testing.assert_array_equal(result.as_numpy(name), array, strict=True)
        answer = result.get_response()
        assert (answer["id"] if client.over_http else answer.id) == "r1"

    ask(act)


def test_requested_outputs_and_their_order(ask, session):
    async def act(client: Client) -> None:
        arrays = sample(3)
        asked = [client.module.InferRequestedOutput(name) for name in ("probabilities", "logits")]
        result = await client.infer(arrays, outputs=asked)
        for name, array in session.run(arrays).items():
            np.testing.assert_array_equal(result.as_numpy(name), array, strict=True)
        result = await client.infer(arrays, outputs=asked[:1])
        assert result.as_numpy("logits") is None

    ask(act)


def test_tensors_in_json_and_mixed(server, session):
    module = tritonclient.http
    client = module.InferenceServerClient(server.address)
    arrays = sample(2)
    expected = session.run(arrays)
    for binary_input in (True, False):
        for binary_output in (True, False):
            tensors = Client("http", server).inputs(arrays, binary_data=binary_input)
            asked = [
                module.InferRequestedOutput("logits", binary_data=binary_output),
                module.InferRequestedOutput("probabilities"),
            ]
            result = client.infer("pets", tensors, outputs=asked)
            for name, array in expected.items():
                np.testing.assert_array_equal(result.as_numpy(name), array, strict=True)
    client.close()


def test_classes(ask, session):
    async def act(client: Client) -> None:
        arrays = sample(2)
        asked = [client.module.InferRequestedOutput("probabilities", class_count=2)]
        result = await client.infer(arrays, outputs=asked)
        received = result.as_numpy("probabilities")
        assert received.shape == (2, 2)
        for row, texts in zip(session.run(arrays)["probabilities"], received, strict=True):
            for text, place in zip(texts, np.argsort(-row), strict=False):
                value, number, label = text.decode().split(":")
                assert (float(value), int(number)) == (pytest.approx(row[place]), place)
                assert label == CLASSES[place]

    ask(act)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_id": 5}, "sequences are not supported"),
        ({"sequence_id": "a", "sequence_start": True}, "sequences are not supported"),
        ({"priority": 2}, "priorities are not supported"),
        ({"parameters": {"temperature": 1}}, 'unknown field "temperature"'),
        ({"model_version": "9"}, 'received the version "9"'),
    ],
)
def test_what_is_not_honoured_is_refused(ask, options, message):
    async def act(client: Client) -> None:
        with pytest.raises(InferenceServerException, match=message):
            await client.infer(sample(1), **options)

    ask(act)


def test_a_timeout_is_kept(ask):
    async def act(client: Client) -> None:
        await client.infer(sample(1), timeout=10_000_000)
        with pytest.raises(InferenceServerException, match=r"no answer within|its time was over"):
            await client.call("infer", "slow", client.inputs(sample(1)), timeout=1)

    ask(act)


def test_shared_memory_is_refused(ask):
    async def act(client: Client) -> None:
        tensors = client.inputs(sample(1))
        tensors[0].set_shared_memory("region", 6)
        with pytest.raises(InferenceServerException, match="shared memory is not supported"):
            await client.call("infer", "pets", tensors)

    ask(act)


def test_statistics_count_what_was_answered(ask):
    async def act(client: Client) -> None:
        async def found() -> Any:
            stats = numbers(await client.plain("get_inference_statistics", "pets"))
            return stats["model_stats"][0]

        before = await found()
        await client.infer(sample(5))
        after = await found()
        assert after["name"] == "pets"
        assert after["inference_count"] - before.get("inference_count", 0) == 5
        assert after["inference_stats"]["success"]["ns"] > 0
        everything = await client.plain("get_inference_statistics")
        assert len(everything["model_stats"]) == 4

    ask(act)


def test_models_are_listed_unloaded_and_loaded(ask):
    async def act(client: Client) -> None:
        async def index() -> dict[tuple[str, str], str]:
            found = await client.plain("get_model_repository_index")
            models = found if client.over_http else found["models"]
            return {(one["name"], one["version"]): one["state"] for one in models}

        ready = {("pets", "1"): "READY", ("slow", "1"): "READY"}
        ready |= {("zoo", "1"): "READY", ("zoo", "2"): "READY"}
        assert await index() == ready
        await client.call("unload_model", "zoo")
        assert await index() == {**ready, ("zoo", "1"): "UNAVAILABLE", ("zoo", "2"): "UNAVAILABLE"}
        assert not await client.call("is_model_ready", "zoo")
        with pytest.raises(InferenceServerException, match="expected 'pets', 'slow'"):
            await client.call("infer", "zoo", client.inputs(sample(1)))
        await client.call("load_model", "zoo")
        assert await index() == ready
        with pytest.raises(InferenceServerException, match="configuration is its bundle's"):
            await client.call("load_model", "zoo", config="{}")
        with pytest.raises(InferenceServerException, match='received the model "fish"'):
            await client.call("load_model", "fish")

    ask(act)
