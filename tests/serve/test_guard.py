from __future__ import annotations

import base64
import re

import httpx
import pytest
from bmnas_serve.guard import Guard
from bmnas_serve.logs import REQUEST_ID
from bmnas_serve.settings import Settings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

TOKEN = "0123456789abcdef"


async def name(request: Request) -> PlainTextResponse:
    return PlainTextResponse(REQUEST_ID.get())


def get(path: str = "/v2", headers: dict[str, str] | None = None, **options) -> httpx.Response:
    routes = [Route(path, name) for path in ("/v2", "/v2/health/live", "/v2/health/ready")]
    with TestClient(Guard(Starlette(routes=routes), **options)) as client:
        return client.get(path, headers=headers)


def test_a_request_is_called_as_its_client_calls_it():
    answer = get(headers={"x-request-id": "trace:7"})
    assert answer.text == answer.headers["x-request-id"] == "trace:7"
    answer = get(headers={"x-request-id": "no blanks"})
    assert re.fullmatch("[0-9a-f]{8}-1", answer.text)
    assert answer.text == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer", 401),
        (TOKEN, 401),
        ("Basic " + base64.b64encode(f"me:{TOKEN}".encode()).decode(), 200),
        ("Basic " + base64.b64encode(b"me:other").decode(), 401),
        ("Basic ?", 401),
    ],
)
def test_a_token_is_asked_for(given, status):
    answer = get(headers=None if given is None else {"authorization": given}, token=TOKEN)
    assert answer.status_code == status
    if status == 401:
        assert "expected the header Authorization" in answer.json()["error"]
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"]


def test_probes_need_no_token():
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert get(path, token=TOKEN).status_code == 200


@pytest.mark.parametrize(
    ("host", "allowed", "expected"),
    [
        ("127.0.0.1", (), {"localhost", "127.0.0.1", "::1"}),
        ("localhost", ("a.example",), {"a.example", "localhost"}),
        ("0.0.0.0", (), None),
        ("127.0.0.1", ("*",), None),
    ],
)
def test_hosts_depend_on_where_the_server_listens(host, allowed, expected):
    assert Settings(host=host, allowed_hosts=allowed).hosts == expected


def test_a_host_that_is_not_allowed_is_refused():
    assert get(headers={"host": "A.Example:80"}, hosts={"a.example"}).status_code == 200
    answer = get(headers={"host": "b.example"}, hosts={"a.example"})
    assert answer.status_code == 421
    assert "start the server with --allowed-host" in answer.json()["error"]
