from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bmnas.machine.files
from bmnas.machine.errors import UserError
from bmnas.machine.files import (
    atomic_folder,
    atomic_path,
    read_json,
    read_toml,
    remove_folder,
    remove_leftovers,
    sha256_file,
    write_json,
    write_text,
)
from bmnas.machine.tensor_file import read_tensors, write_tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as aside:
        aside.write_text("whole")
        assert not path.exists()
        assert aside.parent == path.parent
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_old_file_is_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as aside:
            aside.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_files_and_folders_have_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_replaces_one_with_content(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for text in ("old", "new"):
        with atomic_folder(path) as aside:
            (aside / f"{text}.txt").write_text(text)
    assert names(path) == ["new.txt"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_old_folder_is_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old.txt").write_text("old")

    def write() -> None:
        with atomic_folder(path) as aside:
            (aside / "half.txt").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("failing", [1, 2])
def test_the_old_folder_comes_back_when_a_rename_fails(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old.txt").write_text("old")
    calls = 0
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(bmnas.machine.files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as aside:
        (aside / "new.txt").write_text("new")
    assert names(path) == ["old.txt"]
    assert names(tmp_path) == ["bundle"]


KILLED = """
import os, signal, sys
from pathlib import Path
import bmnas.machine.files
from bmnas.machine.files import atomic_folder

path, moment = Path(sys.argv[1]), int(sys.argv[2])
calls, rename = 0, os.replace
def replace(source, target):
    global calls
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    rename(source, target)
bmnas.machine.files.os.replace = replace
with atomic_folder(path) as aside:
    (aside / "new.txt").write_text("new")
    if moment < 0:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", [-1, 0, 1])
def test_a_killed_writer_leaves_the_old_folder(tmp_path: Path, moment: int) -> None:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "old.txt").write_text("old")
    command = [sys.executable, "-c", KILLED, str(path), str(moment)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert names(tmp_path) != ["bundle"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["bundle"]
    assert names(path) == ["old.txt"]


def test_leftovers_go_and_everything_else_stays(tmp_path: Path) -> None:
    (tmp_path / ".a.json.x1_y2z3w.part").write_text("half")
    (tmp_path / ".bundle.x1_y2z3w.part").mkdir()
    (tmp_path / ".bundle.aaaaaaaa.old" / "bundle").mkdir(parents=True)
    stay = [".vimrc.old", ".movie.part", "a.x1_y2z3w.part", ".lock", "bundle"]
    for name in stay:
        (tmp_path / name).write_text("kept")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(stay)
    assert (tmp_path / "bundle").read_text() == "kept"
    remove_leftovers(tmp_path / "nothing")


def test_a_folder_is_removed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("x")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    remove_folder(tmp_path / "a")
    assert names(tmp_path) == ["b"]
    monkeypatch.setattr(shutil, "rmtree", lambda _: None)  # killed before it
    remove_folder(tmp_path / "b")
    monkeypatch.undo()
    assert not (tmp_path / "b").exists()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


FULL = """
import resource, sys
from pathlib import Path
from bmnas.machine.files import write_text

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(Path(sys.argv[1]), "x" * 5000)
except OSError as error:
    print(error.filename, error.strerror, sep="|")
"""


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{path}|File too large\n"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_that_names_a_file_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error, atomic_path(tmp_path / "a"):
        (tmp_path / "other").read_text()
    assert error.value.filename == str(tmp_path / "other")


def test_json_round_trip_and_what_json_cannot_say(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"a": [1, 2.5, None, "é"], "b": {}}
    write_json(path, value)
    assert read_json(path) == value
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file: Expecting value"),
        (b'{"a": 1', "not a JSON file: Expecting ',' delimiter"),
        (b"\xff\xfe", "not a JSON file: 'utf-8' codec"),
        (b"[NaN]", "not a JSON file: received NaN, expected a finite number"),
        (b"[-Infinity]", "received -Infinity, expected a finite number"),
        (b"[" * 200_000, "not a JSON file"),
        (b'"' + b"x" * 2_000_000 + b'"', "received 2,000,002 bytes, expected at most 1,000,000"),
    ],
)
def test_json_of_strangers_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as line:
        read_json(path, limit=1_000_000)
    assert str(line.value).startswith(f"{path}: ")
    assert message in str(line.value)
    assert "\n" not in str(line.value)


@pytest.mark.parametrize("reader", [read_json, read_toml])
def test_a_missing_file_or_a_folder_is_told(tmp_path: Path, reader: object) -> None:
    assert callable(reader)
    with pytest.raises(UserError, match=r"a.json: cannot be read: No such file"):
        reader(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        reader(tmp_path)


def test_toml_is_read_or_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[search]\nname = "é"\n', encoding="utf-8")
    assert read_toml(path) == {"search": {"name": "é"}}
    for content in (b"a = \n", b"\xff", b"a = " + b"[" * 10_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.toml: not a TOML file: ") as line:
            read_toml(path)
        assert "\n" not in str(line.value)


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256_file(path) == hashlib.sha256(b"abc").hexdigest()


def test_written_json_ends_in_a_line(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1})
    assert (tmp_path / "a").read_text() == json.dumps({"b": 1}, indent=2) + "\n"


def test_tied_weights_are_written_once_for_each_of_their_names(tmp_path: Path) -> None:
    # safetensors refuses tensors that share memory.
    weight = torch.arange(3.0)
    write_tensors(tmp_path / "x", {"a": weight, "b": weight}, {"format": "f/1", "note": 1})
    description, found = read_tensors(tmp_path / "x", described="f/1")
    assert description == {"format": "f/1", "note": 1}
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["b"], weight)
    assert read_tensors(tmp_path / "x", described="f/1", tensors=False)[1] == {}


def test_tensors_with_zeroed_bytes_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.ones(2000), "b": torch.ones(2)}, {"format": "f/1"})
    content = path.read_bytes()
    path.write_bytes(content[:-4000] + bytes(4000))
    with pytest.raises(UserError, match=r"x: damaged: the sha256 of its 2 tensors is [0-9a-f]{64}"):
        read_tensors(path, described="f/1")
    # What is written without its tensors' digest, as earlier versions did, is read.
    plain = content.replace(b"sha256", b"sha257")
    path.write_bytes(plain)
    assert read_tensors(path, described="f/1")[0].keys() == {"format", "sha257"}
