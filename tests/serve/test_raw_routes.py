from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import json
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from bmnas_serve import raw_routes
from bmnas_serve.app import create_app
from bmnas_serve.assets import ASSETS
from bmnas_serve.batcher import QueueLimits
from bmnas_serve.bodies import Bodies
from bmnas_serve.manifest import TaskSpec
from bmnas_serve.repository import Repository
from bmnas_serve.session import Session
from bmnas_serve.settings import Settings
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from people_bundles import SAMPLES, inputs, picture, samples, save_people, sound
from tiny_bundles import CLASSES, save_bundle

for package in ("PIL", "soundfile", "soxr", "tokenizers"):
    pytest.importorskip(package)

PREDICT = "/v1/predict"
FACTS = json.dumps({"age": 7, "city": "Rome"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_people(tmp_path_factory.mktemp("people") / "pets")


def talk(path: Path, act: Callable[[httpx.AsyncClient], Awaitable[Any]], **settings: Any) -> Any:
    """Return what ``act`` returns for a client of a server of the bundles at ``path``."""

    async def go() -> Any:
        repository = Repository.open(path, lambda at: Session.open(at, intra_op_threads=1))
        app = create_app(repository, **settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://pets.test") as client,
        ):
            return await act(client)

    return asyncio.run(go())


def ask(path: Path, url: str = PREDICT, **options: Any) -> httpx.Response:
    found: httpx.Response = talk(path, lambda client: client.post(url, **options))
    return found


def get(path: Path, url: str, **options: Any) -> httpx.Response:
    found: httpx.Response = talk(path, lambda client: client.get(url, **options))
    return found


def whole() -> dict[str, Any]:
    """Return a form with every input."""
    return {
        "files": {"photo": ("a.png", picture()), "sound": ("a.wav", sound())},
        "data": {"title": "a dog", "facts": FACTS},
    }


def test_labels_and_probabilities_of_what_people_have(folder: Path) -> None:
    response = ask(folder, f"{PREDICT}?explain=true", **whole())
    assert response.status_code == 200, response.text
    said = response.json()
    assert (said["model_name"], said["model_version"], said["left_out"]) == ("pets", "1", [])
    assert list(said["probabilities"]) == list(CLASSES)
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert said["labels"] == [max(said["probabilities"], key=said["probabilities"].get)]
    assert set(said["importance"]) == {"photo", "sound", "title", "facts"}
    assert set(said["milliseconds"]) == {"input", "model"}


def test_predictions_are_in_the_statistics(folder: Path) -> None:
    async def look(client: httpx.AsyncClient) -> Any:
        await client.post(f"{PREDICT}?sample=0&explain=true")
        await client.post(PREDICT, json={"inputs": {}})
        return (await client.get("/v2/models/pets/stats")).json()["model_stats"][0]

    found = talk(folder, look)["inference_stats"]
    assert (found["success"]["count"], found["fail"]["count"]) == (1, 1)
    assert found["compute_infer"]["count"] == 1


def test_json_says_the_same_as_a_form(folder: Path) -> None:
    import base64

    def encoded(content: bytes) -> dict[str, str]:
        return {"base64": base64.b64encode(content).decode()}

    given = {
        "photo": encoded(picture()),
        "sound": encoded(sound()),
        "title": "a dog",
        "facts": json.loads(FACTS),
    }
    by_form, by_json = ask(folder, **whole()).json(), ask(folder, json={"inputs": given}).json()
    assert by_json["probabilities"] == by_form["probabilities"]


def test_samples_of_the_bundle_are_answered_as_tensors_are(folder: Path) -> None:
    rows = samples()
    tensors = {name: array[2].tolist() for name, array in rows.items()}
    expected = ask(folder, json={"inputs": tensors}).json()["probabilities"]
    found = ask(folder, f"{PREDICT}?sample=2")
    assert found.json()["probabilities"] == expected
    other = ask(folder, f"{PREDICT}?sample=2&without=title", json={"inputs": {"facts": {}}})
    assert other.json()["left_out"] == ["title"]
    assert other.json()["probabilities"] != expected


def test_what_is_left_out_is_the_mean_of_the_samples_or_no_text(folder: Path) -> None:
    found = ask(folder, files={"title": (None, "a dog")}).json()
    assert found["left_out"] == ["photo", "sound", "facts"]
    rows = samples()
    means = {
        "photo": rows["photo"].mean(0).round().astype(int).tolist(),
        "sound": rows["sound"].mean(0, dtype="f8").astype("f4").tolist(),
        "facts": rows["facts"].mean(0, dtype="f8").astype("f4").tolist(),
    }
    expected = ask(folder, json={"inputs": {**means, "title": "a dog"}}).json()
    assert found["probabilities"] == expected["probabilities"]
    # What an input is worth is what is lost when it is left out.
    asked = ask(folder, f"{PREDICT}?explain=true", json={"inputs": {**means, "title": "a dog"}})
    assert {k: asked.json()["importance"][k] for k in means} == dict.fromkeys(means, 0)


def test_what_the_network_has_learned_for_a_missing_input_stands_for_it(tmp_path: Path) -> None:
    specs = inputs()
    learned = {**specs[0].preprocessing, "missing": 9}
    changed = (dataclasses.replace(specs[0], preprocessing=learned), *specs[1:])
    folder = save_people(tmp_path / "pets", inputs=changed)
    found = ask(folder, f"{PREDICT}?sample=1&without=photo").json()
    nine = np.full((6, 4, 3), 9).tolist()
    expected = ask(folder, f"{PREDICT}?sample=1", json={"inputs": {"photo": nine}}).json()
    assert found["left_out"] == ["photo"]
    assert found["probabilities"] == expected["probabilities"]


@pytest.mark.parametrize(
    ("url", "options", "status", "message"),
    [
        (f"{PREDICT}?model=dogs", {"files": {"title": (None, "a")}}, 404, '"dogs"'),
        (f"{PREDICT}?version=7", {"files": {"title": (None, "a")}}, 404, '"7"'),
        (f"{PREDICT}?sample=99", {}, 404, "sample 99, expected one of 5"),
        (f"{PREDICT}?sample=-1", {}, 400, 'received "-1"'),
        (f"{PREDICT}?explain=1", {"files": {"title": (None, "a")}}, 400, "true or false"),
        (f"{PREDICT}?sampel=1", {}, 400, '?"sampel"'),
        (f"{PREDICT}?model=a&model=b", {}, 400, "model twice"),
        (f"{PREDICT}?without=x&sample=1", {}, 422, '"x"'),
        (PREDICT, {}, 415, "multipart/form-data"),
        (PREDICT, {"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
        (PREDICT, {"json": {"inputs": {}}}, 422, "none of the inputs"),
        (PREDICT, {"json": {"inputs": {"x": 1}}}, 422, "the part \"x\", expected 'photo'"),
        (PREDICT, {"json": {}}, 400, "lacks 'inputs'"),
        (PREDICT, {"files": {"photo": b"none"}}, 422, 'part "photo": not a picture'),
        (PREDICT, {"files": {"facts": (None, '{"age": 1e39}')}}, 422, "too large"),
        (PREDICT, {"json": {"inputs": {"sound": [3e38] * 80}}}, 422, "NaN or infinity"),
    ],
)
def test_errors_name_the_part_and_what_was_expected(
    folder: Path, url: str, options: Any, status: int, message: str
) -> None:
    response = ask(folder, url, **options)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


def test_a_decoder_that_is_not_installed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = sound()
    monkeypatch.setitem(sys.modules, "soundfile", None)
    response = ask(folder, files={"sound": content})
    assert response.status_code == 501
    assert response.json()["error"].startswith('part "sound": the package soundfile is not')
    assert "pip install 'bmnas[media]'" in response.text
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    response = ask(folder, files={"sound": content})
    assert (response.status_code, "the package tokenizers is not" in response.text) == (501, True)


def test_a_gzipped_body_is_refused(folder: Path) -> None:
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    response = ask(folder, content=b"x", headers=headers)
    assert (response.status_code, "expected none" in response.text) == (415, True)


def test_a_body_that_is_too_large_is_refused(folder: Path) -> None:
    response = talk(
        folder, lambda client: client.post(PREDICT, **whole()), bodies=Bodies(1000, 10_000)
    )
    assert response.status_code == 413


def test_files_wait_for_each_other_and_not_without_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_routes, "_WAITING", 1)

    async def both(client: httpx.AsyncClient) -> list[int]:
        await client.post(f"{PREDICT}?sample=0")
        asked = (client.post(f"{PREDICT}?sample=0") for _ in range(12))
        return [response.status_code for response in await asyncio.gather(*asked)]

    found = talk(folder, both)
    assert set(found) == {200, 503}


def test_requests_wait_for_the_decoding_of_others_up_to_their_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = threading.Event()
    made = raw_routes._made
    monkeypatch.setattr(raw_routes, "_made", lambda *given: end.wait(10) and made(*given))
    repository = Repository.open(
        folder, lambda at: Session.open(at, intra_op_threads=1), QueueLimits(seconds=0.1)
    )
    app = create_app(repository)

    async def go() -> set[int]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://pets.test") as client,
        ):
            await client.get("/v1/models/pets")
            asked = (client.post(f"{PREDICT}?sample=0") for _ in range(4))
            answers = await asyncio.gather(*asked)
            end.set()
            assert all("no answer in time" in answer.text for answer in answers)
            return {answer.status_code for answer in answers}

    assert asyncio.run(go()) == {504}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": TaskSpec("tags", "multilabel"), "threshold": 0.3}, {"labels", "threshold"}),
        (
            {
                "task": TaskSpec("ages", "regression", "none"),
                "scale": {"mean": [0, 0, 0], "deviation": [1, 2, 4]},
            },
            {"numbers"},
        ),
        ({"task": TaskSpec("own", "own", "none")}, {"outputs"}),
    ],
)
def test_other_kinds_of_task_say_what_they_say(
    tmp_path: Path, changes: dict[str, Any], expected: set[str]
) -> None:
    folder = save_people(tmp_path / "pets", **changes)
    said = ask(folder, f"{PREDICT}?sample=1&explain=true").json()
    assert expected <= set(said)
    logits = ask(folder, "/v2/models/pets/infer", json=tensors_of(1)).json()["outputs"]
    by_name = {output["name"]: output["data"] for output in logits}
    if "labels" in expected:
        above = [n for n, p in zip(CLASSES, by_name["probabilities"], strict=True) if p > 0.3]
        assert said["labels"] == above
        assert said["threshold"] == 0.3
    if "numbers" in expected:
        assert said["numbers"] == pytest.approx(
            dict(zip(CLASSES, by_name["prediction"], strict=True))
        )
    if "outputs" in expected:
        assert said["outputs"]["logits"] == pytest.approx(by_name["logits"])
    assert all(value >= 0 for value in said["importance"].values())


def tensors_of(number: int) -> dict[str, Any]:
    from bmnas_serve.codec import encode_tensor

    rows = {name: array[number : number + 1] for name, array in samples().items()}
    return {"inputs": [encode_tensor(name, array) for name, array in rows.items()]}


def test_several_models_are_asked_by_name(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_people(tmp_path / name)
    save_bundle(tmp_path / "three")
    response = ask(tmp_path, f"{PREDICT}?sample=0")
    assert (response.status_code, "?model=two" in response.text) == (400, True)
    assert ask(tmp_path, f"{PREDICT}?sample=0&model=two").json()["model_name"] == "two"
    names = [one["name"] for one in get(tmp_path, "/v1/models").json()["models"]]
    assert sorted(names) == ["one", "three", "two"]


def test_a_model_alone_is_sent_tensors(folder: Path) -> None:
    response = ask(folder / "model.onnx", f"{PREDICT}?sample=0")
    assert (response.status_code, "/v2/models/model/infer" in response.text) == (422, True)


def test_a_file_that_changes_after_the_start_is_not_read(tmp_path: Path) -> None:
    folder = save_people(tmp_path / "pets")
    before = (folder / "architecture.svg").read_bytes()

    async def change(client: httpx.AsyncClient) -> httpx.Response:
        (folder / "architecture.svg").write_text("<svg/>")
        return await client.get("/v1/models/pets")

    response = talk(folder, change)
    assert (response.status_code, "changed since" in response.text) == (422, True)

    def pipe(client: httpx.AsyncClient) -> Awaitable[httpx.Response]:
        (folder / "architecture.svg").unlink()
        os.mkfifo(folder / "architecture.svg")  # to read it would wait for its writer
        return client.get("/v1/models/pets")

    (folder / "architecture.svg").write_bytes(before)
    response = talk(folder, pipe)
    assert (response.status_code, "not a regular file" in response.text) == (422, True)


def test_samples_that_do_not_fit_the_model_are_told(tmp_path: Path) -> None:
    folder = save_people(tmp_path / "pets")
    manifest = json.loads((folder / "manifest.json").read_text())
    for content, message in ((b"none", "samples.safetensors"), (b"", "samples.safetensors")):
        (folder / "samples.safetensors").write_bytes(content)
        from bmnas_serve.manifest import parse

        digest = hashlib.sha256(content).hexdigest()
        data = {k: v for k, v in manifest.items() if k != "sha256"}
        files = {**data["files"], "samples.safetensors": digest}
        changed = dataclasses.replace(parse(data), files=files)
        (folder / "manifest.json").write_text(json.dumps(changed.to_file()))
        response = get(folder, "/v1/models/pets")
        assert (response.status_code, message in response.text) == (422, True)


def test_samples_are_shown_as_people_see_and_hear_them(folder: Path) -> None:
    from PIL import Image
    from soundfile import SoundFile

    rows = samples()
    root = "/v1/models/pets/samples/3"
    photo = get(folder, f"{root}/photo")
    assert photo.headers["content-type"] == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(photo.content))) == rows["photo"][3]).all()
    heard = get(folder, f"{root}/sound")
    with SoundFile(io.BytesIO(heard.content)) as file:
        assert file.samplerate == 800
        assert np.abs(file.read() - rows["sound"][3]).max() < 1e-4
    text = get(folder, f"{root}/title")
    assert text.headers["content-type"].startswith("text/plain")
    assert len(text.text.split()) == 4
    facts = get(folder, f"{root}/facts").json()
    assert facts["age"] == pytest.approx(5 + 2 * float(rows["facts"][3, 0]), abs=1e-4)
    assert facts["city"] == ("Oslo", "Rome")[int(rows["facts"][3, 2:].argmax())]
    assert get(folder, f"{root}/none").status_code == 404
    for number in (SAMPLES, "none", "9" * 5000):
        assert get(folder, f"/v1/models/pets/samples/{number}/photo").status_code == 404


def test_what_a_browser_loads_does_no_more_than_it_should(folder: Path) -> None:
    page = get(folder, "/", headers={"accept": "text/html"})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for name in ASSETS:
        response = get(folder, f"/page/{name}")
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        again = get(folder, f"/page/{name}", headers={"if-none-match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        # Nothing from elsewhere, and no script, style or handler in the text.
        if name.endswith((".html", ".css", ".js")):
            assert "https://" not in response.text.replace("https and localhost", "")
        if name.endswith(".html"):
            assert "<style" not in response.text
            assert "onclick" not in response.text
            assert response.text.count("<script") == response.text.count("src=")
    assert get(folder, "/page/other.js").status_code == 404
    assert get(folder, "/page/../app.py").status_code == 404
    drawing = get(folder, "/v1/models/pets/architecture.svg")
    assert drawing.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in drawing.headers["content-security-policy"]


def test_samples_are_not_for_everyone(folder: Path) -> None:
    async def look(client: httpx.AsyncClient) -> list[int]:
        asked = [
            await client.get("/v1/models/pets/samples/0/photo"),
            await client.post(f"{PREDICT}?sample=0"),
            # Their mean still stands for what is left out.
            await client.post(PREDICT, files={"title": (None, "a dog")}),
        ]
        assert (await client.get("/v1/models/pets")).json()["samples"] == 0
        return [response.status_code for response in asked]

    assert talk(folder, look, samples=False) == [404, 404, 200]
    for host, asked, shown in (
        ("127.0.0.1", None, True),
        ("0.0.0.0", None, False),
        ("0.0.0.0", True, True),
        ("127.0.0.1", False, False),
    ):
        assert Settings(host=host, samples=asked).shows_samples == shown


def test_a_bundle_without_a_drawing_says_so(tmp_path: Path) -> None:
    folder = save_people(tmp_path / "pets", drawing=None)
    assert get(folder, "/v1/models/pets/architecture.svg").status_code == 404
    assert get(folder, "/v1/models/pets").json()["drawing"] is False


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = get(folder, "/openapi.json").json()
    return found


def test_the_document_is_one_of_openapi_and_has_every_route(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_people(tmp_path / name)
    for served in (folder, folder / "model.onnx", tmp_path):
        OpenAPIV31SpecValidator(document(served)).validate()
    app = create_app(Repository.open(folder, Session.open))
    paths = {
        route.path.replace(":path}", "}")  # type: ignore[attr-defined]
        for route in app.routes
    }
    app_alone = {"/", "/openapi.json", "/page/{file}", "/metrics"}
    assert paths - app_alone == set(document(folder)["paths"])


def test_a_model_that_cannot_be_asked_is_left_out_of_the_document_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        save_people(tmp_path / name)

    async def look(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response]:
        (tmp_path / "two" / "samples.safetensors").write_bytes(b"")
        damaged = await client.get("/openapi.json")
        monkeypatch.setattr(raw_routes, "_WAITING", 0)
        return damaged, await client.get("/openapi.json")

    damaged, full = talk(tmp_path, look)
    assert damaged.status_code == 200
    assert "the model 'two': samples.safetensors: changed since" in caplog.text
    assert full.status_code == 503


def test_answers_are_as_the_document_says(folder: Path) -> None:
    said = document(folder)
    asked: list[tuple[str, str, str, dict[str, Any]]] = [
        ("post", PREDICT, PREDICT, whole()),
        ("post", PREDICT, PREDICT, {}),
        ("post", PREDICT, PREDICT, {"json": {"inputs": {}}}),
        ("post", PREDICT, PREDICT, {"json": []}),
        ("post", PREDICT, f"{PREDICT}?sample=77", {}),
        ("get", "/v1/models", "/v1/models", {}),
        ("get", "/v1/models/{name}", "/v1/models/pets", {}),
        ("get", "/v1/models/{name}", "/v1/models/none", {}),
        ("get", "/v2", "/v2", {}),
        ("get", "/v2/health/live", "/v2/health/live", {}),
        ("get", "/v2/health/ready", "/v2/health/ready", {}),
        ("get", "/v2/models/{name}", "/v2/models/pets", {}),
        ("get", "/v2/models/{name}/ready", "/v2/models/pets/ready", {}),
        ("post", "/v2/models/{name}/infer", "/v2/models/pets/infer", {"json": tensors_of(0)}),
        ("post", "/v2/models/{name}/infer", "/v2/models/pets/infer", {"json": {}}),
        ("post", "/v2/models/{name}/infer", "/v2/models/none/infer", {"json": {}}),
    ]

    async def all_of_them(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.request(method, url, **o) for method, _, url, o in asked]

    for (method, path, _, options), response in zip(asked, talk(folder, all_of_them), strict=True):
        answers = said["paths"][path][method]["responses"]
        assert str(response.status_code) in answers, (path, response.text)
        schema = answers[str(response.status_code)]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": said["components"]})
        validator.validate(response.json())
        if path.endswith("infer") and response.status_code == 200:
            body = said["paths"][path][method]["requestBody"]["content"]["application/json"]
            Draft202012Validator(body["schema"]).validate(options["json"])
