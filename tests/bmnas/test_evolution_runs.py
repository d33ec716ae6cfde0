"""A fusion tree in the commands search, show, train and compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import CONFIG, write_tiny_task

import bmnas
import bmnas.pipeline.search
import bmnas.pipeline.train
from bmnas.lab.sweep import read_sweep
from bmnas.machine.errors import UserError
from bmnas.pipeline.config import Config
from bmnas.report.metrics import LatencyMetrics
from bmnas.spaces.trees.fusion_tree import FusionTree
from bmnas.strategies.evolution import EvolutionConfig

SEARCH = ("search", "--task", "task.toml", "--preset", "tiny-preset.toml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with task.toml and tiny-preset.toml; latency takes too long here."""
    monkeypatch.setattr(bmnas.pipeline.train, "torch_latency", lambda *args: LatencyMetrics())
    write_tiny_task(tmp_path, modalities=3)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tree_goes_through_the_commands(here: Path) -> None:
    run = here / "runs" / "tiny"
    searched = bmnas_command(*SEARCH, "--strategy", "evolution", "--run", run, "--json")
    assert searched.status == 0, searched.err
    tree = FusionTree.load(run / "genotype.json")
    assert json.loads(searched.out)["genotype"] == tree.to_dict()
    assert tree.provenance["strategy"] == "evolution"
    config = json.loads((run / "config.json").read_text())
    assert config["evolution"] == CONFIG.to_dict()["evolution"]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["search"]["candidates"] == len(history)
    assert metrics["search"]["best_candidate"] == [r["candidate"] for r in history if r["best"]][-1]

    shown = bmnas_command("show", run / "genotype.json")
    assert "\ntree of " in shown.out
    assert bmnas_command("show", run).status == 0

    trained = bmnas_command("train", "--genotype", run / "genotype.json", "--epochs", 1)
    assert trained.status == 0, trained.err
    # What the search was made with is not forgotten.
    config = json.loads((run / "config.json").read_text())
    assert config["evolution"] == CONFIG.to_dict()["evolution"]
    compared = bmnas_command("compare", run)
    assert (compared.status, "evolution" in compared.out) == (0, True)


def test_a_search_with_other_settings_is_not_resumed(here: Path) -> None:
    words = (*SEARCH, "--strategy", "evolution", "--run", "run")
    assert bmnas_command(*words).status == 0
    before = (here / "run" / "history.jsonl").read_bytes()
    preset = here / "tiny-preset.toml"
    preset.write_text(preset.read_text().replace("generations = 2", "generations = 3"))
    message = one_line_error(bmnas_command(*words, "--resume"))
    assert "holds a run with evolution.generations 2, received 3" in message
    assert (here / "run" / "history.jsonl").read_bytes() == before


def test_settings_of_another_strategy_do_not_count(here: Path) -> None:
    words = (*SEARCH, "--run", "run")
    assert bmnas_command(*words).status == 0
    preset = here / "tiny-preset.toml"
    preset.write_text(preset.read_text().replace("generations = 2", "generations = 3"))
    assert bmnas_command(*words, "--resume").status == 0


def test_a_run_from_before_there_was_the_section_can_be_trained(here: Path) -> None:
    assert bmnas_command(*SEARCH, "--run", "run").status == 0
    path = here / "run" / "config.json"
    config = json.loads(path.read_text())
    del config["evolution"]
    path.write_text(json.dumps(config))
    words = ("train", "--genotype", "run", "--epochs", 1, "--preset", "digits-quick")
    assert bmnas_command(*words).status == 0
    assert json.loads(path.read_text())["train"]["batch_size"] == 64


def test_the_section_of_a_preset_is_checked() -> None:
    with pytest.raises(UserError) as line:
        Config.from_dict({"evolution": {"population": 5, "subsets": 2, "mutation": 2}}, "mine.toml")
    assert str(line.value) == ("mine.toml: evolution.mutation: received 2, expected from 0 to 1")
    with pytest.raises(UserError, match=r"evolution\.population: received 5, expected at least 6"):
        Config.from_dict({"evolution": {"population": 5, "subsets": 2}}, "mine.toml")
    with pytest.raises(UserError, match="evolution: received key 'generation', expected only pop"):
        Config.from_dict({"evolution": {"generation": 5}}, "mine.toml")
    with pytest.raises(UserError, match=r"^--mutation: received 2, expected from 0 to 1$"):
        Config().override("evolution", mutation=2)


def test_only_a_strategy_with_a_section_has_settings_of_its_own() -> None:
    config = Config().override("evolution", width=8)
    assert config.to_dict()["evolution"]["width"] == 8
    assert not {"bmnas", "random"} & set(config.to_dict())


def test_a_sweep_may_vary_them() -> None:
    (few, many) = read_sweep(None, {"strategy": "evolution"}, ["evolution.subsets=0,3"])
    assert (few.name, many.name) == ("subsets-0", "subsets-3")
    assert many.config(bmnas.load_task("digits")).strategies["evolution"] == EvolutionConfig(
        subsets=3
    )
    assert many.config(bmnas.load_task("digits")).preset == "default"
