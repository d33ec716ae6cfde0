from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bmnas.machine.distributed import lock_folders
from bmnas.machine.errors import UserError
from bmnas.pipeline.run_folder import Run, require_same
from bmnas.report import metrics

HOLD = """
import sys
from pathlib import Path
from bmnas.machine.errors import UserError
from bmnas.machine.distributed import lock_folders
try:
    with lock_folders(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except UserError as error:
    print(error)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_second_process_gets_one_line_until_the_first_is_gone(tmp_path: Path) -> None:
    with hold(tmp_path / "run") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with hold(tmp_path / "run") as second:
            answer = second.communicate("")[0]
        assert answer == (
            f"{tmp_path / 'run'}: another bmnas process is at work there; wait for it, or choose "
            "another folder\n"
        )
        first.kill()
    with lock_folders(tmp_path / "run"):
        pass


def test_a_held_folder_is_left_alone(tmp_path: Path) -> None:
    with lock_folders(tmp_path):
        (tmp_path / ".a.json.aaaaaaaa.part").write_text("being written")
        with pytest.raises(UserError, match="another bmnas process"), lock_folders(tmp_path):
            pass
        assert (tmp_path / ".a.json.aaaaaaaa.part").exists()


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".a.json.aaaaaaaa.part").write_text("half")
    (tmp_path / ".bundle.aaaaaaaa.old").mkdir()
    with lock_folders(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "bundle"]


def test_a_folder_named_twice_is_held_once(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with lock_folders(tmp_path / "run", tmp_path / "x" / ".." / "run"):
        pass
    with lock_folders(tmp_path / "run", tmp_path / "shared"):
        assert {p.name for p in tmp_path.iterdir()} >= {"run", "shared"}
        with pytest.raises(UserError, match="shared: another bmnas process"):
            lock_folders(tmp_path / "shared").__enter__()


def test_one_folder_in_use_gives_back_the_others(tmp_path: Path) -> None:
    with (
        lock_folders(tmp_path / "b"),
        pytest.raises(UserError, match="b: another"),
        lock_folders(tmp_path / "a", tmp_path / "b"),
    ):
        pass
    with lock_folders(tmp_path / "a"):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as line, lock_folders(tmp_path / "file" / "run"):
        pass
    assert str(line.value).startswith(f"{tmp_path / 'file' / 'run'}: cannot be written: ")
    assert str(line.value).endswith("; choose another folder with --run")
    for option, folders in (("--run", ("file", "run")), ("--backbones", ("run", "file"))):
        with pytest.raises(UserError) as line, lock_folders(*(tmp_path / name for name in folders)):
            pass
        assert str(line.value).startswith(f"{tmp_path / 'file'}: cannot be written: File exists")
        assert str(line.value).endswith(option)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(UserError, match="cannot be written: Permission denied"),
        lock_folders(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(UserError, match="cannot be locked: No locks available"),
        lock_folders(tmp_path),
    ):
        pass


def test_metrics_are_merged_by_section(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_metrics() == metrics.RunMetrics()
    run.update_metrics(metrics.RunMetrics(seconds={"search": 1.0, "total": 1.0}, metric="accuracy"))
    run.update_metrics(metrics.RunMetrics(seconds={"train": 2.0, "total": 3.0}))
    assert json.loads(run.metrics.read_text()) == {
        "metric": "accuracy",
        "seconds": {"search": 1.0, "train": 2.0, "total": 3.0},
    }
    run.metrics.write_text("[]")
    with pytest.raises(UserError, match=r"metrics\.json: received \[\], expected a table"):
        run.read_metrics()


@pytest.mark.parametrize("content", ["[]", "{}", '{"task": 3}', '{"task": {"source": []}}'])
def test_a_configuration_without_a_task_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: received no task, expected what `bmnas"):
        Run(tmp_path).read_config()


def test_what_differs_is_named_to_the_value(tmp_path: Path) -> None:
    run = Run(tmp_path)
    config: dict[str, Any] = {
        "task": {"name": "a", "source": {}},
        "seed": 0,
        "search": {"cells": 2, "max_lr": 0.1},
    }
    run.config.write_text(json.dumps(config))
    keys = ("task", "seed", "search")
    require_same(run, config, keys)
    require_same(run, {**config, "other": 1}, keys)
    for wanted, message in [
        ({**config, "seed": 1}, "seed 0, received 1"),
        ({**config, "search": {"cells": 3, "max_lr": 0.1}}, r"search\.cells 2, received 3"),
        ({**config, "search": {"cells": 2}}, r"search\.max_lr 0\.1, received null"),
        ({**config, "task": {"name": "b", "source": {}}}, r'task\.name "a", received "b"'),
    ]:
        with pytest.raises(UserError, match=f"holds a run with {message}; resume it") as line:
            require_same(run, wanted, keys)
        assert "\n" not in str(line.value)


def test_removing_keeps_what_no_run_wrote(tmp_path: Path) -> None:
    run = Run(tmp_path)
    written = [
        run.config,
        run.genotype,
        run.history,
        run.checkpoint,
        run.metrics,
        run.network,
        run.training,
        run.train_checkpoint,
    ]
    (tmp_path / "bundle").mkdir()
    for path in [*written, tmp_path / "notes.txt", tmp_path / "bundle" / "mine.txt"]:
        path.write_text("{}")
    run.remove_training()
    assert not run.network.exists()
    assert run.genotype.exists()
    assert (tmp_path / "bundle" / "mine.txt").exists()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    run.remove_search()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_settings_alone_are_no_run_that_was_begun(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.backbones.mkdir()
    (run.backbones / ".lock").touch()
    run.config.write_text("{}")
    assert not run.begun()
    (run.backbones / "m0-checkpoint.pt").touch()
    assert run.begun()


def test_what_a_removed_training_measured_goes_with_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    searched = metrics.RunMetrics(search=metrics.SearchMetrics(validation=0.9))
    run.update_metrics(dataclasses.replace(searched, test=metrics.TrainedMetrics(score=0.8)))
    run.remove_training()
    assert run.read_metrics() == searched
