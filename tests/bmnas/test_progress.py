from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from bmnas.machine.progress import Bars, Progress

PROGRAM = """
from bmnas.machine.progress import Bars
bars = Bars()
with bars.stage("search", 3) as stage:
    for epoch in range(3):
        stage.message(f"loss {epoch}.5")
        stage.advance()
bars.note("two texts")
"""


def test_silence_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    silent = Progress()
    with silent.stage("search", 3) as stage:
        stage.advance()
        stage.message("loss")
    silent.note("two texts")
    assert capfd.readouterr() == ("", "")


def test_bars_are_quiet_when_not_a_terminal_but_notes_are_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    bars = Bars()
    with bars.stage("search", 3) as stage:
        stage.advance(2)
        stage.message("loss")
    bars.note("two texts")
    assert capfd.readouterr() == ("", "note: two texts\n")


def test_a_terminal_gets_bars_on_standard_error_and_standard_output_stays_clean() -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            check=True,
        )
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # the other end of a pseudo-terminal is gone: all was read
    finally:
        os.close(ours)
    assert done.stdout == b""
    text = shown.decode()
    for part in ("search", "3/3", "0:00:0", "loss 2.5", "note: two texts"):
        assert part in text


@pytest.mark.parametrize("progress", [Progress(), Bars()])
def test_an_exception_passes_through_a_stage(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with pytest.raises(KeyboardInterrupt), progress.stage("search", 3):
        raise KeyboardInterrupt
