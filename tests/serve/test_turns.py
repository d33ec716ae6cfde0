from __future__ import annotations

from typing import Any

import pytest
from bmnas_serve import turns
from bmnas_serve.elements import to_array
from bmnas_serve.grpc_messages import ModelInferRequest
from bmnas_serve.strict_json import parse_json

MANY = 40_000


def contents() -> Any:
    message = ModelInferRequest(inputs=[{"contents": {"fp32_contents": [0.5] * MANY}}])
    return message.inputs[0].contents.fp32_contents


@pytest.mark.parametrize(
    ("work", "pauses"),
    [
        (lambda: parse_json(b'{"data":[%s1]}' % (b"1," * MANY), arrays="data"), True),
        (lambda: parse_json(b"{" + b",".join(b'"%d":1' % n for n in range(MANY)) + b"}"), True),
        (lambda: to_array([0.5] * MANY, [MANY], "float32", "x"), True),
        (lambda: to_array([[0.5] * 2] * MANY, [MANY, 2], "float32", "x"), True),
        (lambda: to_array(contents(), [MANY], "float32", "x"), True),
        # What the event loop does itself must not sleep.
        (lambda: parse_json(b'{"data":[%s1]}' % (b"1," * 2000), arrays="data"), False),
        (lambda: to_array([0.5] * 2000, [2000], "float32", "x"), False),
    ],
)
def test_long_work_pauses_between_its_steps(
    work: Any, pauses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(turns.time, "sleep", slept.append)
    monkeypatch.setattr(turns, "_TURN_SECONDS", -1.0)
    work()
    assert bool(slept) == pauses
