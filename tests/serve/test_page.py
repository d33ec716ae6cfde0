"""The page in a headless Chromium; skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from people_bundles import picture, save_people, served, sound

for package in ("PIL", "soundfile", "soxr", "tokenizers"):
    pytest.importorskip(package)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)

HOSTILE = "<img src=x onerror=alert(1)>"
#: A microphone that plays a tone, and nobody who has to allow it.
ARGUMENTS = (
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page") / "pets"
    with served(save_people(folder, class_names=(HOSTILE, "dog", "owl"))) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what its browser complained of or asked elsewhere."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.address = address
        self.complaints: list[str] = []
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **options}
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("console", lambda message: self._complain(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: self._check(asked.url))
        self.page.goto(address)
        self.headline.wait_for()

    @property
    def headline(self) -> Any:
        return self.page.locator("#said .headline")

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _check(self, url: str) -> None:
        if not url.startswith((f"{self.address}/", "blob:")):
            self.complaints.append(f"asked {url}")

    def card(self, name: str) -> Any:
        return self.page.get_by_role("group", name=name, exact=True)

    def state(self, name: str, words: str) -> None:
        self.card(name).locator(".state", has_text=words).wait_for()

    def probabilities(self) -> dict[str, str]:
        """Return what the bars say when no question is open."""
        self.page.locator("#answer:not([aria-busy])").wait_for()
        bars = self.page.get_by_role("list", name="Probabilities").get_by_role("listitem").all()
        lines = [bar.inner_text().split("\n") for bar in bars]
        return {line[0]: line[-1].replace("\xa0", " ") for line in lines}


@pytest.fixture
def visit(chromium: Any, address: str) -> Iterator[Visit]:
    opened = Visit(chromium, address)
    yield opened
    opened.context.close()
    assert opened.complaints == []


def asked(address: str, query: str) -> dict[str, Any]:
    said: dict[str, Any] = httpx.post(f"{address}/v1/predict?{query}").json()
    return said


def percents(said: dict[str, Any]) -> dict[str, str]:
    return {name: f"{100 * share:.1f} %" for name, share in said["probabilities"].items()}


def test_a_sample_is_predicted_at_once_and_the_next_one_by_keyboard(
    visit: Visit, address: str
) -> None:
    page = visit.page
    said = asked(address, "sample=0")
    assert visit.probabilities() == percents(said)
    assert visit.headline.inner_text() == said["labels"][0]
    assert page.title() == "pets"
    # The first stop is the link over all of the inputs.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the prediction"
    page.get_by_role("button", name="Next sample").focus()
    with page.expect_response(lambda response: "/v1/predict" in response.url):
        page.keyboard.press("Enter")
    assert page.locator("#sample").input_value() == "1"
    visit.probabilities()
    expected = percents(asked(address, "sample=1"))
    page.get_by_text(expected["dog"]).first.wait_for()
    assert visit.probabilities() == expected
    worth = page.get_by_role("list", name="What each input is worth")
    assert worth.get_by_role("listitem").count() == 4


def test_names_from_the_bundle_are_text_and_nothing_else(visit: Visit) -> None:
    assert HOSTILE in visit.probabilities()
    assert visit.page.locator("img[src=x]").count() == 0
    visit.page.get_by_text("Test accuracy", exact=True).wait_for()
    drawing = visit.page.get_by_role("img", name=re.compile("Drawing of the network"))
    assert drawing.get_attribute("src").endswith("/architecture.svg?version=1")


def test_a_card_that_comes_late_is_not_shown_under_another_model(
    visit: Visit, address: str
) -> None:
    page = visit.page
    late: list[Any] = []
    card = httpx.get(f"{address}/v1/models/pets").json()
    names = [{"name": name, "version": "1"} for name in ("pets", "late")]
    page.route("**/v1/models", lambda route: route.fulfill(json={"models": names}))
    page.route("**/v1/models/late?*", lambda route: late.append(route))
    page.goto(address)
    visit.headline.wait_for()
    with page.expect_request("**/v1/models/late?*"):
        page.locator("#models").select_option(label="late, version 1")
    with page.expect_response("**/v1/predict?*"):
        page.locator("#models").select_option(label="pets, version 1")
    with page.expect_response("**/v1/models/late?*"):
        late[0].fulfill(json={**card, "name": "late", "task": "late"})
    page.wait_for_timeout(100)
    assert page.locator("#title").inner_text() == "pets"
    assert page.locator("#about").inner_text().startswith(f"{card['task']}, ")


def test_files_texts_and_fields_are_predicted(visit: Visit, address: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "a.wav").write_bytes(sound())
    page = visit.page
    page.get_by_label("Choose a picture for photo").set_input_files(tmp_path / "a.png")
    page.get_by_label("Choose a sound for sound").set_input_files(tmp_path / "a.wav")
    page.get_by_role("textbox", name="title").fill("a dog barks")
    page.get_by_label("age").fill("7")
    page.get_by_label("city").select_option("Rome")
    for name in ("photo", "sound", "title", "facts"):
        visit.state(name, "your own")
    page.wait_for_timeout(400)  # until what was typed is sent
    parts = {
        "photo": picture(),
        "sound": sound(),
        "title": (None, "a dog barks"),
        "facts": (None, json.dumps({"age": 7, "city": "Rome"})),
    }
    said = httpx.post(f"{address}/v1/predict", files=parts).json()
    assert visit.probabilities() == percents(said)
    visit.card("facts").get_by_role("button", name="Leave out").click()
    page.get_by_text("Left out: facts.").wait_for()
    visit.card("photo").get_by_role("button", name="Sample").click()
    visit.state("photo", "from the sample")


def test_a_picture_is_drawn(visit: Visit) -> None:
    page = visit.page
    visit.card("photo").get_by_role("button", name="Draw").click()
    board = page.get_by_role("img", name=re.compile("Draw photo"))
    box = board.bounding_box()
    with page.expect_response(lambda response: "/v1/predict" in response.url) as answered:
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 90, steps=4)
        page.mouse.up()
    assert answered.value.status == 200
    visit.state("photo", "your own")
    drawn = visit.probabilities()
    with page.expect_response(lambda response: "/v1/predict" in response.url):
        visit.card("photo").get_by_role("button", name="Black on white").click()
    assert visit.probabilities() != drawn


def test_a_box_is_drawn_in_its_picture(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    said = {"outputs": {"box": [4, 6, 13, 17], "probability": [0.5]}, "left_out": []}
    said |= {"milliseconds": {"input": 1, "model": 1}}
    page.route("**/v1/predict?*", lambda route: route.fulfill(json=said))
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture((40, 60)))
    visit.card("photo").locator("input").set_input_files(photo)
    box = visit.card("photo").get_by_role("img", name="the box in the picture")
    box.wait_for()
    told = page.locator("#said").inner_text().split()
    assert told == ["box", "4,", "6,", "13,", "17", "probability", "0.5"]
    # A stroke of 3 pixels stands round 10 x 12 of the picture, which is as high as its place.
    drawn = visit.card("photo").locator("rect").bounding_box()
    shown = visit.card("photo").locator("img").bounding_box()
    scale = min(shown["width"] / 60, shown["height"] / 40)
    left = shown["x"] + (shown["width"] - 60 * scale) / 2
    top = shown["y"] + (shown["height"] - 40 * scale) / 2
    wanted = left + 4 * scale, top + 6 * scale, 10 * scale, 12 * scale
    found = [drawn[name] for name in ("x", "y", "width", "height")]
    assert found == pytest.approx(wanted, abs=4)
    # A change of the picture takes it away.
    visit.card("photo").get_by_role("button", name="Draw").click()
    assert box.count() == 0


def test_a_sound_is_recorded(visit: Visit) -> None:
    before = visit.probabilities()
    with visit.page.expect_response(lambda response: "/v1/predict" in response.url) as answered:
        visit.card("sound").get_by_role("button", name="Record").click()
        visit.card("sound").get_by_role("button", name="Stop").wait_for()
    assert answered.value.status == 200
    visit.state("sound", "your own")
    assert visit.probabilities() != before
    visit.card("sound").get_by_role("button", name="Record").wait_for()
    seconds = visit.page.locator("audio").evaluate("element => element.duration")
    assert 0.5 < seconds < 3


def test_what_cannot_be_read_is_told_and_mended(
    chromium: Any, address: str, tmp_path: Path
) -> None:
    visit = Visit(chromium, address)
    page = visit.page
    (tmp_path / "a.wav").write_bytes(b"none")
    page.get_by_label("Choose a sound for sound").set_input_files(tmp_path / "a.wav")
    alert = page.locator("#said").get_by_role("alert")
    alert.wait_for()
    assert 'part "sound"' in alert.inner_text()
    visit.card("sound").get_by_role("button", name="Sample").click()
    visit.headline.wait_for()
    page.get_by_label("age").fill("old")
    page.get_by_text("a number or null").wait_for()
    visit.context.close()
    # The browser itself tells of each answer that is an error.
    assert all("422" in complaint for complaint in visit.complaints)


def test_why_a_sample_cannot_be_shown_is_told(chromium: Any, address: str) -> None:
    visit = Visit(chromium, address)
    told = "the package PIL is not installed"
    visit.page.route("**/samples/**", lambda to: to.fulfill(status=501, json={"error": told}))
    visit.page.get_by_label("Next sample").click()
    for name in ("photo", "sound", "title"):
        visit.card(name).get_by_text(told).wait_for()
    visit.context.close()
    assert all("501" in complaint for complaint in visit.complaints)


@pytest.mark.parametrize(
    ("width", "scheme", "touch"),
    [(1280, "light", False), (390, "dark", True), (320, "light", True)],
)
def test_every_width_shows_all_in_both_schemes(
    chromium: Any, address: str, tmp_path: Path, width: int, scheme: str, touch: bool
) -> None:
    visit = Visit(
        chromium,
        address,
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        has_touch=touch,
    )
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth") == width
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
    assert light == (scheme == "light")
    assert page.locator("#brief").is_visible() == (width < 896)
    nameless = [
        control.evaluate("element => element.outerHTML")
        for control in page.locator("button, input, select, textarea, audio").all()
        if not control.evaluate(
            "e => e.ariaLabel || e.textContent.trim() || [...(e.labels ?? [])]"
            ".map((label) => label.textContent.trim()).join('')"
        )
    ]
    assert nameless == []
    small = [
        box
        for control in page.locator("button:visible").all()
        if (box := control.bounding_box())["height"] < 40
    ]
    assert small == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    visit.context.close()
    assert visit.complaints == []
