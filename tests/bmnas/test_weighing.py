"""The weighted sum of members: what its weights are fitted to, and who is left out."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor

from bmnas.tasks.kinds import UNSEEN_LABEL
from bmnas.training.heads import head_for
from bmnas.training.settings import Weighing
from bmnas.training.task_head import TaskHead
from bmnas.training.weighing import fit_weighing, held_out_loss

SAMPLES, CLASSES = 400, 4


def speaker(labels: Tensor, sure: float, noise: float, seed: int) -> Tensor:
    """Return logits (n, K) of a member that says the label ``sure`` louder than the noise."""
    generator = torch.Generator().manual_seed(seed)
    heard = torch.randn(len(labels), CLASSES, generator=generator) * noise
    return heard + sure * torch.eye(CLASSES)[labels]


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(0))


def test_the_sum_is_better_than_each_member_and_than_their_mean(labels: Tensor) -> None:
    head = head_for("multiclass")
    members = {"a": speaker(labels, 2.0, 1.0, 1), "b": speaker(labels, 8.0, 8.0, 2)}
    found = fit_weighing(members, labels, head)
    loss = head.loss(found.of(members), labels)
    assert all(loss < head.loss(logits, labels) for logits in members.values())
    assert loss < head.loss(Weighing(dict.fromkeys(members, 0.5)).of(members), labels)
    # The loud one is eight times as noisy, and sure of itself for no reason.
    assert found.weights["a"] > 4 * found.weights["b"] > 0


def test_who_says_nothing_is_left_out(labels: Tensor) -> None:
    members = {
        "knows": speaker(labels, 2.0, 1.0, 1),
        "guesses": speaker(labels, 0.0, 5.0, 2),
        "is wrong": -speaker(labels, 2.0, 1.0, 3),
    }
    assert set(fit_weighing(members, labels, head_for("multiclass")).weights) == {"knows"}


def test_weights_stay_finite_where_every_answer_is_right() -> None:
    labels = torch.arange(12) % CLASSES
    members = {"a": 5 * torch.eye(CLASSES)[labels], "b": 9 * torch.eye(CLASSES)[labels]}
    found = fit_weighing(members, labels, head_for("multiclass"))
    assert all(0 < weight < 3 for weight in found.weights.values())


def test_the_bias_is_for_rare_labels_and_zero_for_classes(labels: Tensor) -> None:
    rare = (labels[:, None] == torch.arange(CLASSES)).float() * (torch.rand(SAMPLES, 1) < 0.3)
    members = {"a": torch.zeros(SAMPLES, CLASSES), "b": 0.1 * torch.randn(SAMPLES, CLASSES)}
    assert fit_weighing(members, rare, head_for("multilabel")).bias < -1
    classes = {"a": speaker(labels, 2.0, 1.0, 1), "b": speaker(labels, 2.0, 2.0, 2)}
    assert fit_weighing(classes, labels, head_for("multiclass")).bias == pytest.approx(0, abs=1e-6)


def test_samples_of_a_class_that_train_does_not_have_change_no_weight(labels: Tensor) -> None:
    head = head_for("multiclass")
    members = {"a": speaker(labels, 2.0, 1.0, 1), "b": speaker(labels, 2.0, 2.0, 2)}
    unseen = torch.arange(SAMPLES) % 4 == 1  # one of the parts that judge, as a whole
    some = torch.where(unseen, UNSEEN_LABEL, labels)
    without = fit_weighing({k: x[~unseen] for k, x in members.items()}, labels[~unseen], head)
    assert fit_weighing(members, some, head).weights == pytest.approx(without.weights, rel=1e-4)
    assert held_out_loss(members, some, head) == pytest.approx(
        float(head.loss(without.of(members), some)), rel=0.02
    )


def test_a_member_that_knows_nothing_does_not_lower_the_loss_on_other_samples(
    labels: Tensor,
) -> None:
    head, known = head_for("multiclass"), {"knows": speaker(labels, 2.0, 1.0, 1)}
    alone = held_out_loss(known, labels, head)
    noise = {f"noise {n}": speaker(labels, 0.0, 3.0, 10 + n) for n in range(3)}
    assert held_out_loss({**known, **noise}, labels, head) == pytest.approx(alone, rel=0.02)
    more = {**known, "too": speaker(labels, 2.0, 1.0, 5)}
    assert held_out_loss(more, labels, head) < 0.9 * alone


def test_a_fit_that_ends_in_nan_returns_the_best_that_was_seen() -> None:
    class Breaking:
        """A loss that is no number from the fourth time on, as a line search may end."""

        calls = 0

        def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return (logits - 3).square().mean() * (1.0 if self.calls < 4 else torch.nan)

        def counted(self, labels: torch.Tensor) -> int:
            return len(labels)

    head = Breaking()
    found = fit_weighing({"one": torch.ones(8, 1)}, torch.zeros(8), cast(TaskHead, head))
    assert head.calls >= 4
    # Better than the start, where the weight is 1.
    assert 1 < found.weights["one"] + found.bias < 4
