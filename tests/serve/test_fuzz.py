"""Requests that are wrong in any way are told so: no 500, no crash, no memory kept.

Each protocol gets 60 of them; BMNAS_FUZZ_REQUESTS=10000 sends so many instead.
"""

from __future__ import annotations

import copy
import http.client
import json
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from bmnas_serve.codec import encode_tensor
from bmnas_serve.grpc_messages import ModelInferRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_process import Server
from tiny_bundles import sample, save_bundle

REQUESTS = int(os.environ.get("BMNAS_FUZZ_REQUESTS", "60"))
#: What the server may keep of all requests, in MiB.
GROWTH_MIB = 50
#: gRPC's names for a mistake of the client.
REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a request can ask for a microsecond
)

many = settings(
    max_examples=REQUESTS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Target:
    """A server, and what it answered."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(save_bundle(folder / "pets"), {"grpc_port": 0, "max_batch": 8})
        self.http = http.client.HTTPConnection(self.server.address, timeout=30)
        self.channel = grpc.insecure_channel(self.server.grpc)
        self.infer = self.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        self.good = self.bad = 0
        for _ in range(50):  # what it takes once is no growth
            self.post(json.dumps(json_request()).encode(), {})
        self.before = self.mib()

    def mib(self) -> float:
        status = Path(f"/proc/{self.server.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def post(self, body: bytes, headers: dict[str, str]) -> None:
        self.http.request("POST", "/v2/models/pets/infer", body, headers)
        answer = self.http.getresponse()
        content = answer.read()
        # A request can ask for an answer within a microsecond.
        assert answer.status < 500 or answer.status == 504, (answer.status, content, body, headers)
        if answer.status == 200:
            self.good += 1
        else:
            assert list(json.loads(content)) == ["error"]
            self.bad += 1

    def ask(self, message: bytes) -> None:
        call = self.infer.future(message, timeout=30)
        if call.exception() is None:
            self.good += 1
        else:
            assert call.code() in REFUSED, (call.code(), call.details(), message)
            self.bad += 1

    def check(self) -> None:
        """Assert that enough was wrong, and that the server is as well as before."""
        grown = self.mib() - self.before
        print(f"{self.bad} refused, {self.good} answered, {grown:+.1f} MiB of {self.before:.0f}")
        assert self.bad >= REQUESTS / 2
        assert grown < GROWTH_MIB
        assert self.server.get("/v2/health/ready") == (200, {"ready": True})


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    target = Target(tmp_path_factory.mktemp("fuzz"))
    yield target
    target.http.close()
    target.channel.close()
    target.server.process.terminate()
    assert target.server.stop() == (0, "")


@pytest.fixture
def target(running):
    running.good = running.bad = 0
    return running


def json_request() -> dict[str, Any]:
    tensors = [encode_tensor(name, array) for name, array in sample(2).items()]
    return {
        "id": "a",
        "parameters": {"timeout": 10**7, "binary_data_output": False},
        "inputs": tensors,
        "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
    }


names = st.sampled_from(
    [
        "inputs",
        "outputs",
        "id",
        "parameters",
        "name",
        "shape",
        "datatype",
        "data",
        "image",
        "sound",
        "logits",
        "binary_data_size",
        "binary_data",
        "sequence_id",
        "priority",
    ]
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | names
    | st.sampled_from([10**400, 2**63, -1, 0, 3e38, 1e39, "FP32", "BYTES", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def changed(draw: Any) -> Any:
    """Draw a request that is right but for a place or two, which are replaced or left out."""
    request = copy.deepcopy(json_request())
    for _ in range(draw(st.integers(1, 2))):
        node: Any = request
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and draw(st.booleans()):
                node = node[key]
                continue
            if isinstance(node, dict) and draw(st.booleans()):
                del node[key]
            else:
                node[key] = draw(values)
            break
    return request


bodies = st.one_of(
    changed().map(lambda request: json.dumps(request).encode()),
    values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
)


def test_bodies(target):
    @many
    @given(bodies)
    def post(body: bytes) -> None:
        target.post(body, {})

    post()
    target.check()


@st.composite
def binary_bodies(draw: Any) -> tuple[bytes, dict[str, str]]:
    """Draw a body of JSON and bytes, and the header that says where the JSON ends."""
    request = json_request()
    binary = b""
    for tensor, array in zip(request["inputs"], sample(2).values(), strict=True):
        data = array.tobytes() if draw(st.booleans()) else draw(st.binary(max_size=40))
        size = len(data) if draw(st.booleans()) else draw(values)
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": size}
        if draw(st.booleans()):
            tensor["shape"] = draw(values)
        binary += data
    head = json.dumps(request).encode()
    size = (
        str(len(head))
        if draw(st.booleans())
        else draw(st.from_regex(r"[ -~]{0,12}", fullmatch=True))
    )
    return head + binary, {"Inference-Header-Content-Length": size}


def test_binary_bodies(target):
    @many
    @given(binary_bodies() | st.tuples(bodies, st.just({"Inference-Header-Content-Length": "9"})))
    def post(request: tuple[bytes, dict[str, str]]) -> None:
        target.post(*request)

    post()
    target.check()


int64 = st.integers(-(2**63), 2**63 - 1)
choices = st.one_of(
    st.builds(lambda value: {"bool_param": value}, st.booleans()),
    st.builds(lambda value: {"int64_param": value}, int64),
    st.builds(lambda value: {"string_param": value}, st.text(max_size=4)),
    st.builds(lambda value: {"double_param": value}, st.floats()),
    st.just({}),
)
wishes = st.dictionaries(
    st.sampled_from(["timeout", "priority", "sequence_id", "classification", "x"]),
    choices,
    max_size=2,
)
contents = st.one_of(
    st.none(),
    st.builds(lambda v: {"fp32_contents": v}, st.lists(st.floats(width=32), max_size=8)),
    st.builds(lambda v: {"int64_contents": v}, st.lists(int64, max_size=4)),
    st.builds(lambda v: {"uint_contents": v}, st.lists(st.integers(0, 2**32 - 1), max_size=12)),
    st.builds(lambda v: {"bytes_contents": v}, st.lists(st.binary(max_size=4), max_size=3)),
)
tensors = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["image", "sound", "smell", ""]),
        "datatype": st.sampled_from(["UINT8", "FP32", "FP16", "BYTES", "INT64", ""]),
        "shape": st.sampled_from([[1, 2, 3], [1, 4], [2, 4]]) | st.lists(int64, max_size=4),
        "parameters": wishes,
        "contents": contents,
    }
)
messages = st.builds(
    ModelInferRequest,
    model_name=st.sampled_from(["pets", "pets", "pets", "dogs", ""]),
    model_version=st.sampled_from(["", "1", "2", "\x00"]),
    id=st.text(max_size=3),
    parameters=wishes,
    inputs=st.lists(tensors, max_size=3),
    outputs=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["logits", "probabilities", "x"]), "parameters": wishes}
        ),
        max_size=3,
    ),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=3),
)


def test_messages(target):
    @many
    @given(messages.map(lambda message: message.SerializeToString()) | st.binary(max_size=100))
    def ask(message: bytes) -> None:
        target.ask(message)

    ask()
    target.check()
