from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from bmnas_serve.errors import InferenceError
from bmnas_serve.lifecycle import Predictor
from bmnas_serve.session import Session
from onnx import TensorProto, helper
from tiny_bundles import sample, save_bundle, save_model, value


class _Blocking:
    """A session whose run waits until it is let go."""

    name = "blocking"

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.threads: set[str] = set()

    def run(self, inputs):
        self.threads.add(threading.current_thread().name)
        self.entered.set()
        assert self.release.wait(10)
        return {"y": inputs["x"]}


def test_outputs_are_those_of_the_session(tmp_path):
    session = Session.open(save_bundle(tmp_path / "b"))
    inputs = sample(3)
    with Predictor(session) as predictor:
        received = asyncio.run(predictor.predict(inputs))
    expected = session.run(inputs)
    assert received.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(received[name], expected[name])


def test_event_loop_is_free_while_one_thread_runs_the_model():
    session = _Blocking()

    async def go() -> None:
        with Predictor(session) as predictor:  # type: ignore[arg-type]
            tasks = [asyncio.create_task(predictor.predict({"x": np.ones(1)})) for _ in range(3)]
            while not session.entered.is_set():
                await asyncio.sleep(0)
            assert not any(task.done() for task in tasks)
            session.release.set()
            assert len(await asyncio.gather(*tasks)) == 3

    asyncio.run(go())
    assert len(session.threads) == 1


@pytest.mark.parametrize("number", [0.0, -1.0])
def test_outputs_that_are_not_finite_are_an_error(tmp_path, number):
    model = save_model(
        tmp_path / "log.onnx",
        [helper.make_node("Log", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
    )
    with (
        Predictor(Session.open(model)) as predictor,
        pytest.raises(InferenceError, match="the output 'y' holds NaN or infinity"),
    ):
        asyncio.run(predictor.predict({"x": np.array([1, number], np.float32)}))
