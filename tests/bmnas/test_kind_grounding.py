"""Which region a text means: boxes, losses and scores by their definitions, then all the way."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bmnas_export import export_bundle
from bmnas_serve.forms import Given
from bmnas_serve.metadata import model_metadata
from bmnas_serve.raw_model import Asked, RawModel
from bmnas_serve.session import Session
from command_line import bmnas_command
from tiny_tasks import CONFIG

import bmnas
from bmnas.backbones.regions import windows
from bmnas.machine.errors import UserError
from bmnas.machine.files import read_json
from bmnas.machine.tensor_file import read_tensors
from bmnas.pipeline.sequences import sequence_for
from bmnas.spaces.mmnas.genotype import MMnasGenotype
from bmnas.spaces.mmnas.known import known_sequence
from bmnas.spaces.registry import build_fusion
from bmnas.tasks import Modality, Task, check_task, load_task
from bmnas.training.grounding import GroundingHead, deltas_of, moved, overlaps
from bmnas.training.heads import head_for

HEAD = head_for("grounding")
DRAW = np.random.default_rng(0)


def boxes(count: int) -> torch.Tensor:
    """Boxes of whole pixels in a picture of 20 x 20."""
    low, size = DRAW.integers(0, 12, (count, 2)), DRAW.integers(1, 8, (count, 2))
    return torch.from_numpy(np.concatenate([low, low + size], 1)).double()


def pixels(box: torch.Tensor) -> set[tuple[int, int]]:
    x1, y1, x2, y2 = (int(n) for n in box)
    return {(x, y) for x in range(x1, x2 + 1) for y in range(y1, y2 + 1)}


def test_overlap_counts_pixels() -> None:
    one, two = boxes(50), boxes(50)
    pairs = [(pixels(a), pixels(b)) for a, b in zip(one, two, strict=True)]
    wanted = [len(a & b) / len(a | b) for a, b in pairs]
    assert overlaps(one, two).tolist() == pytest.approx(wanted)
    assert overlaps(one, one).tolist() == [1] * 50


def test_deltas_move_a_box_to_where_they_were_taken() -> None:
    one, two = boxes(50), boxes(50)
    torch.testing.assert_close(moved(one, deltas_of(one, two)), two)
    # By hand: half a width to the right, twice as high.
    found = deltas_of(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([[5.0, -5, 14, 14]]))
    assert found[0].tolist() == pytest.approx([0.5 / 0.1, 0, 0, math.log(2) / 0.2])


def said(regions: list[list[float]]) -> torch.Tensor:
    """Logits of one sample: score, deltas and box of each region."""
    return torch.tensor([[number for region in regions for number in region]])


FAR = [50.0, 50, 59, 59]


def test_predictions_tell_both_boxes_their_overlap_and_how_sure_it_is() -> None:
    truth = torch.tensor([[0.0, 0, 9, 9]])
    logits = said([[1.0, 0, 0, 0, 0, 0, 0, 9, 4], [0.0, 0, 0, 0, 0, *FAR]])
    found = HEAD.columns(logits, truth)
    assert [*found] == [
        *("label x1", "label y1", "label x2", "label y2"),
        *("prediction x1", "prediction y1", "prediction x2", "prediction y2"),
        *("overlap", "probability"),
    ]
    values = [value for (value,) in found.values()]
    assert values == pytest.approx([0, 0, 9, 9, 0, 0, 9, 4, 0.5, 1 / (1 + math.exp(-1))])


def test_the_loss_is_divergence_from_the_overlaps_and_smooth_l1_of_good_regions() -> None:
    truth = torch.tensor([[0.0, 0, 9, 9]])
    logits = said(
        [
            [1.0, 0.1, 0.2, 0.3, 2.0, 0, 0, 9, 9],  # overlap 1
            [0.5, 0.0, 0.0, 0.0, 0.0, 0, 0, 9, 4],  # overlap .5
            [2.0, 9.0, 9.0, 9.0, 9.0, *FAR],
        ]
    )
    target = np.array([2 / 3, 1 / 3])
    logs = np.log(np.exp([1.0, 0.5, 2.0]) / np.exp([1.0, 0.5, 2.0]).sum())[:2]
    divergence = (target * (np.log(target) - logs)).sum()

    def smooth(d: float) -> float:
        return d * d / 2 if abs(d) < 1 else abs(d) - 0.5

    # The second has to move half of its height down and to grow twice as high.
    apart = [0.1, 0.2, 0.3, 2.0, 0, 0.5 / 0.1, 0, math.log(2) / 0.2]
    wanted = divergence + 0.5 * sum(map(smooth, apart)) / 2
    assert HEAD.loss(logits, truth).item() == pytest.approx(wanted, rel=1e-6)
    assert HEAD.sample_losses(logits, truth).item() == pytest.approx(wanted, rel=1e-6)
    # A sample without a good region changes nothing, and alone has no loss.
    lost = said([[1.0, 0, 0, 0, 0, *FAR]] * 3)
    both = torch.cat([logits, lost])
    assert HEAD.loss(both, truth.repeat(2, 1)).item() == pytest.approx(wanted, rel=1e-6)
    assert HEAD.loss(lost, truth).item() == 0
    networks = torch.stack([both, both.flip(0)], dim=1)
    each = HEAD.network_losses(networks, truth.repeat(2, 1))
    assert each.tolist() == pytest.approx([wanted, wanted], rel=1e-6)


def test_what_is_found_is_the_moved_box_of_the_highest_score() -> None:
    assert isinstance(HEAD, GroundingHead)
    truth = torch.tensor([[10.0, 0, 19, 9]])
    moves = [1.0, 10.0, 0, 0, 0, 0, 0, 9, 9]  # one width to the right
    logits = said([moves, [0.5, 0, 0, 0, 0, *FAR]])
    assert HEAD.boxes(logits).tolist() == [[10, 0, 19, 9]]
    assert HEAD.score(logits, truth) == 1
    assert HEAD.details(logits, truth) == {"proposal_recall": 0}
    assert HEAD.details(logits, torch.tensor([FAR])) == {"proposal_recall": 1}
    assert HEAD.score(logits, torch.tensor([FAR])) == 0
    logits, box, probability = HEAD.served(logits)
    assert box.tolist() == [[10, 0, 19, 9]]
    assert probability.item() == pytest.approx(1 / (1 + math.exp(-0.5)))
    # Boxes begin in the picture, and end where its regions do.
    assert HEAD.boxes(said([[1.0, -10, 0, 0, 0, 0, 0, 9, 9]])).tolist() == [[0, 0, 0, 9]]
    last = [0.0, 0, 0, 0, 0, 40, 3, 62, 13]
    grown = [1.0, 10, 10, 10, 0, 50, 0, 59, 9]
    wanted = [65 - 5 * math.exp(2), 10, 62, 13]
    assert HEAD.boxes(said([grown, last]))[0].tolist() == pytest.approx(wanted)


def test_corners_do_not_hide_how_far_scores_are_apart() -> None:
    logits = said([[1.0, 2, 3, 4, 5, 60, 61, 62, 63], [6.0, 7, 8, 9, 10, *FAR]])
    assert [part.tolist() for part in HEAD.alike(logits)] == [
        [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]],
        [[60, 61, 62, 63, *FAR]],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_padding_is_never_chosen_and_leaves_numbers(dtype: torch.dtype) -> None:
    padding = [9.0, *[0.0] * 8]
    own = said([[1.0, 0, 0, 0, 0, 0, 0, 9, 9], padding]).to(dtype).requires_grad_()
    truth = torch.tensor([[0.0, 0, 9, 9]]).to(dtype)
    assert HEAD.decide(own).item() == 0
    HEAD.loss(own, truth).backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()
    assert not own.grad[0, 9:].any()
    nothing = said([padding, padding]).to(dtype)
    assert HEAD.loss(nothing, truth).item() == 0
    assert HEAD.boxes(nothing).isfinite().all()
    # Nor is it what a text means, were that its only pixel.
    pixel = torch.zeros(1, 4).to(dtype)
    assert HEAD.loss(nothing, pixel).item() == 0
    assert HEAD.details(nothing, pixel) == {"proposal_recall": 0}


def test_the_network_for_regions_has_the_published_size() -> None:
    found = known_sequence("vgd", ("text.1", "image.regions"))
    network = build_fusion(found, {"text.1": 300, "image.regions": 2052}, classes=0, dropout=0.1)
    assert sum(p.numel() for p in network.parameters()) == 47_090_542


def pointing(samples: int = 180) -> Task:
    """Pictures of a dark and a bright square in two of four corners; texts name one of them."""
    draw = np.random.default_rng(0)
    images = draw.integers(100, 120, (samples, 32, 32), dtype=np.uint8)
    corners = np.array([[0, 0], [16, 0], [0, 16], [16, 16]])
    labels, texts = [], []
    for image in images:
        places = corners[draw.permutation(4)[:2]]
        for (x, y), value in zip(places, (20, 230), strict=True):
            image[y : y + 16, x : x + 16] = value
        meant = draw.integers(2)
        texts.append(("the dark square", "the bright one")[meant])
        labels.append([*places[meant], *(places[meant] + 15)])
    return Task(
        name="pointing",
        kind="grounding",
        modalities=(
            Modality("text", "text", np.array(texts), backbone="embedding"),
            Modality("image", "image", images, backbone="windows"),
        ),
        labels=np.array(labels),
        part=np.arange(samples) % 3,
        class_names=("x1", "y1", "x2", "y2"),
    )


def test_what_is_wrong_with_boxes_is_told(tmp_path: Path) -> None:
    task = pointing()
    check_task(task)
    turned = task.labels.copy()
    turned[3] = turned[3][[2, 3, 0, 1]]
    with pytest.raises(
        UserError, match=r"received .* for sample 3 .*, expected numbers, x1 at most"
    ):
        check_task(dataclasses.replace(task, labels=turned))
    with pytest.raises(UserError, match="expected boxes x1, y1, x2, y2 in pixels"):
        check_task(dataclasses.replace(task, labels=task.labels[:, :3]))
    told = "is about regions of pictures, which networks of space cells do not tell apart"
    with pytest.raises(UserError, match=told):
        bmnas.search(task, run=tmp_path / "a", config=CONFIG)
    with pytest.raises(UserError, match="space fusions do not tell apart"):
        bmnas.train_fusion("concat", task, run=tmp_path / "b", config=CONFIG)


def test_a_search_finds_a_network_for_regions(tmp_path: Path) -> None:
    config = CONFIG.override("search", rerank=1)
    found = bmnas.search(pointing(48), run=tmp_path, config=config, strategy="mmnas")
    assert isinstance(found.genotype, MMnasGenotype)
    assert found.genotype.features == ("text.1", "image.regions")
    # What networks of one modality have learned instead is told.
    assert {own["metric"] for own in found.metrics["unimodal"].values()} == {"weighted_f1"}


def write_pointing(folder: Path, **changes: str) -> Path:
    """Write ``pointing`` as a table and files of pictures, two to five times as large."""
    pictures, task = pytest.importorskip("PIL.Image"), pointing()
    (folder / "seen").mkdir(parents=True)
    lines = ["text,file,x1,y1,x2,y2,part"]
    for number, (text, image, box) in enumerate(
        zip(task.modality("text").data, task.modality("image").data, task.labels, strict=True)
    ):
        times = 2 + number % 4
        large = image.repeat(times, 0).repeat(times, 1)
        pictures.fromarray(large).save(folder / "seen" / f"{number}.png")
        x1, y1 = box[:2] * times
        x2, y2 = (box[2:] + 1) * times - 1
        part = ("train", "validation", "test")[number % 3]
        lines.append(f"{text},{number}.png,{x1},{y1},{x2},{y2},{part}")
    (folder / "table.csv").write_text("\n".join(lines))
    text = POINTING
    for old, new in changes.items():
        text = text.replace(f"{old} = ", f"{new}\n{old} = ")
    (folder / "task.toml").write_text(text)
    return folder / "task.toml"


POINTING = """
name = "pointing"
kind = "grounding"
data = "table.csv"
labels = ["x1", "y1", "x2", "y2"]
split = "part"

[modality.text]
type = "text"
array = "text"

[modality.image]
type = "image"
array = "file"
folder = "seen"
size = 32
grey = true
"""


def test_boxes_of_files_are_in_pixels_of_the_pictures(tmp_path: Path) -> None:
    task = load_task(str(write_pointing(tmp_path)))
    np.testing.assert_allclose(task.labels, pointing().labels, atol=1e-5)
    assert (np.asarray(task.modality("image").data[np.arange(9)]) == 230).any()
    source = task.modality("image").source
    assert source is not None
    assert source["files"]["fit"] == "pad"


def test_boxes_outside_their_pictures_are_told_at_once(tmp_path: Path) -> None:
    path = write_pointing(tmp_path)
    table = tmp_path / "table.csv"
    # Widths and heights in place of the last corners, as COCO has them, would end there.
    table.write_text(re.sub(r"(?m)\b([05]\.png,\d+,\d+),\d+,", r"\1,999,", table.read_text()))
    message = r"boxes that end outside .* row 0: .* in 64x64, row 5: .* in 96x96.*not width and"
    with pytest.raises(UserError, match=message) as told:
        load_task(str(path))
    assert "\n" not in str(told.value)


def test_pictures_are_not_cut(tmp_path: Path) -> None:
    path = write_pointing(tmp_path, grey="fit = 'crop'")
    with pytest.raises(UserError, match=r"modality.image.fit: .*cuts boxes off, expected pad or"):
        load_task(str(path))


def test_from_training_to_a_served_box(tmp_path: Path) -> None:
    task = load_task(str(write_pointing(tmp_path / "data")))
    config = CONFIG.override("train", epochs=30, max_lr=3e-3, dropout=0.0).override(
        "unimodal", epochs=4
    )
    features = ("text.1", "image.regions")
    found = MMnasGenotype(features, 32, 16, ("sa",), ("ga", "ffn"))
    found.save(tmp_path / "genotype.json")
    trained = bmnas.train(tmp_path / "genotype.json", task, run=tmp_path / "run", config=config)
    test = trained.metrics["test"]
    # Squares are windows of the grid of two.
    assert test["details"] == {"proposal_recall": 1}
    assert trained.score > 0.9
    assert trained.metrics["metric"] == "accuracy_at_iou_50"

    network = bmnas.load_network(trained.network)
    bundle = export_bundle(network, task, tmp_path / "bundle")
    assert bundle.parity.agree == bundle.parity.rows
    session = Session.open(tmp_path / "bundle")
    chosen = task.samples("test")
    text, image = (
        network.network.backbone(name).encode(task.modality(name).data[chosen])
        for name in ("text", "image")
    )
    answer = session.run({"text": text, "image": image})
    assert answer["logits"].shape == (len(chosen), 9 * len(windows(32, 32, (2, 3, 4))))
    hits = overlaps(torch.from_numpy(answer["box"]), torch.from_numpy(task.labels[chosen])) >= 0.5
    assert hits.double().mean().item() == pytest.approx(trained.score)
    assert (answer["probability"] <= 1).all()
    about = model_metadata(session)["parameters"]
    assert (about["kind"], about["decision"]) == ("grounding", "none")

    printed = bmnas_command("predict", tmp_path / "bundle", tmp_path / "data" / "table.csv")
    assert printed.status == 0, printed.err
    told = list(csv.DictReader(printed.out.splitlines()))
    truth = list(csv.DictReader((tmp_path / "data" / "table.csv").read_text().splitlines()))
    said = torch.tensor([[float(row[f"box.{n}"]) for n in range(4)] for row in told])
    meant = torch.tensor([[float(row[name]) for name in task.class_names] for row in truth])
    hits = (overlaps(said, meant) >= 0.5)[chosen].double().mean().item()
    assert hits == pytest.approx(trained.score)
    # A server says the same of a file that is sent.
    model = RawModel(session)
    file = (tmp_path / "data" / "seen" / "7.png").read_bytes()
    made = model.made(
        {"image": Given(content=file), "text": Given(value=truth[7]["text"])}, Asked()
    )
    answered = model.answer(made, session.run(made.inputs))
    assert answered["outputs"]["box"] == pytest.approx(said[7].tolist(), abs=0.01)


def test_probabilities_are_as_sure_as_boxes_are_right() -> None:
    draw = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[20.0 * k, 0, 20.0 * k + 9, 9] for k in range(5)])
    scores = torch.randn(2000, 5, generator=draw)
    meant = boxes[scores.softmax(-1).multinomial(1, generator=draw).squeeze(1)]

    def logits(factor: float) -> torch.Tensor:
        rest = torch.cat([torch.zeros(5, 4), boxes], 1).expand(2000, -1, -1)
        return torch.cat([factor * scores[..., None], rest], -1).flatten(1)

    # Four times too sure, and not sure enough.
    for factor in (4.0, 0.5):
        found = HEAD.sharpness(logits(factor), meant)
        assert found * factor == pytest.approx(1, abs=0.1)
        before, after = (HEAD.calibration_error(logits(f), meant) for f in (factor, found * factor))
        assert before is not None
        assert after is not None
        assert after < 0.03 < before


def test_a_training_that_is_judged_serves_such_probabilities(tmp_path: Path) -> None:
    found = {}
    for judged in (False, True):
        run, task = tmp_path / str(judged), pointing(48)
        sequence_for(task, CONFIG, "mcan").save(run / "genotype.json")
        config = CONFIG.override("train", unimodal_logits=judged)
        result = bmnas.train(run / "genotype.json", task, run=run, config=config)
        assert ("importance" in result.metrics) == judged
        found[judged] = read_tensors(result.network)[1]
    factor = read_json(tmp_path / "True" / "judged.json")["sharpness"]
    assert factor != 1
    for name, tensor in found[False].items():
        expected = tensor.clone()
        if name in ("fusion.output.weight", "fusion.output.bias"):
            expected[0] *= factor
        torch.testing.assert_close(found[True][name], expected)
