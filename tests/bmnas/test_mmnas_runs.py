"""MMnas from the data to a served answer: known sequences, and searches on its space."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bmnas_export import export_bundle
from bmnas_serve.session import Session
from command_line import bmnas_command
from engine_builds import build_engine
from tiny_tasks import CONFIG, write_tiny_task
from tiny_words import tiny_questions

import bmnas
from bmnas.cli.train import Subject
from bmnas.features.samples import label_tensor
from bmnas.machine.errors import UserError
from bmnas.pipeline.context import check_negatives, worded
from bmnas.pipeline.importance import permutation_importance
from bmnas.pipeline.multimodal import raw_samples
from bmnas.pipeline.train import recorded_config
from bmnas.spaces.cells.space import CellSpace
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.training import fit
from bmnas.training.fit import clipped_adam, largest_gradient
from bmnas.training.heads import head_for
from bmnas.training.metrics import predict

CPU = torch.device("cpu")
FEATURES = ("question.1", "image.3")


def sequence_file(folder: Path, *, boxes: bool) -> Path:
    path = folder / "sequence" / "genotype.json"
    path.parent.mkdir()
    features = ("question.1", "image.regions") if boxes else FEATURES
    decoder = ("rsa" if boxes else "sa", "ga", "ffn")
    MMnasGenotype(features, 16, 8, ("sa", "ffn"), decoder).save(path)
    return path


@pytest.mark.parametrize(("frozen", "boxes"), [(False, False), (True, True)])
def test_a_sequence_trains_exports_and_is_served(tmp_path: Path, frozen: bool, boxes: bool) -> None:
    task, run = tiny_questions(images_by="windows" if boxes else None), tmp_path / "run"
    config = CONFIG.override("train", freeze_backbones=frozen)
    trained = bmnas.train(sequence_file(tmp_path, boxes=boxes), task, run=run, config=config)
    network = bmnas.load_network(trained.network)
    assert isinstance(network.genotype, MMnasGenotype)
    bundle = export_bundle(network, task, tmp_path / "bundle")
    assert bundle.parity.passed
    build_engine(bundle.folder / "model.onnx")
    session = Session.open(tmp_path / "bundle")
    test = task.samples("test")
    image, question = task.modalities
    encoded = network.network.backbone("question").encode(question.data[test])
    answer = session.run({"image": image.data[test], "question": encoded})
    samples = raw_samples(task, network.network, "test")
    logits, labels = predict(network.network, lambda x: network.network(*x), samples, CPU)
    np.testing.assert_allclose(answer["logits"], logits.numpy(), atol=1e-4)
    assert torch.equal(labels, label_tensor(task, test))
    worth = permutation_importance(network.network, samples, network.task.head, CPU)
    assert worth.score == pytest.approx(trained.score)
    assert set(worth.features) == {*network.architecture.features}
    assert set(worth.modalities) == {"image", "question"}


def test_a_final_training_may_be_the_official_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, run = tiny_questions(), tmp_path / "run"
    settings = {"freeze_backbones": True, "steps": "official", "falls": [4, 5], "gpu_batch": 4}
    config = CONFIG.override("train", epochs=6, max_lr=0.004, **settings)
    clips: list[float] = []
    clip = fit.clipped_adam
    monkeypatch.setattr(fit, "clipped_adam", lambda *a: clips.append(a[2]) or clip(*a))
    bmnas.train(sequence_file(tmp_path, boxes=False), task, run=run, config=config)
    assert set(clips) == {1 / 4}
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    wanted = [0.001, 0.002, 0.003, 0.004, 0.0008, 0.00016]
    assert [line["learning_rate"] for line in lines] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("section", "given", "message"),
    [
        ("train", {"falls": [3]}, "falls: received .3. with other steps, expected none, or steps"),
        ("train", {"gpu_batch": 8}, "gpu-batch: received 8 with other steps"),
        ("train", {"steps": "official", "min_lr": 1e-5}, "min-lr: received 1e-05 with steps = "),
        ("train", {"steps": "official", "weight_decay": 0.1}, "weight-decay: .*none, expected 0"),
        ("mmnas", {"gpu_batch": 8}, "gpu-batch: received 8 with other steps"),
    ],
)
def test_settings_that_count_for_nothing_are_refused_in_a_line(
    section: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        CONFIG.override(section, **given)
    assert "\n" not in str(raised.value)
    kept = {"steps": "official", "weight_decay": 0.0, "gpu_batch": 8, "falls": [3]}
    assert CONFIG.override("train", **kept).train.falls == (3,)


def test_folders_that_recorded_them_are_trained_as_before(tmp_path: Path) -> None:
    file, data = sequence_file(tmp_path, boxes=False), CONFIG.to_dict()
    data["task"] = {"name": "questions", "source": {}}
    data["train"] |= {"steps": "official", "min_lr": 1e-5, "weight_decay": 0.1, "gpu_batch": 4}
    data["mmnas"] |= {"gpu_batch": 8}
    (file.parent / "config.json").write_text(json.dumps(data))
    found = recorded_config(file, tiny_questions())
    assert (found.train.steps, found.train.gpu_batch) == ("official", 4)
    assert (found.train.epochs, found.strategies["mmnas"].gpu_batch) == (CONFIG.train.epochs, 0)


@pytest.mark.parametrize("section", ["train", "mmnas"])
def test_hard_pairs_of_a_task_without_pairs_are_refused(tmp_path: Path, section: str) -> None:
    config = CONFIG.override(section, negatives=7)
    with pytest.raises(UserError, match=rf"{section}.negatives: received 7 .*, expected 0$"):
        bmnas.search(tiny_questions(), run=tmp_path, config=config, strategy="mmnas")
    # What the paper's recipe says of pairs is passed over.
    check_negatives(tiny_questions(), CONFIG.as_in_the_paper("mmnas"))


def test_the_default_preset_suits_the_space_of_what_is_trained(tmp_path: Path) -> None:
    file = sequence_file(tmp_path, boxes=False)
    subject = Subject(genotype=file, task="digits", preset="default")
    _, config = subject.load(file)
    assert (config.train.dropout, config.train.warmup_steps) == (0.0, 50)


@pytest.mark.parametrize(
    ("kind", "terms"), [("multiclass", 1), ("answers", 1), ("matching", 3), ("grounding", 0)]
)
def test_the_largest_gradient_is_that_of_a_sum(kind: str, terms: int) -> None:
    wanted = [1 / (terms * 64), 1 / (terms * 256)] if terms else [1, 1]
    assert [largest_gradient(head_for(kind), 256, own) for own in (64, 0)] == wanted
    assert largest_gradient(head_for(kind), 8, 64) == (1 / (8 * terms) if terms else 1)


def test_its_gradients_are_clipped() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = clipped_adam([weight], 0.1, 1 / 8)
    for scale, wanted in ((100.0, 0.125), (0.01, 0.02)):
        weight.grad = torch.full((4,), scale)
        optimizer.step()
        assert float(weight.grad.norm()) == pytest.approx(wanted, rel=1e-3)
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_the_command_line_writes_a_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_task(tmp_path)
    words = ("genotype", "--task", "task.toml", "--run", "sequence")
    assert bmnas_command(*words, "mcan").status == 0
    found = MMnasGenotype.load(tmp_path / "sequence" / "genotype.json")
    assert (found.encoder, found.decoder) == (("sa", "ffn") * 2, ("sa", "ga", "ffn") * 2)
    assert (found.features, found.width) == (("m0.3", "m1.3"), 64)
    assert "holds another genotype" in bmnas_command(*words, "sum").err
    paper = ("genotype", "mcan", "--task", "task.toml", "--run", "paper", "--preset", "mmnas-vqa")
    assert bmnas_command(*paper).status == 0
    found = MMnasGenotype.load(tmp_path / "paper" / "genotype.json")
    assert (len(found.decoder), found.width, found.norm) == (18, 512, "official")
    assert "m1.3 has no boxes to relate" in bmnas_command(*words, "vqa").err


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("backbone", "strategy"), [("text_conv", "random"), (None, "random"), (None, "regularised")]
)
def test_other_searches_look_in_the_space(
    tmp_path: Path, backbone: str | None, strategy: str
) -> None:
    task, run = tiny_questions(backbone=backbone), tmp_path / "run"
    config = CONFIG.override("mmnas", encoder=1, decoder=3, width=16)
    found = bmnas.search(task, run=run, config=config, strategy=strategy, space="mmnas")
    assert isinstance(found.genotype, MMnasGenotype)
    # By default the vectors of the words.
    assert found.genotype.features == (f"question.{3 if backbone else 1}", "image.3")
    # The sizes are those of the section of the space, whatever looks in it.
    sizes = len(found.genotype.encoder), len(found.genotype.decoder), found.genotype.width
    assert sizes == (1, 3, 16)
    assert (run / "architecture.svg").is_file()
    again = bmnas.search(
        task, run=run, config=config, strategy=strategy, space="mmnas", existing="resume"
    )
    assert again.genotype == found.genotype


def test_networks_of_tokens_read_the_words_unless_they_read_more_already() -> None:
    task = tiny_questions(backbone=None)
    for space, features, wanted in (
        (MMnasSpace, (), "embedding"),
        (MMnasSpace, ("question.1", "image.3"), "embedding"),
        (MMnasSpace, ("question.3", "image.3"), None),
        (CellSpace, (), None),
    ):
        found = worded(task, space, features)
        assert [modality.backbone for modality in found.modalities] == [None, wanted]
