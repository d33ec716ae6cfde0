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


def test_a_log_gets_a_line_a_minute(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def work(name: str, units: int, *times: float) -> None:
        with bars.stage(name, units) as stage:
            for now[0] in times:
                stage.message(f"at {now[0]:.0f}")
                stage.advance()

    bars = Bars()
    work("search", 8, 50.0, 100.0, 110.0, 170.0)
    work("a short one", 2, 200.0, 210.0)
    work("another", 4, 220.0, 235.0)
    assert capfd.readouterr() == (
        "",
        "search: 2 of 8 in 100 s, about 300 s left  at 100\n"
        "search: 4 of 8 in 170 s, about 170 s left  at 170\n"
        "another: 2 of 4 in 25 s, about 25 s left  at 235\n",
    )


def test_a_log_of_short_work_has_notes_alone(
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
