"""Modalities that a sample may lack: what is read, learned and told of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bmnas_serve.manifest import InputSpec
from media_files import TASK_WITH_GAPS, media_table, write_table
from task_files import arrays, modality, write_task
from tiny_tasks import CONFIG, tiny_task
from torch import Tensor

from bmnas.backbones import backbone_from_spec, build_backbone
from bmnas.features.missing import StandIns, present, repeated, silent
from bmnas.features.samples import RawInput, nothing_of
from bmnas.machine.errors import UserError
from bmnas.pipeline.multimodal import FUSION, MultimodalNetwork, channels_of
from bmnas.pipeline.search import search
from bmnas.pipeline.train import train, train_fusion
from bmnas.pipeline.trained import load_network
from bmnas.spaces.fusions.space import NamedFusion
from bmnas.spaces.registry import build_fusion
from bmnas.tasks import Modality, Task, check_task, load_task, notes
from bmnas.training.settings import Weighing


def lacking_task(kind: str = "multiclass") -> Task:
    """A task whose second modality a third of the samples lack."""
    task = tiny_task(kind=kind)
    first, second = task.modalities
    absent = np.random.default_rng(0).random(len(second.data)) < 1 / 3
    data = np.asarray(second.data).copy()
    data[absent] = np.nan
    return dataclasses.replace(
        task, modalities=(first, dataclasses.replace(second, data=data, absent=absent))
    )


def network_of(task: Task, **options: Any) -> MultimodalNetwork:
    torch.manual_seed(0)
    backbones = {
        m.name: build_backbone(m, classes=task.outputs, rows=np.nan_to_num(m.data[:]))
        for m in task.modalities
    }
    fusion = build_fusion(
        NamedFusion("concat", 8, 4), channels_of(backbones), classes=task.outputs, dropout=0.0
    )
    return MultimodalNetwork(backbones, fusion, **options)


def inputs_of(task: Task, network: MultimodalNetwork) -> list[Tensor]:
    samples = torch.arange(len(task.part))
    return [
        RawInput(m, network.backbone(m.name), samples.numpy()).batch(samples)
        for m in task.modalities
    ]


def test_what_a_sample_lacks_says_nothing_and_its_stand_in_is_learned() -> None:
    task = lacking_task()
    network = network_of(task).eval()
    given, lacking = inputs_of(task, network), task.modalities[1].absent
    assert lacking is not None
    found, _ = network.read(*given)
    own = [x for name, x in found.items() if name.startswith("m1.")]
    assert all(np.array_equal(~present(x).numpy(), lacking) for x in own)
    before = network(*given)
    assert torch.isfinite(before).all()
    # What stands in the rows of an array does not count.
    other = np.where(lacking[:, None, None], 7, task.modalities[1].data).astype(np.float32)
    changed = dataclasses.replace(task.modalities[1], data=other)
    again = inputs_of(dataclasses.replace(task, modalities=(task.modalities[0], changed)), network)
    torch.testing.assert_close(again, given)
    network.train()
    logits = network(*given)
    assert isinstance(logits, Tensor)
    logits.square().sum().backward()
    vectors = [p for name, p in network.named_parameters() if "stand_ins" in name]
    assert vectors
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vectors)
    with torch.no_grad():
        for vector in vectors:
            vector.fill_(3.0)
    network.load_state_dict({**network.state_dict()})
    network.eval()
    moved = (network(*given) - before).abs().amax(1) > 1e-6
    assert moved[torch.from_numpy(lacking)].all()


def test_dropout_leaves_out_what_may_be_lacking_and_never_all() -> None:
    torch.manual_seed(0)
    ones = [torch.ones(4000, 4, 3) for _ in range(3)]
    channels = dict.fromkeys(("a.1", "b.1", "c.1"), 3)
    stand_ins = StandIns(["a.1", "b.1", "c.1"], channels, ["a", "b", "c"], 0.5).train()
    given = stand_ins.given(ones)
    assert given.any(1).all()
    assert given.float().mean(0) == pytest.approx([0.5 + 0.125] * 3, abs=0.03)
    needed = StandIns(["a.1", "b.1", "c.1"], channels, ["b"], 0.5).train()
    assert needed.given(ones).float().mean(0) == pytest.approx([1, 0.5, 1], abs=0.03)
    assert torch.equal(needed(ones)[0], ones[0])
    assert stand_ins.eval().given(ones).all()
    lacking = [torch.zeros(4, 4, 3), *(x[:4] for x in ones[1:])]
    assert stand_ins.train().given(lacking)[:, 0].sum() == 0


def test_batches_are_filled_with_what_is_given() -> None:
    x = torch.arange(6.0).view(6, 1)
    given = torch.tensor([False, True, False, False, True, False])
    filled = repeated(x, given).flatten()
    assert filled[given].tolist() == [1, 4]
    assert set(filled.tolist()) == {1, 4}
    assert torch.equal(repeated(x, torch.zeros(6, dtype=torch.bool)), x)
    assert silent(x, given).flatten().tolist() == [0, 1, 0, 0, 4, 0]
    assert silent(x, None) is x


def test_a_head_whose_modality_is_lacking_says_what_the_others_say() -> None:
    task = lacking_task()
    weighing = Weighing({FUSION: 1.0, "m0": 1.0, "m1": 1.0})
    network = network_of(task, weighing=weighing).eval()
    members = network.members(*inputs_of(task, network))
    lacking = torch.from_numpy(np.asarray(task.modalities[1].absent))
    torch.testing.assert_close(members[lacking, 2], members[lacking, :2].mean(1))
    assert not torch.isclose(members[~lacking, 2], members[~lacking, :2].mean(1)).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_a_task_with_gaps_is_trained_and_loaded(tmp_path: Path, frozen: bool) -> None:
    task = lacking_task()
    check_task(task)
    told = [*notes(task, "validation")]
    assert any("modality m1: " in line and "samples lack it: its own" in line for line in told)
    config = CONFIG.override("train", freeze_backbones=frozen, unimodal_logits=True)
    result = train_fusion("concat", task, run=tmp_path, config=config)
    assert set(result.metrics["test"]["without"]) == {"m1"}
    network = load_network(result.network).network
    assert network.optional == ("m1",)
    found = network(*inputs_of(task, network))
    assert torch.isfinite(found).all()
    # Without the modality, all samples are as if it were lacking.
    first, second = inputs_of(task, network)
    none = network(first, torch.zeros_like(second))
    lacking = torch.from_numpy(np.asarray(task.modalities[1].absent))
    torch.testing.assert_close(none[lacking], found[lacking])


def test_a_search_judges_the_whole_where_validation_lacks_a_modality(tmp_path: Path) -> None:
    task = lacking_task()
    config = CONFIG.override("train", unimodal_logits=True).override("search", rerank=1)
    found = search(task, run=tmp_path, config=config)
    trained = train(found.run / "genotype.json", task)
    assert set(trained.metrics["test"]["without"]) == {"m1"}


def test_backbones_know_that_they_may_be_asked_for_nothing() -> None:
    texts = np.array(["a cat", "", "two dogs"])
    text = Modality("t", "text", texts, absent=texts == "")
    backbone = build_backbone(text, classes=2, rows=texts[[0, 2]])
    x = torch.from_numpy(backbone.encode(texts))
    given = backbone.given(x)
    assert given is not None
    assert given.tolist() == [True, False, True]
    again = backbone_from_spec(json.loads(json.dumps(backbone.spec())))
    assert again.absent is not None
    needed = build_backbone(Modality("t", "text", texts), classes=2, rows=texts[[0, 2]])
    assert needed.given(x) is None
    assert "optional" not in needed.spec()
    assert nothing_of(texts).tolist() == ["", "", ""]


def test_rows_of_arrays_that_hold_nothing(tmp_path: Path) -> None:
    held = arrays()
    held["a"][4] = np.nan
    held["a"][9] = 0
    path = write_task(tmp_path, modalities=modality("a", missing="true"), held=held)
    task = load_task(path)
    check_task(task)
    assert np.flatnonzero(task.modalities[0].absent).tolist() == [4, 9]  # type: ignore[arg-type]
    assert task.having(task.modalities[0], "train").tolist() == [0, 3, 6, *range(12, 30, 3)]
    held["a"][3, 1] = np.nan  # a row that is there, with a gap
    with pytest.raises(UserError, match="NaN or infinite value in row 3"):
        check_task(
            load_task(write_task(tmp_path, modalities=modality("a", missing="true"), held=held))
        )
    held["a"][:] = 0
    with pytest.raises(UserError, match="modality a: 0 train samples have it, expected at least 2"):
        check_task(
            load_task(write_task(tmp_path, modalities=modality("a", missing="true"), held=held))
        )


def test_kinds_that_need_every_modality_say_so() -> None:
    task = dataclasses.replace(lacking_task(), kind="answers")
    with pytest.raises(UserError, match="missing = true for m1, expected none: answers needs"):
        check_task(task)


def test_empty_cells_of_a_table(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    rows = media_table(tmp_path, 24)
    rows[3]["photo"], rows[9]["photo"] = "", "NA"
    rows[5]["title"] = "  "
    rows[7]["age"] = rows[7]["weight"] = ""
    write_table(tmp_path / "pets.csv", rows)
    path = tmp_path / "task.toml"
    path.write_text(TASK_WITH_GAPS + "missing = true\n", "utf-8")
    task = load_task(path)
    check_task(task)
    lacking = {m.name: np.flatnonzero(m.lacking(np.arange(24))).tolist() for m in task.modalities}
    assert lacking == {"photo": [3, 9], "title": [5], "facts": [7]}
    assert not task.remarks  # empty cells are no file that parts share
    facts = task.modality("facts").data
    assert facts.shape == (24, 2 + 1 + 1)  # a gap of age, and whether there is anything
    assert facts[7].tolist() == [0, 0, 0, 0]
    assert np.asarray(facts)[np.arange(24) != 7, -1].min() == 1
    assert np.asarray(task.modality("photo").data[np.array([0])]).max() == 0
    path.write_text(TASK_WITH_GAPS.replace("missing = true\n", ""), "utf-8")
    with pytest.raises(UserError, match=r"rows without a path \(1\): 3: .* missing = true"):
        load_task(path)


def test_the_manifest_says_what_stands_for_an_input() -> None:
    zeros = InputSpec("a", (-1, 2, 3), "uint8", preprocessing={"missing": 0})
    assert zeros.optional
    assert zeros.stand_ins(2).tolist() == np.zeros((2, 2, 3)).tolist()
    tokens = InputSpec("t", (-1, 3), "int64", preprocessing={"missing": [101, 102, 0]})
    assert tokens.stand_ins(2).tolist() == [[101, 102, 0]] * 2
    assert not InputSpec("a", (-1, 2), "float32").optional
