from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bmnas_serve import batcher
from bmnas_serve.batcher import CLIENT, Batcher, Client, QueueLimits, Run
from bmnas_serve.errors import InferenceError, RequestError
from bmnas_serve.session import Session
from onnx import TensorProto, helper
from tiny_bundles import sample, save_bundle, save_model, value


class Gate:
    """A session that answers its input once it is let go; it refuses 13 and keeps a record."""

    name = "gate"
    joins = True
    batch_rows = 64

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.release = threading.Event()
        self.runs: list[list[float]] = []
        self.threads: set[str] = set()

    def run(self, inputs: Any) -> dict[str, np.ndarray]:
        self.threads.add(threading.current_thread().name)
        self.runs.append(inputs["x"].tolist())
        self.entered.set()
        assert self.release.wait(10)
        if 13 in inputs["x"]:
            raise InferenceError("gate: 13")
        with np.errstate(invalid="ignore"):
            return {"y": np.sqrt(inputs["x"])}


class Case:
    """A batcher of a gate, which a first request keeps busy."""

    def __init__(self, watch: Any = lambda run: None, **limits: Any) -> None:
        self.gate = Gate()
        self.batcher = Batcher(self.gate, QueueLimits(**limits), watch)  # type: ignore[arg-type]

    async def __aenter__(self) -> Case:
        self.first = self.ask(1)
        while not self.gate.entered.is_set():
            await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.gate.release.set()
        await asyncio.wait([self.first])
        self.batcher.close()

    def ask(self, *numbers: float, client: Client | None = None, **options: Any):
        async def go() -> list[float]:
            CLIENT.set(client)
            outputs = await self.batcher.predict({"x": np.array(numbers, "f4")}, **options)
            return outputs["y"].tolist()

        return asyncio.create_task(go())

    async def asked(self, *numbers: float, **options: Any):
        """Ask, and return when the request waits or has failed."""
        task = self.ask(*numbers, **options)
        await asyncio.sleep(0)
        return task


def run(go: Coroutine[Any, Any, None]) -> None:
    asyncio.run(go)


def test_outputs_are_those_of_the_session(tmp_path):
    session = Session.open(save_bundle(tmp_path / "b"))
    inputs = [sample(1 + seed % 3, seed) for seed in range(9)]
    batcher = Batcher(session)

    async def go() -> list[dict[str, np.ndarray]]:
        return await asyncio.gather(*(batcher.predict(x) for x in inputs))

    for x, received in zip(inputs, asyncio.run(go()), strict=True):
        expected = session.run(x)
        assert received.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(received[name], expected[name], rtol=1e-5)
    batcher.close()


def test_a_batch_that_is_ready_waits_too():
    async def go() -> None:
        async with Case(rows=4, batch_rows=2) as case:
            ready = [await case.asked(4), await case.asked(9)]
            assert case.batcher.waiting == 2
            waiting = await case.asked(16, 25)
            with pytest.raises(RequestError, match="gate: 4 rows wait already"):
                await case.ask(36)
            case.gate.release.set()
            assert await asyncio.gather(*ready, waiting) == [[2], [3], [4, 5]]
            assert case.batcher.waiting == 0

    run(go())


def test_what_comes_in_during_a_run_is_the_next_batch():
    watched: list[Run] = []

    async def go() -> None:
        async with Case(watched.append) as case:
            more = [await case.asked(4, 9), await case.asked(16)]
            assert case.batcher.waiting == 3
            case.gate.release.set()
            assert await asyncio.gather(*more) == [[2, 3], [4]]
        assert case.gate.runs == [[1], [4, 9, 16]]
        assert len(case.gate.threads) == 1
        assert [(len(run.waits), run.rows, run.failures) for run in watched] == [
            (1, 1, 0),
            (2, 3, 0),
        ]

    run(go())


def test_where_requests_come_close_together_a_run_takes_those_that_the_loop_receives(monkeypatch):
    monkeypatch.setattr(batcher, "_GATHER_SECONDS", 60.0)

    async def go() -> None:
        async with Case() as case:
            more = [await case.asked(4)]
            case.gate.release.set()
            await case.first
            for number in (9, 16):
                time.sleep(0.001)  # the loop has something to do
                more.append(await case.asked(number))
            await asyncio.gather(*more)
        assert case.gate.runs == [[1], [4, 9, 16]]

    run(go())


def test_a_run_is_put_off_for_a_while_at_most(monkeypatch):
    monkeypatch.setattr(batcher, "_PAUSE_SECONDS", 60.0)

    async def go() -> None:
        async with Case() as case:
            second = await case.asked(4)
            case.gate.release.set()
            assert await second == [2]

    run(go())


def test_a_lone_request_never_waits(monkeypatch):
    for name in ("_PAUSE_SECONDS", "_GATHER_SECONDS"):
        monkeypatch.setattr(batcher, name, 60.0)

    async def go() -> None:
        async with Case() as case:
            case.gate.release.set()
            await case.first
            for number in (4, 9):
                assert await case.ask(number) == [number**0.5]

    run(go())


def test_a_batch_is_bounded_and_a_larger_request_runs_alone():
    async def go() -> None:
        async with Case(batch_rows=2) as case:
            more = [await case.asked(*numbers) for numbers in ([4], [1, 4, 9], [9], [16])]
            case.gate.release.set()
            await asyncio.gather(*more)
        assert case.gate.runs == [[1], [4], [1, 4, 9], [9, 16]]

    run(go())


def test_rows_of_a_bare_file_may_depend_on_each_other():
    async def go() -> None:
        case = Case()
        case.gate.joins = False
        async with case:
            more = [await case.asked(4), await case.asked(9)]
            case.gate.release.set()
            await asyncio.gather(*more)
        assert case.gate.runs == [[1], [4], [9]]

    run(go())


def test_one_bad_request_does_not_spoil_its_batch(caplog):
    async def go() -> None:
        async with Case() as case:
            fails, good, negative = [await case.asked(x) for x in (13, 4, -1)]
            case.gate.release.set()
            assert await good == [2]
            with pytest.raises(InferenceError, match="gate: 13"):
                await fails
            with pytest.raises(RequestError) as caught:
                await negative
            assert caught.value.status == 422
            assert "the output 'y' holds NaN or infinity" in caught.value.message
            assert [record.message for record in caplog.records] == [caught.value.message]

    run(go())


@pytest.mark.parametrize("limits", [{"rows": 3}, {"bytes": 12}])
def test_a_full_queue_refuses_and_says_when_to_come_back(limits):
    async def go() -> None:
        async with Case(**limits) as case:
            more = [await case.asked(4), await case.asked(4, 9)]
            refused = await case.asked(1)
            with pytest.raises(RequestError, match="gate: 3 rows wait already") as caught:
                await refused
            assert (caught.value.status, caught.value.retry_after) == (503, 1)
            case.gate.release.set()
            await asyncio.gather(*more)
            assert await case.ask(4) == [2]

    run(go())


def test_a_large_request_waits_where_nothing_else_does():
    async def go() -> None:
        async with Case(rows=2) as case:
            large = await case.asked(1, 4, 9)
            case.gate.release.set()
            assert await large == [1, 2, 3]

    run(go())


def test_a_deadline_ends_the_waiting():
    async def go() -> None:
        async with Case(seconds=60) as case:
            now = asyncio.get_running_loop().time()
            late = await case.asked(4, deadline=now + 0.02)
            with pytest.raises(RequestError, match=r"no answer within 0\.02 s") as caught:
                await late
            assert caught.value.status == 504
            assert case.batcher.waiting == 0
        assert case.gate.runs == [[1]]

    run(go())


def test_the_limit_of_the_queue_is_a_deadline_too():
    async def go() -> None:
        async with Case(seconds=0.02) as case:
            with pytest.raises(RequestError, match=r"no answer within 0\.02 s"):
                await case.first

    run(go())


def test_a_cancelled_request_no_longer_waits():
    async def go() -> None:
        async with Case() as case:
            task = await case.asked(4)
            task.cancel()
            await asyncio.wait([task])
            assert case.batcher.waiting == 0
        assert case.gate.runs == [[1]]

    run(go())


def test_clients_that_are_gone_are_not_served_and_leave_their_room():
    async def go() -> None:
        clients = [Client(), Client()]
        async with Case(rows=2) as case:
            gone = [await case.asked(4, client=client) for client in clients]
            for client in clients:
                client.gone = True
            present = await case.asked(9)
            for task in gone:
                with pytest.raises(RequestError) as caught:
                    await task
                assert caught.value.status == 499
            case.gate.release.set()
            assert await present == [3]
        assert case.gate.runs == [[1], [9]]

    run(go())


def test_clients_that_send_no_more_are_served_last():
    async def go() -> None:
        leaving = Client(leaving=True)
        async with Case() as case:
            tasks = [await case.asked(4, client=leaving), await case.asked(9, client=leaving)]
            tasks.append(await case.asked(16))
            case.gate.release.set()
            assert await asyncio.gather(*tasks) == [[2], [3], [4]]
        assert case.gate.runs == [[1], [16], [4], [9]]

    run(go())


def test_a_defect_is_raised_where_the_request_waits():
    async def go() -> None:
        async with Case() as case:
            case.gate.run = lambda inputs: {}["defect"]  # type: ignore[method-assign]
            tasks = [await case.asked(4), await case.asked(9)]
            case.gate.release.set()
            for task in tasks:
                with pytest.raises(KeyError, match="defect"):
                    await task

    run(go())


def test_outputs_of_other_lengths_are_not_split(tmp_path):
    model = save_model(
        tmp_path / "sum.onnx",
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)],
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["one"])],
    )
    session = Session.open(model)
    session.manifest = SimpleNamespace()  # type: ignore[assignment]
    batcher = Batcher(session)

    async def go() -> list[float]:
        inputs = [{"x": np.full(2, x, "f4")} for x in (1, 2, 3)]
        answers = await asyncio.gather(*map(batcher.predict, inputs))
        return [float(answer["y"][0]) for answer in answers]

    assert asyncio.run(go()) == [2, 4, 6]
    batcher.close()
