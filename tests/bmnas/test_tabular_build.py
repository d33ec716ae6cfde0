from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import bmnas_command, one_line_error, write_tiny_preset
from tiny_problems import CPU
from tiny_tables import TABLE_CONFIG, build_tiny
from tiny_tasks import tiny_task, write_tiny_task

from bmnas.lab.table_build import Work, network_groups
from bmnas.lab.tables import Table, canonical, load
from bmnas.machine.errors import UserError
from bmnas.machine.runtime import seed_stage
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import unimodal_networks
from bmnas.spaces.cells.network import FusionNetwork
from bmnas.training.fit import fit
from bmnas.training.heads import head_for
from bmnas.training.metrics import evaluate
from bmnas.training.settings import Recipe

MEASURED = ("seconds", "latency_ms")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build_tiny(folder)
    return folder


def require_equal(one: Table, other: Table) -> None:
    assert one.about == other.about
    assert one.genotypes == other.genotypes
    for name in set(one.arrays) - set(MEASURED):
        np.testing.assert_array_equal(one.arrays[name], other.arrays[name], err_msg=name)


def test_a_table_holds_every_network_of_the_space(built: Path) -> None:
    table = load(built / "table.npz")
    assert [canonical(genotype) for genotype in table.genotypes] == list(table.space.distinct())
    assert table.seeds == 2
    for name in ("validation", "test"):
        scores = table.arrays[name]
        assert scores.min() >= 0
        assert scores.max() <= 1
        assert len(np.unique(scores)) > 5
        # Two seeds are two trainings.
        assert (scores[:, 0] != scores[:, 1]).any()
    assert (table.arrays["latency_ms"] > 0).all()
    assert (table.arrays["seconds"] > 0).all()
    assert table.about["task"]["name"] == "tiny"
    assert table.about["search"]["candidate_epochs"] == 1


def test_parameters_are_those_of_the_network_without_its_classifier(built: Path) -> None:
    table = load(built / "table.npz")
    channels = channels_of(built, table)
    for entry in list(table)[::9]:
        network = FusionNetwork(entry.genotype, channels, classes=4, dropout=0.0)
        weights = [p.numel() for p in network.parameters()]
        assert entry.parameters == sum(weights) - sum(
            p.numel() for p in network.classifier.parameters()
        )


def channels_of(folder: Path, table: Table) -> dict[str, int]:
    found = {}
    for name in table.features:
        modality, _, feature = name.partition(".")
        (path,) = (folder / "table" / "features").glob(f"{modality}-*/{feature}.npy")
        found[name] = np.load(path, mmap_mode="r").shape[-1]
    return found


def test_a_batch_trains_each_network_as_a_candidate_is_trained(tmp_path: Path) -> None:
    """Without dropout, and so without attention: a network alone draws masks in another way."""
    config = TABLE_CONFIG.override("search", dropout=0.0, candidate_epochs=3)
    context = RunContext(
        Run(tmp_path), tiny_task(), config, 0, backbones=tmp_path / "b", runtime=CPU
    )
    backbones = {name: found.backbone for name, found in unimodal_networks(context).items()}
    cache = context.features(backbones, ("train", "validation", "test"), config.search.length)
    work, search = Work.of(cache, config, tmp_path), config.search
    parts = work.samples
    own, cpu = head_for("multiclass"), torch.device("cpu")
    groups = network_groups(work.genotypes, range(1))
    assert sorted(n for group in groups for n in group.entries) == list(range(len(work.genotypes)))
    for group in groups[::3]:
        found = work.train(group)
        for place in (0, len(group.entries) - 1):
            genotype = work.genotypes[group.entries[place]]
            if any(step.op == "attention" for step in genotype.cells[0].steps):
                continue
            seed_stage(group.seed, f"tabular {group.entries[place]}")
            network = work.network(genotype)
            seed_stage(group.seed, "tabular batches")
            fit(
                network, network, parts["train"].select(network.features), own,
                Recipe(3, search.batch_size, search.max_lr, search.min_lr, search.weight_decay),
                stage="alone",
            )  # fmt: skip
            for part in ("validation", "test"):
                samples = parts[part].select(network.features)
                alone = evaluate(network, network, samples, own, cpu)
                # Training carries rounding on: on two threads they differ by 3e-4.
                assert found[f"{part}_loss"][place] == pytest.approx(alone.loss, rel=1e-3)
                assert found[part][place] == pytest.approx(alone.score, abs=1 / len(samples))


def test_a_build_goes_on_where_it_was_stopped_and_makes_the_same_table(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, trained = Work.train, []

    def stop_at(count: int) -> None:
        def stopped(self: Any, group: Any) -> Any:
            if len(trained) == count:
                raise KeyboardInterrupt
            trained.append(group.name)
            return train(self, group)

        monkeypatch.setattr(Work, "train", stopped)

    for count in (3, 4, 9):
        stop_at(count)
        with pytest.raises(KeyboardInterrupt):
            build_tiny(tmp_path)
        assert not (tmp_path / "table.npz").exists()
    stop_at(-1)
    require_equal(build_tiny(tmp_path), load(built / "table.npz"))
    assert len(trained) == len(set(trained)) == len(list((tmp_path / "table/parts").rglob("*.npz")))


def test_a_build_survives_being_killed(tmp_path: Path) -> None:
    write_tiny_task(tmp_path)
    preset = write_tiny_preset(tmp_path)
    space = ("--steps", "1", "--channels", "4", "--seeds", "1")
    words = ("tabular", "build", "--task", "task.toml", "--preset", preset.name, *space)
    killed = (*words, "--run", "killed", "--out", "table.npz")
    process = subprocess.Popen(
        [sys.executable, "-m", "bmnas", *killed, "--workers", "2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    parts = tmp_path / "killed" / "parts"
    while process.poll() is None and len(list(parts.glob("*/[!.]*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for_group(process.pid)
    left = {path: path.stat().st_mtime_ns for path in parts.glob("*/[!.]*")}
    assert left
    assert not (tmp_path / "table.npz").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert bmnas_command(*killed, "--workers", "1").status == 0
        once = (*words, "--workers", "1", "--run", "once", "--out", "once.npz")
        assert bmnas_command(*once).status == 0
    require_equal(load(tmp_path / "table.npz"), load(tmp_path / "once.npz"))
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert not list((tmp_path / "killed").rglob(".*.part"))


def wait_for_group(group: int) -> None:
    """Wait until no process of a group is left: workers end with who started them."""
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("a worker goes on without its parent")


def test_networks_of_other_settings_are_trained_anew(tmp_path: Path) -> None:
    tables = []
    for epochs in (1, 2, 1):
        config = TABLE_CONFIG.override("search", candidate_epochs=epochs)
        tables.append(build_tiny(tmp_path, config=config, seeds=1))
    first, other, again = tables
    assert (first.arrays["validation_loss"] != other.arrays["validation_loss"]).any()
    require_equal(first, again)
    np.testing.assert_array_equal(first.arrays["seconds"], again.arrays["seconds"])
    with pytest.raises(UserError, match="was trained for another task"):
        build_tiny(tmp_path, seed=1)


def test_seeds_may_be_added_later(built: Path, tmp_path: Path) -> None:
    two = load(built / "table.npz")
    shutil.copytree(built / "table", tmp_path / "table")
    parts = tmp_path / "table" / "parts"
    left = {path: path.stat().st_mtime_ns for path in parts.rglob("*.npz")}
    three = build_tiny(tmp_path, seeds=3)
    np.testing.assert_array_equal(three.arrays["test"][:, :2], two.arrays["test"])
    assert {path: path.stat().st_mtime_ns for path in left} == left


def test_a_damaged_part_is_named(built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "table", tmp_path / "table")
    part = next((tmp_path / "table" / "parts").rglob("*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{part.name}.*delete this file"):
        build_tiny(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "--seeds: received 0"),
        ({"workers": 0}, "--workers: received 0"),
        ({"seed": -1}, "--seed: received -1"),
        ({"config": TABLE_CONFIG.override("search", cells=3)}, "fewer Cells or steps"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(
    built: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_tiny(built, **changes)


def test_a_multilabel_task_has_a_table(tmp_path: Path) -> None:
    config = dataclasses.replace(TABLE_CONFIG)
    table = build_tiny(tmp_path, task=tiny_task(kind="multilabel"), config=config, seeds=1)
    assert table.about["metric"] == "weighted_f1"


def test_the_commands_build_show_and_replay(tmp_path: Path) -> None:
    write_tiny_task(tmp_path)
    preset, out = write_tiny_preset(tmp_path), tmp_path / "table.npz"
    space = ("--steps", 1, "--channels", 4, "--seeds", 1, "--workers", 1, "--out", out)
    words = ("tabular", "build", "--task", tmp_path / "task.toml", "--preset", preset,
             *space, "--run", tmp_path / "run")  # fmt: skip
    printed = bmnas_command(*words)
    assert printed.status == 0
    assert "networks" in printed.out
    assert f"Next: bmnas tabular replay {out}" in printed.err
    assert "exists; replace it with --overwrite" in one_line_error(bmnas_command(*words))
    assert bmnas_command(*words, "--overwrite").status == 0
    assert bmnas_command("tabular", "show", out).status == 0
    table = load(out)
    # Made to be passed on: what it is of, not where that lay.
    assert table.about["task"]["source"] == {"task": "task.toml"}
    assert str(tmp_path) not in str(table.about)
    table.genotypes[7].save(tmp_path / "genotype.json")
    shown = bmnas_command("tabular", "show", out, "--genotype", tmp_path / "genotype.json")
    assert canonical(table.genotypes[7]) in shown.out
    replayed = [
        bmnas_command("tabular", "replay", out, "--strategy", "local", "--json") for _ in range(2)
    ]
    assert replayed[0] == replayed[1]
    assert '"percentile"' in replayed[0].out
    error = one_line_error(bmnas_command("tabular", "replay", out, "--strategy", "guess"))
    assert "received strategy 'guess'" in error
    never = bmnas_command(*words, "--candidate-epochs", 0, "--overwrite")
    assert one_line_error(never) == "--candidate-epochs: received 0, expected at least 1"
    other = bmnas_command(*words, "--out", tmp_path / "table.txt")
    assert "expected one in .npz" in one_line_error(other)
