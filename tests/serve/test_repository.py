from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bmnas_serve.errors import BundleError, RequestError
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from tiny_bundles import sample, save_bundle, save_classifier


def open_session(path: Path) -> Session:
    return Session.open(path, intra_op_threads=1)


@pytest.fixture
def folder(tmp_path):
    """Two models, the second in two versions, and what is no model."""
    save_bundle(tmp_path / "models" / "cats")
    for version in (2, 10):
        save_bundle(tmp_path / "models" / "dogs" / str(version), name=f"dogs{version}")
    save_bundle(tmp_path / "models" / "dogs" / "old")
    save_bundle(tmp_path / "models" / ".hidden")
    (tmp_path / "models" / "empty").mkdir()
    (tmp_path / "models" / "README").touch()
    return tmp_path / "models"


def states(repository: Repository) -> list[tuple[str, str, str]]:
    entries = asyncio.run(repository.index())
    return [(entry["name"], entry["version"], entry["state"]) for entry in entries]


def refused(status: int, message: str) -> Any:
    return pytest.raises(RequestError, match=message, check=lambda error: error.status == status)


def test_one_bundle_is_one_model_in_one_version(tmp_path):
    repository = Repository.open(save_bundle(tmp_path / "b"), open_session)
    assert repository.get("pets") is repository.get("pets", "1")
    assert repository.versions("pets") == ("1",)
    assert states(repository) == [("pets", "1", "READY")]
    with refused(404, "received the model \"cats\", expected 'pets'"):
        repository.get("cats")
    with refused(404, "received the version \"2\", expected '1'"):
        repository.get("pets", "2")


def test_a_bare_model_is_called_as_its_file_is(tmp_path):
    repository = Repository.open(save_classifier(tmp_path / "net.onnx"), open_session)
    assert states(repository) == [("net", "1", "READY")]


def test_a_folder_of_bundles(folder):
    repository = Repository.open(folder, open_session)
    assert states(repository) == [
        ("cats", "1", "READY"),
        ("dogs", "2", "READY"),
        ("dogs", "10", "READY"),
    ]
    assert repository.get("dogs").version == "10"
    assert repository.get("dogs", "2").name == "dogs"
    assert len(repository.served()) == 3


def test_a_folder_without_bundles_and_a_broken_bundle(folder, tmp_path):
    with pytest.raises(BundleError, match=r"not a bundle: it has no manifest\.json"):
        Repository.open(folder / "empty", open_session)
    (folder / "cats" / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="damaged or changed after export"):
        Repository.open(folder, open_session)


def test_load_and_unload(folder):
    async def go() -> None:
        repository = Repository.open(folder, open_session)
        repository.unload("dogs")
        with refused(404, "received the model \"dogs\", expected 'cats'"):
            repository.get("dogs")
        with refused(404, "dogs"):
            repository.unload("dogs")
        reasons = {entry["name"]: entry["reason"] for entry in await repository.index()}
        assert reasons == {"cats": "", "dogs": "not loaded"}
        shutil.rmtree(folder / "dogs" / "2")
        save_bundle(folder / "dogs" / "11")
        await repository.load("dogs")
        assert repository.versions("dogs") == ("10", "11")
        with refused(404, "received the model \"fish\", expected 'cats', 'dogs'"):
            await repository.load("fish")
        repository.unload("dogs")
        repository.unload("cats")
        with refused(404, "but none is served"):
            repository.get("cats")

    asyncio.run(go())


def test_what_cannot_be_loaded_leaves_what_is_served(folder):
    async def go() -> None:
        repository = Repository.open(folder, open_session)
        before = repository.get("cats")
        (folder / "cats" / "model.onnx").write_bytes(b"")
        with refused(400, "cannot load 'cats': .* damaged .*; what was served goes on"):
            await repository.load("cats")
        assert repository.get("cats") is before
        repository.unload("cats")
        with refused(400, r"export again$"):
            await repository.load("cats")
        entry, *_ = await repository.index()
        assert (entry["state"], "damaged" in entry["reason"]) == ("UNAVAILABLE", True)

    asyncio.run(go())


def test_a_load_that_nobody_waits_for_goes_on_and_the_next_waits_for_it(folder):
    going, most = 0, 0
    begun, end = threading.Event(), threading.Event()

    def slow(path: Path) -> Session:
        nonlocal going, most
        going += 1
        most = max(most, going)
        begun.set()
        end.wait(10)
        going -= 1
        return open_session(path)

    async def go() -> None:
        repository = Repository.open(folder, open_session)
        before = repository.get("cats")
        repository._open_session = slow
        first = asyncio.create_task(repository.load("cats"))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(repository.load("cats"))
        await asyncio.sleep(0.05)
        assert repository.get("cats") is before
        end.set()
        await second
        assert repository.get("cats") is not before

    asyncio.run(go())
    assert most == 1


def test_a_folder_of_models_that_cannot_be_read(folder):
    async def go() -> None:
        repository = Repository.open(folder, open_session)
        before = [one for one in await repository.index() if one["state"] == "READY"]
        shutil.rmtree(folder)
        assert await repository.index() == before
        with refused(400, "cannot load 'cats': .*/models: cannot be read: No such file"):
            await repository.load("cats")

    asyncio.run(go())


def test_a_path_that_cannot_be_read():
    for opened in (open_session, lambda path: Repository.open(path, open_session)):
        with pytest.raises(BundleError, match="cannot be read: File name too long"):
            opened(Path("a" * 300))


def wait_until(done: Callable[[], bool]) -> Any:
    async def go() -> None:
        while not done():
            await asyncio.sleep(0.001)

    return asyncio.wait_for(go(), 10)


def test_a_replaced_version_answers_those_who_hold_it_and_is_closed(tmp_path):
    async def go() -> None:
        repository = Repository.open(save_bundle(tmp_path / "b"), open_session)
        inputs = sample(2)
        with repository.get("pets") as before:
            await repository.load("pets")
            assert repository.get("pets") is not before
            received = await before.predict(inputs)
            assert not before.batcher._closed
        np.testing.assert_array_equal(received["logits"], before.session.run(inputs)["logits"])
        await wait_until(lambda: before.batcher._closed)
        with pytest.raises(RuntimeError, match="this version is closed"):
            await before.predict(inputs)
        repository.close()

    asyncio.run(go())


def test_the_time_of_a_request_begins_when_it_arrives(tmp_path):
    async def go() -> None:
        repository = Repository.open(save_bundle(tmp_path / "b"), open_session)
        before = asyncio.get_running_loop().time() - 2
        with repository.get("pets") as served:
            with refused(504, "its time was over before the model could run"):
                await served.predict(sample(1), 1, before)
            assert list(await served.predict(sample(1), 20, before)) == ["logits", "probabilities"]
        repository.close()

    asyncio.run(go())


def test_a_version_that_nobody_holds_is_closed_at_once(tmp_path):
    async def go() -> None:
        repository = Repository.open(save_bundle(tmp_path / "b"), open_session)
        before = repository.get("pets")
        repository.unload("pets")
        await wait_until(lambda: before.batcher._closed)

    asyncio.run(go())
