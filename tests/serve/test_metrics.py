from __future__ import annotations

import io
import json
import logging

import pytest
from bmnas_serve import logs
from bmnas_serve.app import create_app
from bmnas_serve.codec import encode_tensor
from bmnas_serve.guard import Guard
from bmnas_serve.metrics import Metrics
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from onnx import TensorProto, helper
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from tiny_bundles import sample, save_bundle, save_model, value

INFER = "/v2/models/pets/infer"
INFER_ROUTE = "/v2/models/{name}/infer"
STATS_ROUTE = "/v2/models/{name}/versions/{version}/stats"


@pytest.fixture
def session(tmp_path):
    return Session.open(save_bundle(tmp_path / "pets"), intra_op_threads=1)


def client(session: Session) -> TestClient:
    metrics = Metrics()
    app = create_app(Repository.of_session(session), metrics=metrics)
    return TestClient(Guard(app, metrics=metrics), raise_server_exceptions=False)


def request(rows: int) -> dict:
    return {"inputs": [encode_tensor(name, x) for name, x in sample(rows).items()]}


@pytest.fixture
def log(monkeypatch):
    """What is written to standard error, as JSON."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    loggers = [logging.getLogger(name) for name in ("bmnas_serve", "uvicorn.error")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    logs.configure("json", requests=True)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def test_requests_and_runs_are_counted(session):
    with client(session) as asking:
        for rows in (1, 3):
            assert asking.post(INFER, json=request(rows)).status_code == 200
        asking.post(INFER, json={})
        asking.get("/nothing")
        asking.get("/")
        asking.post("/v2/repository/index")
        asking.get("/v2/models/pets/versions/1/stats")
        text = asking.get("/metrics").text
    found = {
        (one.name, *sorted(one.labels.values())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }
    assert found["bmnas_requests_total", INFER_ROUTE, "200"] == 2
    assert found["bmnas_requests_total", INFER_ROUTE, "400"] == 1
    assert found["bmnas_requests_total", "404", "none"] == 1
    assert found["bmnas_request_seconds_count", INFER_ROUTE] == 3
    for route in ("/", "/v2/repository/index", STATS_ROUTE):
        assert found["bmnas_requests_total", route, "200"] == 1
    assert found["bmnas_run_rows_sum", "1", "pets"] == 4
    assert found["bmnas_run_seconds_count", "1", "pets"] == 2
    assert found["bmnas_queue_seconds_count", "1", "pets"] == 2
    assert found["bmnas_queue_rows", "1", "pets"] == 0
    assert found["bmnas_ready",] == 1
    assert ("process_resident_memory_bytes",) in found


def test_every_request_is_logged_where_that_is_asked_for(session, log):
    with client(session) as asking:
        asking.post(INFER, json=request(1), headers={"x-request-id": "seven"})
    (line,) = log()
    assert (line["request"], line["level"], line["status"]) == ("seven", "INFO", 200)
    assert line["path"] == json.dumps(INFER)


def test_a_defect_is_logged_with_the_name_of_its_request(session, log, monkeypatch):
    monkeypatch.setattr(session, "run", lambda inputs: {}["secret"])
    with client(session) as asking:
        answer = asking.post(INFER, json=request(1), headers={"x-request-id": "eight"})
    assert answer.status_code == 500
    defect, answered = log()
    assert defect["request"] == answered["request"] == "eight"
    assert "KeyError: 'secret'" in defect["traceback"]
    assert (answered["status"], defect["level"]) == (500, "ERROR")


def test_failures_of_the_model_are_logged(tmp_path, log):
    model = save_model(
        tmp_path / "log.onnx",
        [
            helper.make_node("Reshape", ["x", "shape"], ["two"]),
            helper.make_node("Log", ["two"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, ["batch"]), value("shape", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )

    def tensors(number: float, shape: int) -> dict:
        datas = {"x": ("FP32", number), "shape": ("INT64", shape)}
        inputs = [
            {"name": name, "shape": [1], "datatype": kind, "data": [data]}
            for name, (kind, data) in datas.items()
        ]
        return {"inputs": inputs}

    with client(Session.open(model)) as asking:
        assert asking.post("/v2/models/log/infer", json=tensors(1, 5)).status_code == 500
        assert asking.post("/v2/models/log/infer", json=tensors(-1, 1)).status_code == 422
    failure, _, not_finite, _ = log()
    assert "log: onnxruntime failed" in failure["message"]
    assert "holds NaN or infinity" in not_finite["message"]


def test_text_has_a_line_for_a_record():
    record = logging.LogRecord("bmnas_serve", logging.ERROR, "", 0, "it %s", ("failed",), None)
    line = logs._Formatter("text").format(record)
    assert line.endswith(" ERROR - it failed")
