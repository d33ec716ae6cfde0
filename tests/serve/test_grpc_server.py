from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from bmnas_serve import grpc_server
from bmnas_serve.bodies import Bodies
from bmnas_serve.datatypes import PROTOCOL
from bmnas_serve.errors import RequestError, ServeError
from bmnas_serve.grpc_messages import message_class
from bmnas_serve.grpc_server import Service
from bmnas_serve.lifecycle import Lifecycle
from bmnas_serve.repository import Repository
from bmnas_serve.server import serve
from bmnas_serve.session import Session
from bmnas_serve.settings import Settings
from server_process import Server
from tiny_bundles import sample, save_bundle

TOKEN = "0123456789abcdef"


@pytest.fixture
def start(tmp_path) -> Iterator[Any]:
    servers: list[Server] = []

    def launch(*, work: int = 0, **options: Any) -> Server:
        folder = save_bundle(tmp_path / "pets", work=work)
        servers.append(Server(folder, {"grpc_port": 0, **options}))
        return servers[-1]

    yield launch
    for server in servers:
        server.kill()


def call(
    server: Server, method: str, fields: Any = None, *, seconds: float = 20, **options: Any
) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        return ask(channel, method)(
            message_class(f"{method}Request")(**(fields or {})), timeout=seconds, **options
        )


def ask(channel: Any, method: str) -> Any:
    return channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}",
        request_serializer=message_class(f"{method}Request").SerializeToString,
        response_deserializer=message_class(f"{method}Response").FromString,
    )


def message(arrays: Mapping[str, np.ndarray]) -> Any:
    inputs = [
        {"name": name, "datatype": PROTOCOL[array.dtype.name], "shape": array.shape}
        for name, array in arrays.items()
    ]
    raw = [array.tobytes() for array in arrays.values()]
    fields: dict[str, Any] = {"model_name": "pets", "inputs": inputs, "raw_input_contents": raw}
    return message_class("ModelInferRequest")(**fields)


def infer(server: Server, *, timeout: float = 20, **options: Any) -> Any:
    with grpc.insecure_channel(server.grpc) as channel:
        return ask(channel, "ModelInfer")(message(sample(1)), timeout=timeout, **options)


def metrics(server: Server) -> str:
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def refused(code: grpc.StatusCode, message: str) -> Any:
    return pytest.raises(
        grpc.RpcError,
        check=lambda error: error.code() is code and message in error.details(),
    )


def test_statuses(start):
    server = start(max_body_bytes=70_000, model_control=False)
    with refused(grpc.StatusCode.NOT_FOUND, "received the model \"dogs\", expected 'pets'"):
        call(server, "ModelMetadata", {"name": "dogs"})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "inputs: received none"):
        call(server, "ModelInfer", {"model_name": "pets"})
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max (70004 vs. 70000)"):
        call(server, "ModelInfer", {"raw_input_contents": [bytes(70_000)]})
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "the message has more than 65,536 bytes"):
        call(server, "ModelMetadata", {"name": "a" * 66_000})
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        with refused(grpc.StatusCode.PERMISSION_DENIED, "--model-control"):
            call(server, method, {"model_name": "pets"})
    counted = 'bmnas_requests_total{endpoint="gRPC ModelInfer",status="INVALID_ARGUMENT"} 1.0'
    assert counted in metrics(server)
    with (
        grpc.insecure_channel(server.grpc) as channel,
        refused(grpc.StatusCode.UNIMPLEMENTED, "Method not found"),
    ):
        channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter([b""]), timeout=20
        ).next()


def service(session: Session, bodies: Bodies) -> Service:
    return Service(Repository.of_session(session), Lifecycle(), bodies, 100_000, True)


def test_large_messages_are_worked_on_beside_the_loop(tmp_path, monkeypatch):
    threads: dict[str, str] = {}

    def watch(name: str, work: Any) -> Any:
        def watched(*arguments: Any) -> Any:
            threads[name] = threading.current_thread().name
            return work(*arguments)

        return watched

    for name in ("decode_message", "encode_message"):
        monkeypatch.setattr(grpc_server, name, watch(name, getattr(grpc_server, name)))
    session = Session.open(save_bundle(tmp_path / "pets"), intra_op_threads=1)

    async def go(rows: int) -> dict[str, str]:
        with Bodies() as bodies:
            answering = service(session, bodies)
            context = SimpleNamespace(time_remaining=lambda: None)
            received = message(sample(rows)).SerializeToString()
            answer = await answering.answers()["ModelInfer"](received, context)
            assert bodies.held == 0
            answering.repository.close()
        found = message_class("ModelInferResponse").FromString(answer)
        assert found.outputs[0].shape[0] == rows
        return dict(threads)

    here, beside = threading.current_thread().name, "bmnas-large-bodies_0"
    assert asyncio.run(go(1)) == {"decode_message": here, "encode_message": here}
    assert asyncio.run(go(100_000)) == {"decode_message": beside, "encode_message": beside}


def test_a_timeout_counts_from_the_arrival(tmp_path, monkeypatch):
    decode = grpc_server.decode_message

    def late(*arguments: Any) -> Any:
        time.sleep(0.02)
        return decode(*arguments)

    monkeypatch.setattr(grpc_server, "decode_message", late)
    session = Session.open(save_bundle(tmp_path / "pets"), intra_op_threads=1)
    received = message(sample(1))
    received.parameters["timeout"].int64_param = 10_000

    async def go() -> None:
        with Bodies() as bodies:
            answering = service(session, bodies)
            context = SimpleNamespace(time_remaining=lambda: None)
            with pytest.raises(RequestError, match="its time was over"):
                await answering.answers()["ModelInfer"](received.SerializeToString(), context)
            answering.repository.close()

    asyncio.run(go())


def test_messages_in_memory_are_bounded_in_total(tmp_path):
    session = Session.open(save_bundle(tmp_path / "pets"), intra_op_threads=1)

    async def go() -> None:
        with Bodies(2**20, 2**20) as bodies, bodies.holding(2**19):
            answering = service(session, bodies)
            with pytest.raises(RequestError, match="too many bytes") as caught:
                await answering.answers()["ModelInfer"](bytes(2**19 + 1), None)
            assert (caught.value.status, bodies.held) == (503, 2**19)
            answering.repository.close()

    asyncio.run(go())


def test_a_token(start):
    server = start(token=TOKEN)
    assert call(server, "ServerLive").live
    assert call(server, "ServerReady").ready
    for metadata in ([], [("authorization", "Bearer no")], [("authorization", TOKEN)]):
        with refused(grpc.StatusCode.UNAUTHENTICATED, "authorization: Bearer"):
            infer(server, metadata=metadata)
    assert infer(server, metadata=[("authorization", f"Bearer {TOKEN}")]).model_name == "pets"


def test_tls(start, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=bmnas"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(
        [openssl, *make.split()],
        check=True,
        capture_output=True,
    )
    server = start(certificate=str(certificate), key=str(key))
    trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(server.grpc, trusted) as channel:
        request = message_class("ServerLiveRequest")()
        assert ask(channel, "ServerLive")(request, timeout=20).live
    knows = ssl.create_default_context(cafile=str(certificate))
    url = f"https://{server.address}/v2/health/live"
    with urllib.request.urlopen(url, timeout=20, context=knows) as answer:
        assert answer.status == 200


def test_a_deadline_of_the_client_is_kept_in_the_queue(start):
    server = start(work=4000)  # a run takes longer than the deadline
    with ThreadPoolExecutor(4) as clients:
        others = [clients.submit(infer, server) for _ in range(3)]
        while "bmnas_in_flight 3.0" not in metrics(server):
            pass
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, ""):
            infer(server, timeout=0.1)
        assert all(answer.result().model_name == "pets" for answer in others)
    # The client would say so too of a server that goes on with its request.
    [stats] = server.get("/v2/models/pets/stats")[1]["model_stats"]
    assert stats["inference_count"] == 3
    assert stats["inference_stats"]["fail"]["count"] == 1


def test_sigterm_answers_what_is_in_flight(start):
    server = start(work=600)
    with ThreadPoolExecutor(8) as clients:
        answers = [clients.submit(infer, server) for _ in range(8)]
        while server.get("/v2/models/pets/stats")[1]["model_stats"][0]["execution_count"] == 0:
            pass
        server.process.send_signal(signal.SIGTERM)
        assert {answer.result().model_name for answer in answers} == {"pets"}
    assert server.stop() == (0, "")


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(port=0, threads=1, grpc_port=taken.getsockname()[1])
        message = f"cannot listen at 127.0.0.1 port {settings.grpc_port} for gRPC; .* --grpc-port"
        with pytest.raises(ServeError, match=message):
            serve(save_bundle(tmp_path / "pets"), settings)
