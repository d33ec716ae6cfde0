"""What belongs together: pairs for training, galleries and their ranks, all the way to a bundle."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from bmnas_export import export_bundle
from bmnas_serve.session import Session
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tasks import CONFIG
from tiny_words import captioned, tiny_questions

import bmnas
from bmnas.backbones import build_backbone
from bmnas.features.pairs import PairSamples, drawn_pairs, gallery, judged, shown
from bmnas.features.samples import FeatureSamples
from bmnas.machine.errors import UserError
from bmnas.pipeline import multimodal
from bmnas.pipeline.config import fitted_config
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.final_training import _balanced
from bmnas.pipeline.multimodal import FUSION, WORDS, MultimodalNetwork, raw_samples
from bmnas.pipeline.run_folder import Run
from bmnas.report.metrics import GalleryMetrics, RunMetrics
from bmnas.report.record import load_run
from bmnas.report.tables import run_tables
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.space import MMnasSpace
from bmnas.spaces.registry import build_fusion
from bmnas.strategies.target import Target
from bmnas.tasks import check_task
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Task
from bmnas.training import mining
from bmnas.training.heads import head_for
from bmnas.training.matching import ranks, shared_words
from bmnas.training.mining import hardest
from bmnas.training.settings import ShortTraining, Weighing
from bmnas.training.together import fit_together, joined

HEAD = head_for("matching")
CPU = torch.device("cpu")
TOKENS = ("text.1", "image.1")


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_a_rank_is_one_more_than_the_wrong_ones_that_are_not_lower(
    first: int, second: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    scores = torch.from_numpy(draw.integers(0, 4, (first, second)))  # with many equals
    right = torch.from_numpy(draw.random((first, second)) < 0.4)
    wanted = []
    for row, own in zip(scores.double().tolist(), right.tolist(), strict=True):
        if any(own):
            best = max(s for s, r in zip(row, own, strict=True) if r)
            wrong = sum(s >= best for s, r in zip(row, own, strict=True) if not r)
            wanted.append(1 + wrong)
    assert ranks(scores.double(), right).tolist() == wanted


def test_recalls_and_median_ranks_of_a_gallery() -> None:
    # Two pictures of one caption and one of two; captions 1 and 3 are mistaken.
    scores = torch.tensor([[9.0, 1, 0, 8], [3, 2, 0, 0], [0, 0, 4, 1]])
    match = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]])
    place = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    labels = torch.cat([match.flatten()[:, None], place], dim=1)
    order = torch.randperm(12)
    found = HEAD.details(scores.flatten()[order, None], labels[order])
    assert found["recall_at_1_by_first"] == pytest.approx(2 / 3)
    assert found["recall_at_5_by_first"] == 1
    assert found["median_rank_by_first"] == 1
    # Of captions 0, 1, 2 and 3: the last is beaten by the first picture.
    assert found["recall_at_1_by_second"] == pytest.approx(3 / 4)
    recalls = [2 / 3, 1, 1, 3 / 4, 1, 1]
    score = HEAD.score(scores.flatten()[order, None], labels[order])
    assert score == pytest.approx(np.mean(recalls))


def test_a_match_counts_twice_in_the_loss() -> None:
    logits = torch.tensor([[2.0], [-1.0], [0.5]])
    labels = torch.tensor([[1, -1, -1], [0, -1, -1], [0, -1, -1]])
    p = logits[:, 0].sigmoid()
    wanted = -(2 * p[0].log() + (1 - p[1]).log() + (1 - p[2]).log()) / 3
    assert HEAD.loss(logits, labels).item() == pytest.approx(wanted.item(), rel=1e-6)
    # Without a gallery: how many are told rightly.
    assert HEAD.score(logits, labels) == pytest.approx(2 / 3)
    assert HEAD.details(logits, labels) == {}


GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def samples() -> FeatureSamples:
    """Four pictures with two texts each, of 5 and 4 tokens."""
    draw = torch.Generator().manual_seed(0)
    arrays = {
        "text.1": torch.randn(8, 5, 3, generator=draw),
        "image.1": torch.randn(4, 4, 6, generator=draw),
    }
    rows = {"text": torch.arange(8), "image": torch.arange(8) // 2}
    masks = {"text.1": torch.arange(5) < 2 + torch.arange(8)[:, None] % 4}
    masks["image.1"] = torch.ones(4, 4, dtype=torch.bool)
    return FeatureSamples(TOKENS, arrays, rows, GROUPS, masks)


def test_each_sample_comes_with_a_wrong_second_and_a_wrong_first() -> None:
    torch.manual_seed(0)
    chosen = torch.tensor([0, 5, 3]).repeat(50)
    first, second, labels = drawn_pairs(GROUPS, chosen)
    one, two = first.view(-1, 3).T, second.view(-1, 3).T
    assert torch.equal(one[0], chosen)
    assert torch.equal(one[1], chosen)
    assert torch.equal(two[2], chosen)
    assert torch.equal(GROUPS[first] == GROUPS[second], labels[:, 0] == 1)
    assert labels[:, 0].view(-1, 3).tolist() == [[1, 0, 0]] * len(chosen)
    # Every other sample has its turn.
    assert set(two[1][chosen == 0].tolist()) == {2, 3, 4, 5, 6, 7}
    with pytest.raises(UserError, match="all belong together, expected two groups"):
        drawn_pairs(torch.zeros(4), torch.arange(2))


class Similar(torch.nn.Module):
    """The logit of a pair is the product of its first numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.modes: list[bool] = []

    def forward(self, x: list[torch.Tensor], *_: object) -> torch.Tensor:
        self.modes.append(self.training)
        return self.weight * x[0][:, 0, :1] * x[1][:, 0, :1]


def test_hard_pairs_are_the_best_wrong_ones() -> None:
    torch.manual_seed(0)
    own, network = samples(), Similar()
    # So many that every other row is among them.
    hard = hardest(network, own, 300)
    assert (network.training, set(network.modes)) == (True, {False})
    text, image = own.arrays["text.1"][:, 0, 0], own.arrays["image.1"][own.rows["image"], 0, 0]
    score = torch.outer(text, image)
    score[GROUPS[:, None] == GROUPS] = -torch.inf
    # Rows repeat among so many, but each counts once: there are three wrong pictures, six texts.
    torch.testing.assert_close(score.gather(1, hard[0])[:, :3], score[:, ::2].topk(3).values)
    torch.testing.assert_close(score.T.gather(1, hard[1]), score.T.topk(5).values)
    assert (GROUPS[hard] != GROUPS[:, None]).all()
    few = hardest(network, own, 2)
    assert few.shape == (2, 8, 2)
    assert (GROUPS[few] != GROUPS[:, None]).all()


def test_training_draws_one_of_the_hard_pairs_at_each_use() -> None:
    torch.manual_seed(0)
    hard = torch.stack([torch.tensor([[2, 5]] * 8), torch.tensor([[6, 7]] * 8)])
    first, second, labels = drawn_pairs(GROUPS, torch.zeros(60, dtype=torch.int64), hard)
    one, two = first.view(-1, 3).T, second.view(-1, 3).T
    assert set(two[1].tolist()) == {2, 5}
    assert set(one[2].tolist()) == {6, 7}
    assert {len(set(side.tolist())) for side in (one[0], one[1], two[0], two[2])} == {1}
    assert labels[:, 0].view(-1, 3).tolist() == [[1, 0, 0]] * 60


def test_batches_of_pairs_have_the_rows_and_masks_of_their_samples() -> None:
    # Two tokens or three of five.
    masks = {**samples().masks, "text.1": torch.arange(5) < 2 + torch.arange(8)[:, None] % 2}
    own = dataclasses.replace(samples(), masks=masks)
    task = dataclasses.replace(captioned(8), labels=GROUPS.numpy())
    pairs = shown(task, own)
    assert isinstance(pairs, PairSamples)
    assert isinstance(pairs.select(TOKENS).take(torch.arange(6)), PairSamples)
    torch.manual_seed(1)
    batch = pairs.batch(torch.tensor([2, 7]))
    torch.manual_seed(1)
    first, second, labels = drawn_pairs(GROUPS, torch.tensor([2, 7]))
    most = int(own.masks["text.1"][first].sum(1).max())
    assert most <= 3
    assert torch.equal(batch.inputs[0], own.arrays["text.1"][first, :most])
    assert torch.equal(batch.inputs[1], own.arrays["image.1"][second // 2])
    assert torch.equal(batch.masks[0], own.masks["text.1"][first, :most])
    assert torch.equal(batch.extras["text.rows"], first)
    assert torch.equal(batch.labels, labels)
    # Elsewhere than on a CPU all batches are of one size.
    sent = pairs.batch(torch.tensor([2, 7]), torch.device("meta"))
    assert (sent.inputs[0].shape, sent.extras) == ((6, 5, 3), {})
    plain = dataclasses.replace(task, kind="multiclass")
    assert shown(plain, own) is own
    assert judged(plain, own, 10) is own


def test_a_gallery_has_every_row_with_every_other_once() -> None:
    own = gallery(samples(), 1000)
    assert len(own) == 8 * 4
    batch = own.batch(torch.arange(len(own)))
    for k, (match, first, second) in enumerate(own.labels.tolist()):
        assert (first, second) == divmod(k, 4)
        assert match == (first // 2 == second)
        assert torch.equal(batch.inputs[0][k], samples().arrays["text.1"][first])
        assert torch.equal(batch.inputs[1][k], samples().arrays["image.1"][second])
    # Where that are too many, whole groups are left out.
    few = gallery(samples(), 8)
    assert len(few) == 4 * 2
    assert few.labels[:, 0].sum() == 4


@pytest.mark.parametrize("turned", [False, True])
def test_a_network_encodes_the_texts_of_a_gallery_once(turned: bool) -> None:
    torch.manual_seed(0)
    own = samples()
    if turned:  # the picture comes first in the task: each has every text beside it
        own = dataclasses.replace(own, rows=dict(reversed(own.rows.items())))
    found = MMnasGenotype(TOKENS, 16, 8, ("sa", "ffn"), ("ga", "sa"))
    network = build_fusion(found, {"text.1": 3, "image.1": 6}, classes=1, dropout=0.1).eval()
    batch = gallery(own, 1000).batch(torch.arange(3, 30))
    inputs, masks, extras = batch.arguments
    sizes = []
    network.encoder[0].register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    whole, once = network(inputs, masks), network(inputs, masks, extras)
    assert sizes == [27, 27 if turned else 8]
    torch.testing.assert_close(once, whole)


@pytest.mark.parametrize("count", [1, 2])
def test_so_do_networks_that_are_computed_together(count: int) -> None:
    torch.manual_seed(0)
    found = MMnasGenotype(TOKENS, 16, 8, ("sa", "ffn"), ("ga", "sa"))
    sizes = {"text.1": 3, "image.1": 6}
    networks = [build_fusion(found, sizes, classes=1, dropout=0.1).eval() for _ in range(count)]
    seen: list[int] = []
    for network in networks:
        network.encoder[0].register_forward_hook(lambda _, args, out: seen.append(len(out)))
    own = gallery(samples(), 1000)
    together = joined(networks, own, 2, torch.device("cpu")).eval()
    seen.clear()
    logits = together(*own.batch(torch.arange(len(own))).arguments)
    assert seen == [8] * count
    inputs, masks, _ = own.batch(torch.arange(len(own))).arguments
    wanted = torch.stack([network(inputs, masks) for network in networks], dim=1)
    torch.testing.assert_close(logits, wanted)


def test_networks_are_trained_together_on_pairs_of_any_length() -> None:
    torch.manual_seed(0)
    found = MMnasGenotype(TOKENS, 16, 8, ("sa", "ffn"), ("ga", "sa"))
    networks = [
        build_fusion(found, {"text.1": 3, "image.1": 6}, classes=1, dropout=0.0) for _ in range(2)
    ]
    own = shown(dataclasses.replace(captioned(8), labels=GROUPS.numpy()), samples())
    lengths = set()
    networks[0].register_forward_hook(lambda _, args, out: lengths.add(args[0][0].shape[1]))
    training = ShortTraining(epochs=8, batch_size=2, max_lr=1e-3, min_lr=0.0, weight_decay=0.0)
    trained = fit_together(
        networks, own, gallery(samples(), 99), HEAD, training, device=CPU, stage="candidates"
    )
    assert len(lengths) > 1
    assert len(trained) == 2


def test_what_is_wrong_with_groups_is_told() -> None:
    task = captioned()
    check_task(task)
    with pytest.raises(UserError, match=r"received -1 .*, expected 0 or more"):
        check_task(dataclasses.replace(task, labels=task.labels - 1))
    third = dataclasses.replace(task.modalities[1], name="other")
    with pytest.raises(UserError, match="text, image, other, expected two, of which pairs"):
        check_task(dataclasses.replace(task, modalities=(*task.modalities, third)))
    labels, names = task_kind("matching").encode(np.array(["b", "a", "b"]), task.part, None, "")
    assert (labels.tolist(), names) == ([1, 0, 1], ("match",))


@pytest.mark.parametrize("strategy", ["random", "mmnas"])
def test_a_search_trains_on_pairs_and_judges_by_a_gallery(tmp_path: Path, strategy: str) -> None:
    config = CONFIG.override("search", rerank=1)
    found = bmnas.search(captioned(), run=tmp_path, config=config, strategy=strategy)
    assert found.metrics["metric"] == "mean_recall"


@pytest.mark.parametrize("frozen", [True, False])
def test_from_training_to_served_pairs(tmp_path: Path, frozen: bool) -> None:
    task = captioned()
    config = CONFIG.override("train", epochs=25, max_lr=5e-3, freeze_backbones=frozen).override(
        "unimodal", epochs=15
    )
    found = MMnasGenotype(("text.3", "image.3"), 16, 8, ("sa",), ("ga", "ffn"))
    found.save(tmp_path / "genotype.json")
    trained = bmnas.train(tmp_path / "genotype.json", task, run=tmp_path / "run", config=config)
    details = trained.metrics["test"]["details"]
    assert details["recall_at_1_by_first"] == 1
    assert details["median_rank_by_second"] == 1
    assert trained.score > 0.95
    whole = {"text": 32, "image": 32}
    assert trained.metrics["test"]["gallery"] == {"rows": whole, "of": whole}
    if frozen:
        return
    network = bmnas.load_network(trained.network)
    bundle = export_bundle(network, task, tmp_path / "bundle")
    assert bundle.parity.agree == bundle.parity.rows
    backbones = network.network
    texts = backbones.backbone("text").encode(task.modality("text").data[[0, 3]])
    images = backbones.backbone("image").encode(task.modality("image").data[[0, 3]])
    answer = Session.open(tmp_path / "bundle").run(
        {"text": texts[[0, 0, 1, 1]], "image": images[[0, 1, 0, 1]]}
    )
    assert (answer["probability"][:, 0] > 0.5).tolist() == [True, False, False, True]


def test_two_encoders_are_trained_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, run = captioned(), tmp_path / "run"
    monkeypatch.setattr(multimodal, "_PAIRS", 300)
    config = CONFIG.override("train", epochs=25, max_lr=5e-3, freeze_backbones=True)
    config = config.override("unimodal", epochs=15)
    trained = bmnas.train_fusion("dot_product", task, run=run, config=config)
    assert trained.score > 0.95
    bundle = export_bundle(bmnas.load_network(trained.network), task, tmp_path / "bundle")
    assert bundle.parity.passed
    # Two of the four groups.
    gallery = RunMetrics.load(run / "metrics.json").test.gallery
    few, all_ = ({"text": n, "image": n} for n in (16, 32))
    assert gallery == GalleryMetrics(few, all_)
    tables = {table.title: table for table in run_tables(load_run(run).metrics)}
    assert ("rows text", "16") in tables["Gallery of the test"].rows
    assert "fused, recall at 1 by text" in [row[0] for row in tables["Scores, mean recall"].rows]
    with pytest.raises(UserError, match="fusion dot_product: received 2 modalities and 2 outputs"):
        bmnas.train_fusion("dot_product", tiny_questions(), run=tmp_path / "no", config=CONFIG)


def test_the_words_of_both_heads_are_compared() -> None:
    first = torch.tensor([[9.0, 9, -9], [0, 0, 0]], dtype=torch.float64)
    second = torch.tensor([[-9.0, 9, 9], [2, 2, 2]], dtype=torch.float64)
    one, two = (1 / (1 + (-x).exp()) for x in (first, second))
    wanted = 10 * (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    torch.testing.assert_close(shared_words(first, second)[:, 0], wanted)
    assert wanted.tolist() == pytest.approx([5, 10], abs=1e-2)


def test_what_is_found_is_added_to_the_words_of_both(tmp_path: Path) -> None:
    task = captioned()
    config = CONFIG.override("train", epochs=4, freeze_backbones=True, unimodal_logits=True)
    config = config.override("unimodal", epochs=15, linear=True)
    found = MMnasGenotype(("text.3", "image.3"), 16, 8, ("sa",), ("ga", "ffn"))
    found.save(tmp_path / "genotype.json")
    trained = bmnas.train(tmp_path / "genotype.json", task, run=tmp_path / "run", config=config)
    weights = trained.metrics["weighing"]["weights"]
    assert set(weights) == {FUSION, WORDS}
    # Four captions of different words: their networks know all that there is to know.
    assert trained.score == trained.metrics["test"]["unimodal_mean"] == 1
    network = bmnas.load_network(trained.network)
    bundle = export_bundle(network, task, tmp_path / "bundle")
    assert bundle.parity.passed


def test_a_gallery_is_judged_as_its_pairs_are() -> None:
    torch.manual_seed(0)
    task = captioned(48)
    backbones = {
        modality.name: build_backbone(modality, classes=5, rows=modality.data[:16]).eval()
        for modality in task.modalities
    }
    found = MMnasGenotype(("text.3", "image.3"), 16, 8, ("sa",), ("ga", "ffn"))
    fusion = build_fusion(found, multimodal.channels_of(backbones), classes=1, dropout=0.0)
    weighing = Weighing({FUSION: 0.5, WORDS: 2.0}, bias=-1.0)
    network = MultimodalNetwork(backbones, fusion, weighing).eval()
    samples = raw_samples(task, network, "test")
    members, labels = multimodal.judged_pairs(network, samples, torch.device("cpu"))
    assert members.shape == (16 * 16, 2, 1)
    inputs = samples.batch(torch.arange(16)).inputs
    pairs = [x[labels[:, 1 + way]] for way, x in enumerate(inputs)]
    with torch.no_grad():
        torch.testing.assert_close(network.total(members), network(*pairs))


def test_words_are_compared_where_heads_stay_as_they_are(tmp_path: Path) -> None:
    def adds(task: Task, **train: bool) -> bool:
        config = CONFIG.override("train", **train)
        return RunContext(Run(tmp_path), task, config, 0).adds_words

    assert adds(captioned(), freeze_backbones=True, unimodal_logits=True)
    assert not adds(captioned(), freeze_backbones=False, unimodal_logits=True)
    assert not adds(captioned(), freeze_backbones=True, unimodal_logits=False)
    assert not adds(tiny_questions(), freeze_backbones=True, unimodal_logits=True)


def test_the_bias_of_a_gallery_is_that_of_pairs_of_which_half_match() -> None:
    labels = torch.tensor([[1, 0, 0], *[[0, 0, n] for n in range(1, 9)]])
    found = _balanced(Weighing({WORDS: 2.0}, bias=-3.0), labels)
    # Eight wrong ones, and one right one that counts twice.
    assert found == Weighing({WORDS: 2.0}, bias=pytest.approx(-3 + math.log(4)))


def test_networks_of_tokens_take_a_third_of_the_steps_for_pairs() -> None:
    pairs = captioned()
    one = dataclasses.replace(pairs, kind="multiclass", labels=pairs.labels % 2)
    one = dataclasses.replace(one, class_names=("even", "odd"))
    of, other = (fitted_config(task, space=MMnasSpace) for task in (pairs, one))
    assert of.train.epochs == pytest.approx(other.train.epochs / 3, abs=1)
    assert of.search.epochs == pytest.approx(other.search.epochs / 3, abs=1)
    assert fitted_config(pairs).train.epochs == fitted_config(one).train.epochs


@pytest.mark.parametrize("room", [True, False])
def test_limits_leave_room_for_predicted_words_or_none(tmp_path: Path, room: bool) -> None:
    config = CONFIG.override("train", freeze_backbones=True, unimodal_logits=True)
    config = config.override("search", rerank=1)
    # The networks alone have 231,747 weights or a few more, heads not counted.
    target = Target(max_parameters=2e6 if room else 231_900)
    bmnas.search(captioned(), run=tmp_path, config=config, strategy="mmnas", target=target)
    assert Run(tmp_path).read_config()["train"]["unimodal_logits"] == room
    trained = bmnas.train(tmp_path / "genotype.json", captioned())
    assert ("weighing" in trained.metrics) == room


def test_words_alone_match_without_a_fusion(tmp_path: Path) -> None:
    config = CONFIG.override("train", freeze_backbones=True, unimodal_logits=True)
    config = config.override("unimodal", epochs=15)
    trained = bmnas.train_fusion("weighted_logits", captioned(), run=tmp_path, config=config)
    assert trained.metrics["weighing"]["weights"].keys() == {WORDS}
    assert trained.score == 1
    rows = {table.title: table for table in run_tables(load_run(tmp_path).metrics)}
    scores = [row[0] for row in rows["Scores, mean recall"].rows]
    assert "similarity of predicted words" in scores
    config = config.override("train", freeze_backbones=False)
    with pytest.raises(UserError, match="weighted_logits: received backbones that are to be train"):
        bmnas.train_fusion("weighted_logits", captioned(), run=tmp_path / "no", config=config)


def test_texts_alone_have_a_linear_model_of_words(tmp_path: Path) -> None:
    config = CONFIG.override("unimodal", linear=True)
    context = RunContext(Run(tmp_path), captioned(), config, 0)
    own = {m.name: context.alone(m).config.unimodal.linear for m in captioned().modalities}
    assert own == {"text": True, "image": False}


@pytest.fixture
def mined(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many wrong pairs were scored, each time."""
    counts: list[int] = []
    real = mining.others
    monkeypatch.setattr(mining, "others", lambda *a: counts.append(len(a[1])) or real(*a))
    return counts


@pytest.mark.parametrize("frozen", [True, False])
def test_hard_pairs_are_found_before_every_epoch(
    tmp_path: Path, mined: list[int], frozen: bool
) -> None:
    MMnasGenotype(("text.3", "image.3"), 16, 8, ("sa",), ("ga",)).save(tmp_path / "genotype.json")
    config = CONFIG.override("train", epochs=3, negatives=7, freeze_backbones=frozen)
    bmnas.train(tmp_path / "genotype.json", captioned(), run=tmp_path / "run", config=config)
    # Of the texts, then of the pictures, of train and validation.
    assert mined == [7 * 64, 7 * 64] * 3


def test_a_search_finds_hard_pairs_after_a_share_of_its_epochs(
    tmp_path: Path, mined: list[int]
) -> None:
    config = CONFIG.override("search", epochs=4)
    config = config.override("mmnas", negatives=5, hard_from=0.5, warm_up=0.7)
    bmnas.search(captioned(), run=tmp_path, config=config, strategy="mmnas")
    # Of both parts of train: alpha learns in the last epoch alone, from a fifth of 32 samples.
    train, held_out = [5 * 26, 5 * 26], [5 * 6, 5 * 6]
    assert mined == [*train, *held_out, *train]
