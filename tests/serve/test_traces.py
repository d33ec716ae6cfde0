from __future__ import annotations

import http.server
import sys
import threading

import pytest
from bmnas_serve.errors import ServeError
from bmnas_serve.traces import traced
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient


@pytest.fixture
def collected(monkeypatch):
    """What a collector of traces on this machine receives."""
    bodies: list[tuple[str, bytes]] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield bodies
        server.shutdown()


def test_a_request_is_a_span_and_a_probe_is_none(collected):
    pytest.importorskip("opentelemetry.instrumentation.asgi")

    async def answer(request: object) -> PlainTextResponse:
        return PlainTextResponse("yes")

    routes = [Route("/v2/models/pets", answer), Route("/v2/health/live", answer)]
    app, send_last = traced(Starlette(routes=routes))
    trace = "0af7651916cd43dd8448eb211c80319c"
    with TestClient(app) as client:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        assert client.get("/v2/models/pets", headers=headers).text == "yes"
        assert client.get("/v2/health/live").text == "yes"
    send_last()
    [(path, body)] = collected
    assert path == "/v1/traces"
    assert b"/v2/models/pets" in body
    assert b"/v2/health/live" not in body
    assert b"bmnas" in body
    assert bytes.fromhex(trace) in body


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ServeError, match=r"pip install 'bmnas\[traces\]'"):
        traced(Starlette())
