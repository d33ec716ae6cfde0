"""The requests of docs/serving.md, sent to a server as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from people_bundles import picture, save_people, served, sound
from tiny_bundles import CLASSES

for package in ("PIL", "soundfile", "soxr", "tokenizers"):
    pytest.importorskip(package)

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_requests_are_answered_as_the_page_says(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    requests = re.findall(r"^```sh\n(curl .*?/v1/predict.*?)^```", text, re.M | re.S)
    (answer,) = re.findall(r"^```json\n(.*?)^```", text, re.M | re.S)
    (tmp_path / "a.jpg").write_bytes(picture(form="JPEG"))
    (tmp_path / "a.wav").write_bytes(sound())
    assert len(requests) == 2
    answers = []
    with served(save_people(tmp_path / "pets")) as address:
        for request in requests:
            sent = request.replace("http://127.0.0.1:8000", address).replace("curl ", "curl -sS ")
            words = ["sh", "-c", sent]
            done = subprocess.run(words, capture_output=True, cwd=tmp_path, check=True)
            answers.append(json.loads(done.stdout))
    assert [list(found) for found in answers] == [list(json.loads(answer))] * 2
    for found in answers:
        assert list(found["probabilities"]) == list(CLASSES)
    assert answers[0]["left_out"] == []
    assert answers[1]["left_out"] == ["photo", "sound"]
