from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import write_tiny_task

from bmnas.spaces.cells.genotype import Genotype


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with task.toml and tiny-preset.toml."""
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TINY = ("search", "--task", "task.toml", "--preset", "tiny-preset.toml")


def test_the_papers_recipe_leaves_out_what_the_paper_does_not_have(here: Path) -> None:
    preset = here / "tiny-preset.toml"
    text = preset.read_text()
    preset.write_text(
        text.replace("rerank = 0", "rerank = 2").replace(
            "unimodal_logits = false", "unimodal_logits = true"
        )
    )
    for recipe, expected in (("default", (2, True)), ("paper", (0, False))):
        assert bmnas_command(*TINY, "--recipe", recipe, "--run", recipe).status == 0
        config = json.loads((here / recipe / "config.json").read_text())
        assert (config["search"]["rerank"], config["train"]["unimodal_logits"]) == expected
    for words, message in (
        (("--recipe", "papers"), "'papers' is not one of 'default', 'paper'"),
        (("--recipe", "paper", "--strategy", "random"), "received --strategy random too"),
        (("--recipe", "paper", "--rerank", "3"), "received --rerank 3 too"),
    ):
        assert message in one_line_error(bmnas_command(*TINY, *words, "--run", "other"))


def test_search_alone_searches_the_embedded_task_and_is_quiet(tmp_path: Path) -> None:
    preset = write_tiny_preset(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "bmnas", "search", "--preset", preset.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Next: bmnas train --genotype runs/digits/genotype.json\n"
    assert re.search(r"search weights +[\d.]+", done.stdout)
    assert not set("\x1b\r") & set(done.stdout + done.stderr)
    genotype = Genotype.load(tmp_path / "runs" / "digits" / "genotype.json")
    assert genotype.provenance["task"] == "digits"
    assert "Cell 1" in done.stdout or "cell1" in done.stdout
    assert "accuracy" in done.stdout
    config = json.loads((tmp_path / "runs" / "digits" / "config.json").read_text())
    assert config["preset"] == "tiny-preset.toml"
    assert config["unimodal"]["epochs"] == 1


def test_options_go_before_the_preset_and_json_is_one_object(here: Path) -> None:
    words = (*TINY, "--run", "a run", "--cells", "1", "--steps", "1", "--json")
    printed = bmnas_command(*words, "--strategy", "random", "--candidates", "2", "--seed", "7")
    assert (printed.status, printed.err) == (0, "")
    found = json.loads(printed.out)
    assert set(found) == {"run", "genotype", "metrics"}
    assert found["genotype"] == json.loads((here / "a run" / "genotype.json").read_text())
    assert (found["genotype"]["provenance"]["seed"], len(found["genotype"]["cells"])) == (7, 1)
    assert found["metrics"]["search"]["candidates"] == 2
    config = json.loads((here / "a run" / "config.json").read_text())
    assert config["search"]["steps"] == 1
    # The answer comes again without a search; the hint quotes what a shell would split.
    again = bmnas_command(*words[:-1], "--resume", "--strategy", "random", "--candidates", "2",
                          "--seed", "7")  # fmt: skip
    assert "candidates" in again.out
    assert again.err == "Next: bmnas train --genotype 'a run/genotype.json'\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "digit"], "received task 'digit', expected digits, refshapes"),
        (["--task", "nothing.toml"], "nothing.toml: cannot be read: No such file"),
        (["--preset", "huge"], "received preset 'huge', expected one of av-digits, digits"),
        (["--preset", "no.toml"], "no.toml: cannot be read: No such file or directory"),
        (["--strategy", "grid"], "received strategy 'grid', expected one of bmnas, random"),
        (["--device", "tpu"], "received device 'tpu', expected one of those here: auto, cpu"),
        (["--cells", "0"], "--cells: received 0, expected at least 1"),
        (["--epochs", "-1"], "--epochs: received -1, expected at least 1"),
        (["--batch-size", "1"], "--batch-size: received 1, expected at least 2"),
        (["--channels", "0", "--length", "0"], "channels: received 0, expected from 1 to 65536; "),
        (["--strategy", "random", "--candidates", "0"], "candidates: received 0"),
        (["--candidates", "3"], "strategy bmnas: received --candidates, which it does not read"),
        (["--space", "trees"], "received space trees, which has no supernet"),
        (["--seed", "-1"], "--seed: received -1, expected 0 or more"),
        (["--seeds", "0"], "--seeds: received 0, expected 1 or more"),
        (["--seeds", "2", "--strategy", "random"], "--seeds: received 2 with strategy random, exp"),
        (
            ["--strategy", "mfas", "--batch-size", "9"],
            "strategy mfas: received --batch-size, which",
        ),
        (["--resume", "--overwrite"], "received --resume and --overwrite, expected at most one"),
        (["--data", "."], "task digits carries its own data: leave --data out"),
        (["--run", "file"], "file: cannot be written: File exists; choose another"),
        (["--run", "file/run"], "file/run: cannot be written: Not a directory; choose another"),
        (["--backbones", "file"], "file: cannot be written: File exists; choose another"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert message in one_line_error(bmnas_command("search", *words))
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    # At most the lock of the run folder, where the other folder is what is wrong.
    assert left <= {"file", "runs", "runs/digits", "runs/digits/.lock"}
    assert (tmp_path / "file").read_text() == "mine"


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes: writing more fails as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_wherever_it_happens_and_the_search_goes_on(here: Path) -> None:
    words = (*TINY, "--epochs", "2", "--run")
    assert bmnas_command(*words, "whole").status == 0
    sizes = [p.stat().st_size for p in (here / "whole").rglob("*") if p.is_file()]
    stopped_at = set()
    # From the first and smallest file to almost the largest, each run going on with the last.
    for limit in sorted({100, 1000, 10_000, max(sizes) // 4, max(sizes) // 2, max(sizes) - 1}):
        with full_disk(limit):
            message = one_line_error(bmnas_command(*words, "full", "--resume"), status=1)
        assert message.endswith(": File too large")
        stopped_at.add(Path(message.partition(":")[0]).name.partition("-")[0])
        assert not list((here / "full").rglob(".*.part"))
        assert not (here / "full" / "genotype.json").exists()
    assert len(stopped_at) >= 2
    assert bmnas_command(*words, "full", "--resume").status == 0
    for name in ("history.jsonl", "genotype.json"):
        whole, full = ((here / run / name).read_text() for run in ("whole", "full"))
        assert full == whole.replace('"run": "whole"', '"run": "full"')


def test_a_run_of_another_task_seed_or_preset_is_refused(here: Path) -> None:
    assert bmnas_command(*TINY, "--run", "run").status == 0
    before = {p: p.read_bytes() for p in (here / "run").rglob("*") if p.is_file()}
    for words, message in [
        (TINY, "run: holds a run of task tiny already; go on with --resume, start anew"),
        ((*TINY, "--resume", "--seed", "3"), "run: holds a run with seed 0, received 3"),
        ((*TINY, "--resume", "--cells", "3"), "holds a run with search.cells 2, received 3"),
        ((*TINY, "--resume", "--strategy", "random"), 'strategy "bmnas", received "random"'),
        (("search", "--resume"), 'holds a run with task.name "tiny", received "digits"'),
        ((*TINY[:3], "--resume"), "holds a run with search."),
    ]:
        assert message in one_line_error(bmnas_command(*words, "--run", "run"))
    assert {p: p.read_bytes() for p in (here / "run").rglob("*") if p.is_file()} == before


def test_a_folder_in_use_is_one_line(here: Path) -> None:
    from bmnas.machine.distributed import lock_folders

    with lock_folders(here / "run"):
        message = one_line_error(bmnas_command(*TINY, "--run", "run"))
    assert message.startswith("run: another bmnas process is at work there; wait for it")
    assert [p.name for p in (here / "run").iterdir()] == [".lock"]


def test_a_modality_that_is_not_read_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bmnas_command(*TINY).status == 0
    monkeypatch.setattr(Genotype, "live_features", lambda _: ("m1.1", "m1.2"))
    again = bmnas_command(*TINY, "--resume")
    assert again.err.startswith("note: the network found reads nothing of m0\nNext: ")


def test_several_seeds_are_one_run(here: Path) -> None:
    words = (*TINY, "--run", "run", "--seed", "5", "--seeds", "2")
    printed = bmnas_command(*words, "--json")
    assert printed.status == 0, printed.err
    found = json.loads(printed.out)
    over = found["metrics"]["search"]["seeds"]
    assert list(over["validation"]) == ["5", "6"]
    scores = list(over["validation"].values())
    assert over["mean"] == pytest.approx(sum(scores) / 2)
    assert over["deviation"] ** 2 == pytest.approx(sum((s - over["mean"]) ** 2 for s in scores))
    assert over["validation"][str(over["best"])] == max(scores)
    assert found["genotype"]["provenance"]["seed"] == over["best"]
    each = {p.stem: Genotype.load(p) for p in (here / "run" / "genotypes").glob("*.json")}
    assert {name: g.provenance["seed"] for name, g in each.items()} == {"5": 5, "6": 6}
    assert each[str(over["best"])].to_dict() == found["genotype"]
    shown = bmnas_command("show", "run")
    assert re.search(r"seeds deviation +0\.\d+", shown.out)
    assert bmnas_command("show", "run", "--out", "run.svg").status == 0
    assert bmnas_command(*words, "--resume").status == 0
    message = one_line_error(bmnas_command(*words[:-1], "3", "--resume"))
    assert "run: holds a run with seeds 2, received 3" in message
    message = one_line_error(bmnas_command(*words[:-2], "--resume"))
    assert "run: holds a run with seeds 2, received 1" in message
    # Beside a run of one seed it is a row of its own.
    one = (*TINY, "--run", "one", "--seed", "5", "--backbones", "run/backbones")
    assert bmnas_command(*one).status == 0
    rows = json.loads(bmnas_command("compare", "run", "one", "--json").out)["rows"]
    assert [row["name"] for row in rows] == ["bmnas (seeds 2)", "bmnas (seeds 1)"]
    assert bmnas_command(*one[:3], *TINY[3:], "--run", "run", "--overwrite").status == 0
    assert not (here / "run" / "genotypes").exists()


def test_a_budget_and_a_preset_contradict() -> None:
    printed = bmnas_command("search", "--preset", "digits-quick", "--budget", "1")
    message = one_line_error(printed, status=2)
    assert message == (
        "--budget: received preset digits-quick too, whose trainings have their lengths; leave "
        "out --budget, or say --preset default"
    )


def test_limits_are_for_what_is_served(here: Path) -> None:
    limited = (*TINY, "--strategy", "random", "--max-parameters")
    assert bmnas_command(*limited, "1e9").status == 0
    metrics = json.loads((here / "runs" / "tiny" / "metrics.json").read_text())
    assert metrics["search"]["target"]["max_parameters"] == 1e9
    shown = bmnas_command("show", "runs/tiny").out
    assert re.search(r"target max parameters +1000000000", shown.replace(",", ""))
    refused = bmnas_command(*limited, "1e3", "--run", "runs/tiny", "--overwrite")
    assert "--max-parameters 1000: of 300 networks" in one_line_error(refused)
    zero = bmnas_command(*limited, "0", "--run", "other")
    assert "--max-parameters: received 0, expected more than 0" in one_line_error(zero)
    assert bmnas_command(*TINY, "--target", "tensorrt").status == 2
