from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_run
from tiny_tasks import CONFIG, changed, tiny_task

import bmnas
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.search import write_pictures
from bmnas.report.record import load_run
from bmnas.spaces.cells.genotype import Cell, Genotype, Step


def search(run: Path, **options: Any) -> Any:
    return bmnas.search(options.pop("task", tiny_task()), run=run, config=CONFIG, **options)


@pytest.mark.usefixtures("pictures")
def test_a_search_leaves_a_whole_run_folder(tmp_path: Path) -> None:
    result = search(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        ".lock",
        "architecture.svg",
        "backbones",
        "checkpoint.pt",
        "config.json",
        "genotype.json",
        "history.jsonl",
        "history.svg",
        "metrics.json",
    }
    assert Genotype.load(tmp_path / "run" / "genotype.json") == result.genotype
    record = load_run(tmp_path / "run")
    assert [epoch.epoch for epoch in record.history] == [1, 2]
    assert record.metrics.search.samples_seen == 2 * (32 + 32)
    assert set(result.metrics["unimodal"]) == {"m0", "m1"}


def test_the_best_epoch_is_the_earliest_with_the_highest_score(tmp_path: Path) -> None:
    result = search(tmp_path / "run")
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    scores = [line["validation_score"] for line in history]
    best = scores.index(max(scores))
    assert result.metrics["search"]["best_epoch"] == best + 1
    assert result.genotype.to_dict()["cells"] == history[best]["cells"]
    assert result.genotype.provenance["best_val"] == scores[best]


def test_same_seed_same_history(tmp_path: Path) -> None:
    for name in ("a", "b"):
        search(tmp_path / name, seed=3)
    search(tmp_path / "c", seed=4)
    a, b, c = ((tmp_path / name / "history.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_test_data_is_not_read(tmp_path: Path) -> None:
    task = tiny_task()
    test = task.samples("test")
    for modality in task.modalities:
        modality.data[test] = float("nan")
    task.labels[test] = 99
    search(tmp_path / "spoiled", task=task)
    search(tmp_path / "whole")
    spoiled, whole = (
        (tmp_path / name / "history.jsonl").read_bytes() for name in ("spoiled", "whole")
    )
    assert spoiled == whole


def test_an_existing_run_is_refused_resumed_or_overwritten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    search(run)
    before = (run / "genotype.json").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"run: holds a run of task tiny already; go on with --res"):
        search(run)
    search(run, existing="resume")
    assert (run / "genotype.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds a run with seed 0, received 1"):
        search(run, existing="resume", seed=1)
    search(run, existing="overwrite", seed=0)
    assert (run / "genotype.json").stat().st_mtime_ns > before


def test_a_run_of_another_task_is_named(tmp_path: Path) -> None:
    search(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds a run with task\.name"):
        search(tmp_path / "run", task=bmnas.load_task("digits"), existing="resume")


def test_runs_may_share_backbones_and_features(tmp_path: Path) -> None:
    search(tmp_path / "a", backbones=tmp_path / "shared")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "shared").rglob("*.npy")}
    search(tmp_path / "b", backbones=tmp_path / "shared", strategy="random")
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "shared").rglob("*.npy")}
    assert before == after
    assert len(before) == 6
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["backbones"]["folder"] == str((tmp_path / "shared").resolve())
    with pytest.raises(
        UserError, match=r"m0.safetensors: was trained for another task, other data"
    ):
        search(tmp_path / "c", backbones=tmp_path / "shared", seed=1)


def test_random_search_tries_its_candidates(tmp_path: Path) -> None:
    result = search(tmp_path / "run", strategy="random")
    assert result.metrics["search"]["candidates"] == 3
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 3
    again = search(tmp_path / "again", strategy="random")
    assert again.genotype == result.genotype


def test_a_multilabel_search_chooses_a_threshold_on_validation(tmp_path: Path) -> None:
    result = search(tmp_path / "run", task=tiny_task(kind="multilabel"))
    assert result.metrics["metric"] == "weighted_f1"
    assert 0 < result.metrics["search"]["threshold"] < 1


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_a_threshold_is_a_setting_of_a_multilabel_search_alone(tmp_path: Path, kind: str) -> None:
    task = tiny_task(kind=kind)
    bmnas.search(task, run=tmp_path, config=CONFIG)
    (tmp_path / "genotype.json").unlink()
    config = CONFIG.override("train", threshold=0.3)
    if kind == "multilabel":
        with pytest.raises(UserError, match=r"checkpoint\.pt: belongs to other settings"):
            bmnas.search(task, run=tmp_path, config=config, existing="resume")
    else:
        bmnas.search(task, run=tmp_path, config=config, existing="resume")


def test_three_modalities(tmp_path: Path) -> None:
    result = search(tmp_path / "run", task=tiny_task(modalities=3))
    assert {name.partition(".")[0] for name in result.genotype.features} == {"m0", "m1", "m2"}


def test_unknown_strategy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="received strategy 'grid', expected one of bmnas, random"):
        search(tmp_path / "run", strategy="grid")
    assert not (tmp_path / "run").exists()


def test_a_diverging_search_says_so(tmp_path: Path) -> None:
    config = CONFIG.override("unimodal", max_lr=1e30)
    with pytest.raises(UserError, match="backbone m0: the loss is nan in epoch 1: training diverg"):
        bmnas.search(tiny_task(), run=tmp_path / "run", config=config)
    assert not (tmp_path / "run" / "genotype.json").exists()


@pytest.mark.parametrize("damage", ["empty", "text", "cut"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: str) -> None:
    run = tmp_path / "run"
    search(run)
    (run / "genotype.json").unlink()
    whole = (run / "checkpoint.pt").read_bytes()
    content = {"empty": b"", "text": b"hello", "cut": whole[: len(whole) // 2]}[damage]
    (run / "checkpoint.pt").write_bytes(content)
    with pytest.raises(
        UserError, match=r"checkpoint.pt: damaged checkpoint .* --overwrite"
    ) as line:
        search(run, existing="resume")
    assert "\n" not in str(line.value)


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shared = tmp_path / "shared"
    search(run, backbones=shared)
    (run / "genotype.json").unlink()
    for path in shared.glob("*.safetensors"):
        path.unlink()
    other = changed(tiny_task(), 0, data=tiny_task().modalities[0].data + 1)
    with pytest.raises(UserError, match="belongs to other settings, backbones or data"):
        search(run, task=other, backbones=shared, existing="resume")


@pytest.mark.parametrize("victim", ["manifest.json", "1.npy"])
def test_a_damaged_cache_is_one_line(tmp_path: Path, victim: str) -> None:
    search(tmp_path / "run")
    for path in (tmp_path / "run" / "backbones" / "features").rglob(victim):
        path.write_bytes(path.read_bytes()[:40])
    (tmp_path / "run" / "genotype.json").unlink()
    with pytest.raises(UserError, match=f"{victim}: ") as line:
        search(tmp_path / "run", existing="resume")
    assert "\n" not in str(line.value)


def test_texts_without_a_known_word_are_told(tmp_path: Path) -> None:
    import numpy as np

    task = tiny_task()
    words = np.where(np.arange(96) % 2 == 0, "red circle", "blue square")
    words[task.samples("validation")[:5]] = "unheard"
    task = changed(task, 0, type="text", data=words, length=1)

    class Notes(Progress):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    told = Notes()
    search(tmp_path / "run", task=task, progress=told)
    assert told.notes == [
        "m0: 59 of 64 texts are cut after 1 tokens: length of the modality says how many are read",
        "m0: 5 of 64 texts have no known word",
    ]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    from bmnas.machine.distributed import lock_folders

    with lock_folders(tmp_path / "run"), pytest.raises(UserError, match="another bmnas process"):
        search(tmp_path / "run")


def test_a_network_too_large_for_a_picture_is_told_and_kept(tmp_path: Path) -> None:
    class Listening(Progress):
        notes: list[str]

        def note(self, text: str) -> None:
            self.notes.append(text)

    listening = Listening()
    listening.notes = []
    features = tuple(f"m{m}.1" for m in range(301))
    steps = (Step("sum", ("x", "y")),)
    genotype = Genotype(features, 8, 4, (Cell(("m0.1", "m1.1"), steps),))
    write_pictures(Run(write_run(tmp_path / "run")), genotype, listening)
    (note,) = listening.notes
    assert note.startswith("no picture: drawing: received 306 nodes, expected at most 300")


def test_seconds_by_stage_make_up_the_search(tmp_path: Path) -> None:
    config = CONFIG.override("search", rerank=1)
    metrics = bmnas.search(tiny_task(), run=tmp_path / "run", config=config).metrics
    seconds = metrics["seconds"]
    algorithm = ("search_weights", "search_architecture", "validation")
    stages = (*algorithm, "single_path", "screening", "rerank")
    assert all(seconds[stage] > 0 for stage in (*stages, "backbones", "extraction", "other"))
    assert seconds["compile"] == 0
    assert sum(seconds[s] for s in (*stages, "other")) == pytest.approx(seconds["search"])
    assert metrics["processor_seconds"]["search"] > 0
    parts = (seconds["backbones"], seconds["extraction"], seconds["search"])
    assert sum(parts) == pytest.approx(seconds["total"])
    speeds = metrics["samples_per_second"]
    # Screening sees samples once and judges them many times.
    assert set(speeds) == {*stages, "extraction"} - {"screening"}
    # Two epochs of 32 samples in whole batches; two candidates of one epoch.
    assert speeds["search_weights"] * seconds["search_weights"] == pytest.approx(64)
    assert speeds["rerank"] * seconds["rerank"] == pytest.approx(64)
    assert speeds["single_path"] * seconds["single_path"] == pytest.approx(32)
    assert speeds["extraction"] * seconds["extraction"] == pytest.approx(64)
    assert metrics["peak_memory"]["search"]["resident_bytes"] > 1 << 20
    for name in ("history.jsonl", "rerank.jsonl"):
        assert "seconds" not in (tmp_path / "run" / name).read_text()


def test_the_seconds_before_a_stop_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run")
    save = Checkpoint.save

    def stop(checkpoint: Checkpoint, parts: Any, records: list[Any]) -> None:
        save(checkpoint, parts, records)
        if checkpoint._path == run.checkpoint:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        search(run.path)
    monkeypatch.undo()
    content = torch.load(run.checkpoint, weights_only=True)
    content["seconds"] += 1100
    content["costs"]["seconds"]["search_weights"] += 1000
    content["costs"]["seconds"]["validation"] += 100
    torch.save(content, run.checkpoint)
    seconds = search(run.path, existing="resume").metrics["seconds"]
    assert 1000 < seconds["search_weights"] < 1050
    assert 100 < seconds["validation"] < 150
    assert 0 < seconds["search_architecture"] < 50
    assert 0 < seconds["other"] < 50
    assert seconds["search"] > 1100
