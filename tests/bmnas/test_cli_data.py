from __future__ import annotations

from pathlib import Path

import pytest
from originals import tiny_mnist, write_mnist, write_tiny_fsdd
from typer.testing import CliRunner

from bmnas.cli import app, main
from bmnas.tasks.av_digits import FILES
from bmnas.tasks.originals import SPEAKERS, TAKES


def test_a_pack_is_built_and_the_next_command_told(tmp_path: Path) -> None:
    mnist = write_mnist(tmp_path / "mnist", tiny_mnist(2700, 300), dot=".", gz=True)
    fsdd = write_tiny_fsdd(tmp_path / "fsdd" / "recordings", SPEAKERS, TAKES)
    out = tmp_path / "packs" / "av-digits"
    options = ["--mnist", str(mnist), "--fsdd", str(fsdd.parent), "--out", str(out)]
    result = CliRunner().invoke(app, ["data", "av-digits", *options])
    assert result.exit_code == 0
    assert sorted(result.stdout.split()) == sorted(str(out / name) for name in FILES)
    assert f"bmnas search --task av-digits --data {out}" in result.stderr


def test_missing_originals_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        ["bmnas", "data", "av-digits", "--mnist", folder, "--fsdd", folder, "--out", "pack"],
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith(f"error: {folder}: expected MNIST's train-images")
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []
