from __future__ import annotations

import contextlib
import http.client
import json
import platform
import re
import signal
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from bmnas_serve.codec import encode_tensor
from bmnas_serve.errors import ServeError
from bmnas_serve.server import serve
from bmnas_serve.settings import Settings
from server_process import Server
from tiny_bundles import sample, save_bundle


@pytest.fixture
def start(tmp_path) -> Iterator[object]:
    servers: list[Server] = []

    def launch(*, work: int = 0, **options: Any) -> Server:
        servers.append(Server(save_bundle(tmp_path / "pets", work=work), options))
        return servers[-1]

    yield launch
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def one_server(tmp_path_factory) -> Iterator[Server]:
    """A server of quick limits that the tests of single connections share."""
    folder = save_bundle(tmp_path_factory.mktemp("one") / "pets")
    server = Server(folder, {"connections": {**QUICK, "connections": 4}})
    yield server
    server.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_stops_with_status_0(start, number):
    server = start()
    assert server.get("/v2/health/ready") == (200, {"ready": True})
    server.process.send_signal(number)
    assert server.stop() == (0, "")


def body() -> bytes:
    tensors = [encode_tensor(name, array) for name, array in sample(1).items()]
    return json.dumps({"inputs": tensors}).encode()


@contextlib.contextmanager
def begun_request(server: Server) -> Iterator[http.client.HTTPConnection]:
    """Send a request but for the rest of its body: it is in flight until ``body()[10:]``."""
    with contextlib.closing(http.client.HTTPConnection(server.address, timeout=60)) as connection:
        connection.putrequest("POST", "/v2/models/pets/infer")
        connection.putheader("Content-Length", str(len(body())))
        connection.endheaders()
        connection.send(body()[:10])
        # A second connection is served after the first: its answer says that the first was seen.
        assert server.get("/v2/health/ready")[0] == 200
        yield connection


def test_sigterm_finishes_requests_in_flight(start):
    server = start(work=500)
    all_here = threading.Barrier(9)

    def ask() -> dict:
        url = f"http://{server.address}/v2/models/pets/infer"
        request = urllib.request.Request(url, body(), {"Content-Type": "application/json"})
        all_here.wait(20)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    with begun_request(server) as slow, ThreadPoolExecutor(8) as clients:
        quick = [clients.submit(ask) for _ in range(8)]
        all_here.wait(20)
        server.process.send_signal(signal.SIGTERM)
        while server.get("/v2/health/ready")[0] == 200:
            pass
        answers = [answer.result() for answer in quick]
        # Probes are answered for as long as work is in flight, not for a moment only.
        for _ in range(6):
            time.sleep(0.1)
            assert server.get("/v2/health/ready") == (503, {"ready": False})
            assert server.get("/v2/health/live") == (200, {"live": True})
        assert server.process.poll() is None
        slow.send(body()[10:])
        last = slow.getresponse()
        assert last.status == 200
        assert last.headers["connection"] == "close"
        answers.append(json.load(last))
    assert all(answer["outputs"] == answers[0]["outputs"] for answer in answers)
    assert server.stop() == (0, "")


def test_second_signal_stops_at_once(start):
    server = start()
    # A client that never sends the rest would hold the stop until its limit.
    with begun_request(server):
        server.process.send_signal(signal.SIGINT)
        while server.get("/v2/health/ready")[0] == 200:
            pass
        server.process.send_signal(signal.SIGINT)
        assert server.stop() == (0, "stopping at once; requests dropped: 1\n")


def test_stop_has_a_limit(start):
    server = start(stop_seconds=4)
    with begun_request(server):
        server.process.send_signal(signal.SIGTERM)
        assert server.stop() == (0, "unfinished requests dropped: 1\n")


def test_a_run_that_does_not_end_does_not_hold_the_stop(start):
    server = start(work=7000, stop_seconds=1)
    with contextlib.closing(http.client.HTTPConnection(server.address, timeout=60)) as connection:
        connection.request("POST", "/v2/models/pets/infer", body())
        assert server.get("/v2/health/ready")[0] == 200
        server.process.send_signal(signal.SIGTERM)
        status, errors = server.stop()
    assert status == 1
    assert errors.endswith("not stopped within 1 s: leaving at once\n")
    assert "Traceback" not in errors


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries do so anyway")
def test_memory_of_large_bodies_is_given_back(start):
    server = start()
    url = f"http://{server.address}/v2/models/pets/infer"

    def mib() -> float:
        with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        return float(re.findall(r"^process_resident_memory_bytes (\S+)$", text, re.M)[0]) / 2**20

    values = b"1.5," * 5_000_000 + b"0"
    tensor = b'{"name":"x","shape":[1],"datatype":"FP32","data":[%s]}' % values
    before = mib()
    for content in (b'{"inputs":[%s]}' % tensor, b"[%s]" % values) * 2:
        request = urllib.request.Request(url, content, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request, timeout=60)
    assert mib() - before < 30


def talk(server: Server, sent: bytes, *, half_close: bool = False) -> bytes:
    """Return all that the server sends until it ends the connection."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(sent)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    return received


def test_clients_that_are_gone_are_not_waited_for(start):
    server = start(work=1500)
    host, port = server.address.split(":")
    length = f"Content-Length: {len(body())}\r\n\r\n".encode()
    with contextlib.ExitStack() as opened:
        for _ in range(30):
            client = opened.enter_context(socket.create_connection((host, int(port)), timeout=30))
            client.sendall(HEAD + length + body())
            # Closed, it is reset at once.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer = talk(server, HEAD + b"Connection: close\r\n" + length + body())
    assert answer.startswith(b"HTTP/1.1 200 ")
    with urllib.request.urlopen(f"http://{server.address}/metrics", timeout=20) as metrics:
        rows = re.findall(rb"^bmnas_run_rows_sum\S* (\S+)$", metrics.read(), re.MULTILINE)
    assert 1 <= float(rows[0]) < 15


HEAD = b"POST /v2/models/pets/infer HTTP/1.1\r\nHost: localhost\r\n"
QUICK = {"header": 0.3, "body": 0.3, "idle": 1}


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /v2", b"HTTP/1.1 408 "),
        (HEAD, b"HTTP/1.1 408 "),
        (HEAD + b"Content-Length: 100\r\n\r\n{", b"HTTP/1.1 408 "),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 200 "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", b""),
        (b"\x16\x03\x01nonsense\r\n\r\n", b"HTTP/1.1 400 "),
    ],
    ids=["silence", "line", "headers", "body", "unread body", "idle", "chunk", "no HTTP"],
)
def test_clients_that_are_slow_or_broken_are_dropped(one_server, sent, answer):
    server = one_server
    received = talk(server, sent)
    assert received[: len(answer) or None] == answer
    assert server.get("/v2/health/live")[0] == 200


def test_a_client_that_sends_no_more_gets_its_answer(one_server):
    length = f"Content-Length: {len(body())}\r\n\r\n".encode()
    received = talk(one_server, HEAD + length + body(), half_close=True)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b'"probabilities"' in received


def test_connections_are_bounded(one_server):
    host, port = one_server.address.split(":")
    with contextlib.ExitStack() as opened:
        for _ in range(4):
            opened.enter_context(socket.create_connection((host, int(port)), timeout=30))
        received = talk(one_server, b"")
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"there are 4 connections already" in received


def test_other_hosts_are_refused(one_server):
    def ask(host: bytes) -> bytes:
        lines = b"GET /v2 HTTP/1.1\r\nConnection: close\r\nHost: %b\r\n\r\n" % host
        return talk(one_server, lines)

    for host in (b"localhost", b"127.0.0.1:80", b"[::1]:8000", b"192.0.2.1"):
        assert ask(host).startswith(b"HTTP/1.1 200 ")
    for host in (b"evil.example", b"", b"localhost.evil.example:8000"):
        assert ask(host).startswith(b"HTTP/1.1 421 ")
    assert b'received the host \\"evil.example\\", expected' in ask(b"evil.example")


def test_a_broken_client_is_not_worth_a_line_of_the_log(start):
    server = start()
    talk(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n")
    server.process.send_signal(signal.SIGTERM)
    assert server.stop() == (0, "")


@pytest.mark.parametrize(("given", "missing"), [("certificate", "key"), ("key", "certificate")])
def test_tls_needs_certificate_and_key(tmp_path, given, missing):
    with pytest.raises(ServeError, match=f"received a TLS {given} without its {missing}"):
        serve(tmp_path, Settings(**{given: tmp_path}))


def test_a_certificate_that_is_none_is_one_line(tmp_path):
    (tmp_path / "cert.pem").write_text("nothing")
    path = tmp_path / "cert.pem"
    with pytest.raises(ServeError, match=r"cannot be used for TLS: .*both in PEM"):
        serve(tmp_path, Settings(certificate=path, key=path))


def test_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"cannot listen at 127.0.0.1 port {port}: ") as caught:
            serve(tmp_path, Settings(port=port))
    assert "--port" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "port"), [("not a host", 0), ("x" * 300, 0), ("203.0.113.7", 0), ("127.0.0.1", 99999)]
)
def test_bad_addresses_are_one_line(tmp_path, host, port):
    with pytest.raises(ServeError, match="cannot listen at") as caught:
        serve(tmp_path, Settings(host=host, port=port))
    assert "\n" not in str(caught.value)
