"""MFAS through the stages and the command line: run folder, final network, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import CONFIG, tiny_task, write_tiny_task

import bmnas
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config, load_preset
from bmnas.pipeline.trained import load_network
from bmnas.report.comparison import comparison_rows
from bmnas.report.record import load_run
from bmnas.spaces.mfas.genotype import MFASGenotype
from bmnas.strategies.mfas import MFASConfig


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bmnas.strategies.surrogate.EPOCHS", 3)


def search(run: Path, **options: Any) -> Any:
    task = options.pop("task", tiny_task())
    config = options.pop("config", CONFIG)
    return bmnas.search(task, run=run, config=config, strategy="mfas", **options)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("searched") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bmnas.strategies.surrogate.EPOCHS", 3)
        search(run, task=tiny_task(kind="multilabel"))
    return run


def test_a_search_leaves_the_five_best_and_what_they_cost(searched: Path) -> None:
    # 3 x 3 x 2 candidates of one layer, then two of two layers.
    metrics = json.loads((searched / "metrics.json").read_text())
    assert metrics["metric"] == "weighted_f1"
    assert metrics["search"]["candidates"] == 18 + 2
    assert metrics["search"]["samples_seen"] == 20 * 32
    assert 0 < metrics["search"]["threshold"] < 1
    seconds = metrics["seconds"]
    assert seconds["candidates"] > 0
    names = ["genotype.json", *(f"genotype-{n}.json" for n in range(2, 6))]
    found = [MFASGenotype.load(searched / name) for name in names]
    assert len({genotype.layers for genotype in found}) == 5
    scores = [genotype.provenance["best_val"] for genotype in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == metrics["search"]["validation"]
    assert {genotype.inner_size for genotype in found} == {8}
    assert found[1].provenance["strategy"] == "mfas"
    assert json.loads((searched / "config.json").read_text())["mfas"]["levels"] == 2


def test_a_found_network_is_trained_with_all_its_heads(searched: Path, tmp_path: Path) -> None:
    config = CONFIG.override("train", freeze_backbones=True)
    result = bmnas.train(
        searched / "genotype-2.json",
        tiny_task(kind="multilabel"),
        run=tmp_path / "second",
        config=config,
    )
    genotype = MFASGenotype.load(searched / "genotype-2.json")
    assert result.genotype == genotype
    trained = load_network(result.network)
    assert trained.genotype == genotype
    # Two labels: the fusion layers' head, and one for each modality.
    heads = trained.network.fusion.classifier
    assert [head.out_features for head in heads] == [2, 2, 2]  # type: ignore[union-attr]
    recorded = json.loads((tmp_path / "second" / "config.json").read_text())
    assert recorded["mfas"]["levels"] == 2


def test_settings_of_the_strategy_are_part_of_a_run(searched: Path, tmp_path: Path) -> None:
    search(tmp_path / "run")
    other = CONFIG.override("mfas", kept=3)
    with pytest.raises(UserError, match=r"holds a run with mfas\.kept 2, received 3"):
        search(tmp_path / "run", config=other, existing="resume")
    # They are nothing to another strategy.
    bmnas.search(tiny_task(), run=tmp_path / "random", config=CONFIG, strategy="random")
    bmnas.search(
        tiny_task(), run=tmp_path / "random", config=other, strategy="random", existing="resume"
    )
    bmnas.search(tiny_task(), run=tmp_path / "run", config=CONFIG, existing="overwrite")
    assert not list((tmp_path / "run").glob("genotype-*.json"))


def test_runs_with_other_settings_of_the_strategy_are_other_rows(tmp_path: Path) -> None:
    other = CONFIG.override("mfas", kept=3)
    search(tmp_path / "a")
    search(tmp_path / "b", config=other)
    rows = comparison_rows([load_run(tmp_path / name) for name in ("a", "b")])
    assert [row.name for row in rows] == ["mfas (kept 2)", "mfas (kept 3)"]


def test_the_defaults_are_those_of_the_authors() -> None:
    assert Config().strategies["mfas"] == MFASConfig()
    s = MFASConfig()
    assert (s.sweeps, s.levels, s.kept, s.epochs, s.batch_size) == (3, 4, 15, 3, 20)
    assert (s.max_lr, s.min_lr, s.weight_decay, s.dropout) == (1e-3, 1e-6, 1e-4, 0.5)
    assert (s.inner_size, s.final_inner_size, s.scalars) == (16, 256, False)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[mfas]\nlevels = 0\ninner_size = 70000\nscalars = "no"\nkep = 3\n')
    with pytest.raises(UserError) as line:
        load_preset(str(path))
    assert "mfas.scalars: received 'no', expected true or false" in str(line.value)
    assert "mfas: received key 'kep', expected only sweeps, levels, kept" in str(line.value)
    path.write_text("[mfas]\nlevels = 0\ninner_size = 70000\n")
    with pytest.raises(UserError) as line:
        load_preset(str(path))
    assert "mfas.levels: received 0, expected from 1 to 200" in str(line.value)
    assert "mfas.inner_size: received 70000, expected from 1 to 65536" in str(line.value)


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_task(tmp_path, modalities=3)
    preset = write_tiny_preset(tmp_path)
    words = ("--task", "task.toml", "--preset", preset, "--run", "run")
    printed = bmnas_command("search", *words, "--strategy", "mfas")
    assert printed.status == 0, printed.err
    assert printed.out.startswith("MFAS: ")
    for command in (
        ("train", "--genotype", "run", "--freeze-backbones"),
        ("show", "run"),
        ("show", "run/genotype.json", "--out", "picture.svg"),
        ("compare", "run"),
    ):
        printed = bmnas_command(*command)
        assert printed.status == 0, printed.err
    genotype = json.loads((tmp_path / "run" / "genotype.json").read_text())
    genotype["layers"][0]["inputs"].pop()
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(genotype))
    for command in (("train", "--genotype", wrong), ("show", wrong)):
        message = one_line_error(bmnas_command(*command))
        assert message.startswith(f"{wrong}: layers[0].inputs: received ['m0.")
