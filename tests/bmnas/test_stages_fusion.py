"""A hand-made fusion as a user runs it: trained, compared, shown; known modules as genotypes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_tasks import CONFIG, tiny_task, write_tiny_task

import bmnas
import bmnas.pipeline.train
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import Runtime
from bmnas.report.metrics import LatencyMetrics
from bmnas.spaces.cells.genotype import Genotype
from bmnas.spaces.cells.known import FUSION_MODULES, late_pairs, module_genotype, random_pairs
from bmnas.spaces.fusions.space import NamedFusion

CPU = Runtime(torch.device("cpu"), compile=False)


@pytest.fixture(autouse=True)
def _no_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bmnas.pipeline.train, "torch_latency", lambda *args: LatencyMetrics())


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_task(tmp_path)
    write_tiny_preset(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


TASK = ("--task", "task.toml", "--preset", "tiny-preset.toml")
FROZEN = CONFIG.override("train", freeze_backbones=True)


def test_a_fusion_is_trained_shown_and_compared(here: Path) -> None:
    shared = ("--backbones", "backbones")
    trained = bmnas_command("train", "--fusion", "mtut", *TASK, *shared)
    assert trained.status == 0, trained
    assert trained.err == "Next: bmnas export --run runs/tiny-mtut\n"
    run = here / "runs" / "tiny-mtut"
    assert not (run / "genotype.json").exists()
    config = json.loads((run / "config.json").read_text())
    assert (config["strategy"], config["fusion"], config["seed"]) == ("none", "mtut", 0)
    network = bmnas.load_network(run / "network.safetensors")
    assert network.architecture == NamedFusion("mtut", 8, 4)
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["test"]["score"] <= 1
    assert metrics["parameters"]["fusion"] > 0
    shown = bmnas_command("show", run)
    assert shown.status == 0, shown
    assert "fusion: mtut" in shown.out
    # A module of the pool beside it, on the same backbones.
    made = bmnas_command("genotype", "sum", *TASK)
    assert made.status == 0, made
    path = "runs/tiny-sum-late/genotype.json"
    assert made.err == f"Next: bmnas train --genotype {path} --task task.toml\n"
    again = bmnas_command("train", "--genotype", path, *TASK, *shared)
    assert again.status == 0, again
    compared = bmnas_command("compare", "runs/tiny-mtut", "runs/tiny-sum-late", "--json")
    assert compared.status == 0, compared
    assert [row["name"] for row in json.loads(compared.out)["rows"]] == ["mtut", "sum, late pairs"]


def test_a_training_is_refused_resumed_or_overwritten(tmp_path: Path) -> None:
    task = tiny_task(modalities=3)

    def train(**options: object) -> bmnas.TrainResult:
        run = tmp_path / "run"
        return bmnas.train_fusion("gmu", task, run=run, runtime=CPU, **options)  # type: ignore

    first = train(config=FROZEN)
    weights = first.network.read_bytes()
    assert first.genotype is None
    with pytest.raises(UserError, match="there is a training already"):
        train(config=FROZEN)
    assert train(config=FROZEN, existing="resume").score == first.score
    with pytest.raises(UserError, match="seed 0, received 1"):
        train(config=FROZEN, existing="resume", seed=1)
    with pytest.raises(UserError, match=r"search\.channels 8, received 6"):
        train(config=FROZEN.override("search", channels=6), existing="resume")
    with pytest.raises(UserError, match='fusion "gmu", received "mmtm"'):
        bmnas.train_fusion("mmtm", task, run=tmp_path / "run", config=FROZEN, runtime=CPU)
    again = train(config=FROZEN, existing="overwrite")
    assert again.network.read_bytes() == weights
    # Another seed has other backbones; those in the run's own folder give way.
    train(config=FROZEN, existing="overwrite", seed=1)
    assert first.network.read_bytes() != weights


def test_a_fusion_has_a_folder_of_its_own(tmp_path: Path) -> None:
    genotype = module_genotype(
        "aoa", [("m0.1", "m1.1")], ("m0.1", "m1.1"), channels=8, length=4, pairs_name="late"
    )
    genotype.save(tmp_path / "genotype.json")
    with pytest.raises(UserError, match=r"belongs to a search, expected a folder for .* gmu"):
        bmnas.train_fusion("gmu", tiny_task(), run=tmp_path, config=FROZEN, runtime=CPU)


@pytest.mark.usefixtures("here")
def test_what_is_wrong_is_one_line() -> None:
    def error(*words: object) -> str:
        return one_line_error(bmnas_command(*words))

    assert error("train").startswith("received neither of --genotype and --fusion, expected one")
    both = ("train", "--genotype", "x", "--fusion", "gmu")
    assert error(*both).startswith("received both of --genotype and --fusion")
    assert "received fusion 'gnu'" in error("train", "--fusion", "gnu", *TASK)
    assert "did you mean 'gmu'?" in error("train", "--fusion", "gnu", *TASK)
    assert "received module 'aoe'" in error("genotype", "aoe", *TASK)
    assert error("genotype", "aoa", "--pairs", "later", *TASK).startswith("later: ")
    assert error("export").startswith("Missing option '--genotype'")
    assert error("export", "--run", "nowhere").startswith("nowhere: cannot be read")
    assert "no such file; `bmnas train` writes it" in error("export", "--run", ".")


@pytest.mark.usefixtures("here")
def test_pairs_of_a_found_genotype_keep_their_sizes() -> None:
    steps = FUSION_MODULES["mha2"]
    found = module_genotype(
        "mha2",
        [("m0.2", "m1.1"), ("m0.1", "cell1")],
        ("m0.1", "m0.2", "m1.1"),
        channels=12,
        length=9,
        pairs_name="x",
    )
    found.save("found.json")
    done = bmnas_command("genotype", "aoa", "--pairs", "found.json", "--run", "made", "--json")
    assert done.status == 0, done
    made = Genotype.load("made/genotype.json")
    assert json.loads(done.out)["genotype"] == made.to_dict()
    again = bmnas_command("genotype", "aoa", "--pairs", "found.json", "--run", "made")
    assert again.err == "Next: bmnas train --genotype made/genotype.json\n"
    assert (made.features, made.channels, made.length) == (found.features, 12, 9)
    assert [cell.inputs for cell in made.cells] == [("m0.2", "m1.1"), ("m0.1", "cell1")]
    assert {cell.steps for cell in made.cells} == {FUSION_MODULES["aoa"]} != {steps}
    assert made.provenance["fusion"] == "aoa, found pairs"
    refused = bmnas_command("genotype", "sum", "--pairs", "found.json", "--run", "made")
    assert "holds another genotype" in one_line_error(refused)


@pytest.mark.usefixtures("here")
def test_pairs_of_a_run_are_trained_on_its_backbones() -> None:
    assert bmnas_command("genotype", "sum", *TASK, "--run", "run").status == 0
    source = {"task": "examples.av_digits:load"}
    config = {"task": {"name": "tiny", "source": source}, "backbones": {"folder": None}}
    Path("run/config.json").write_text(json.dumps(config))
    done = bmnas_command("genotype", "aoa", "--pairs", "run")
    assert done.err == (
        "Next: bmnas train --genotype runs/run-aoa/genotype.json"
        " --task examples.av_digits:load --backbones run/backbones\n"
    )


def test_late_pairs_join_all_modalities() -> None:
    assert late_pairs(["a.1", "a.2", "b.1"]) == [("a.2", "b.1")]
    assert late_pairs(["a.1", "b.1", "b.2", "c.1", "d.3"]) == [
        ("a.1", "b.2"),
        ("c.1", "cell1"),
        ("d.3", "cell2"),
    ]
    with pytest.raises(UserError, match="expected two or more to fuse"):
        late_pairs(["a.1", "a.2"])


@pytest.mark.parametrize("seed", range(8))
def test_random_pairs_are_those_of_a_derivation(seed: int) -> None:
    features = [f"a.{n}" for n in range(Random(seed).randint(2, 5))]
    pairs = random_pairs(features, 4, seed)
    assert pairs == random_pairs(features, 4, seed)
    # A genotype checks the rules itself: nothing later, one of a pair new.
    module_genotype("sum", pairs, features, channels=4, length=4, pairs_name="random")
    nodes = [*features, *(f"cell{k + 1}" for k in range(4))]
    assert all(nodes.index(x) < nodes.index(y) for x, y in pairs)


def test_random_pairs_are_drawn_evenly() -> None:
    drawn = [random_pairs(["a.1", "a.2", "b.1"], 1, seed)[0] for seed in range(300)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(counts) == 3
    assert min(counts.values()) > 60
