from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from bmnas.features.samples import FeatureSamples
from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import UNSEEN_LABEL, LabelScale
from bmnas.training.heads import calibration_error, head_for, macro_f1, weighted_f1
from bmnas.training.metrics import evaluate

CPU = torch.device("cpu")


def f1_by_counting(predicted: np.ndarray, actual: np.ndarray) -> float:
    """The definition: F1 of each label from its counts, weighted by its occurrences."""
    total = 0.0
    for label in range(actual.shape[1]):
        hits = np.sum(predicted[:, label] & actual[:, label])
        wrong = np.sum(predicted[:, label] ^ actual[:, label])
        if hits:
            total += actual[:, label].sum() * 2 * hits / (2 * hits + wrong)
    return float(total / actual.sum()) if actual.any() else 0.0


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


@settings(deadline=None)
@given(SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape)] * 2)))
def test_weighted_f1_is_its_definition(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = arrays
    assert weighted_f1(predicted, actual) == pytest.approx(f1_by_counting(predicted, actual))


@settings(deadline=None)
@given(SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.bool_, shape)] * 2)))
def test_macro_f1_is_the_mean_over_labels(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, actual = arrays
    labels = range(actual.shape[1])
    each = [f1_by_counting(predicted[:, [k]], actual[:, [k]]) for k in labels]
    assert macro_f1(predicted, actual) == pytest.approx(np.mean(each))


def test_only_tasks_with_labels_have_a_macro_f1() -> None:
    logits, labels = torch.tensor([[2.0, -2.0], [2.0, 2.0]]), torch.tensor([[1.0, 0.0]] * 2)
    # The first label is always right, the second once predicted and never there.
    assert head_for("multilabel", 0.5).macro_f1(logits, labels) == 0.5
    assert head_for("matching").macro_f1(logits, labels) is None


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_accuracy_is_that_of_scikit_learn(count: int, classes: int, seed: int) -> None:
    from sklearn.metrics import accuracy_score

    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(count, classes)), rng.integers(0, classes, count)
    found = head_for("multiclass").score(torch.from_numpy(logits), torch.from_numpy(labels))
    assert found == pytest.approx(accuracy_score(labels, logits.argmax(1)))


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 6), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_the_score_of_labels_is_weighted_f1_of_probabilities(
    count: int, classes: int, threshold: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=(count, classes)), rng.integers(0, 2, (count, classes))
    probabilities = 1 / (1 + np.exp(-logits))
    found = head_for("multilabel", threshold).score(
        torch.from_numpy(logits), torch.from_numpy(labels).float()
    )
    assert found == pytest.approx(f1_by_counting(probabilities > threshold, labels == 1))


def test_losses_have_their_hand_values() -> None:
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0]])
    # Probabilities of the right class: 1/2 and 3/4.
    expected = -(np.log(1 / 2) + np.log(3 / 4)) / 2
    assert float(head_for("multiclass").loss(logits, torch.tensor([0, 0]))) == pytest.approx(
        expected
    )
    # Probabilities of the right answers: 1/2, 1/2, 3/4, 1/2.
    expected = -(3 * np.log(1 / 2) + np.log(3 / 4)) / 4
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(head_for("multilabel").loss(logits, labels)) == pytest.approx(expected)


def test_metrics_have_their_names() -> None:
    assert head_for("multiclass").metric == "accuracy"
    assert head_for("multilabel").metric == "weighted_f1"


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_losses_of_several_networks_are_each_ones_own(kind: str) -> None:
    torch.manual_seed(0)
    scale = LabelScale((0.0,) * 4, (1.0,) * 4)
    head, logits = head_for(kind, scale=scale), torch.randn(10, 3, 4)
    labels = torch.randint(0, 4, (10,))
    if kind != "multiclass":
        labels = torch.randint(0, 2, (10, 4)).float()
    expected = torch.stack([head.loss(logits[:, n], labels) for n in range(3)])
    # Sums of ten float32 numbers in another order.
    torch.testing.assert_close(head.network_losses(logits, labels), expected)
    assert head.summed_loss(logits.unbind(1), labels).item() == pytest.approx(expected.sum().item())


def test_a_class_that_train_does_not_have_counts_as_wrong_and_in_no_loss() -> None:
    torch.manual_seed(0)
    head, logits, labels = head_for("multiclass"), torch.randn(10, 3, 4), torch.randint(0, 4, (10,))
    logits.requires_grad_()
    unseen = torch.arange(10) % 3 == 0
    some = torch.where(unseen, UNSEEN_LABEL, labels)
    losses = head.network_losses(logits, some)
    torch.testing.assert_close(losses, head.network_losses(logits[~unseen], labels[~unseen]))
    torch.testing.assert_close(losses[1], head.loss(logits[:, 1], some))
    losses.sum().backward()
    assert logits.grad is not None
    assert not logits.grad[unseen].any()
    right = logits[:, 0].argmax(1) == labels
    assert head.score(logits[:, 0], some) == float(right[~unseen].sum()) / 10
    # A batch may hold nothing else.
    assert head.loss(logits[:, 0], torch.full((10,), UNSEEN_LABEL)) == 0


def test_the_best_threshold_is_the_lowest_of_equals_on_the_grid() -> None:
    # Labels at 0.9 and 0.32, the rest at 0.12: everything from 0.15 to 0.30 separates them, and
    # from 0.20 on the neighbours do too.
    probabilities = torch.tensor([[0.9, 0.12], [0.12, 0.32], [0.12, 0.12]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert head_for("multilabel").best_threshold(probabilities.logit(), labels) == 0.2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_best_threshold_has_good_neighbours(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits = torch.randn(20, 3, generator=generator)
    labels = torch.randint(0, 2, (20, 3), generator=generator).float()
    grid = [round(0.05 * step, 2) for step in range(1, 20)]
    scores = np.array([head_for("multilabel", t).score(logits, labels) for t in grid])
    padded = np.pad(scores, 1, constant_values=np.nan)
    means = np.nanmean([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    chosen = head_for("multilabel").best_threshold(logits, labels)
    # Sums in another order may differ in the last bit.
    assert means[grid.index(chosen)] == pytest.approx(means.max(), abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_without_a_threshold_a_score_is_that_of_the_best_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits = torch.randn(20, 3, generator=generator)
    labels = torch.randint(0, 2, (20, 3), generator=generator).float()
    head = head_for("multilabel")
    best = head_for("multilabel", head.best_threshold(logits, labels))
    assert head.score(logits, labels) == best.score(logits, labels)
    with pytest.raises(UserError, match="received no threshold"):
        head.decide(logits)


def test_the_calibration_error_is_that_of_probabilities_and_frequencies() -> None:
    # Ten answers of probability .9, nine right; ten of .6, three right: 0 and .3 apart.
    probabilities = torch.tensor([0.9] * 10 + [0.6] * 10)
    right = torch.tensor([True] * 9 + [False] + [True] * 3 + [False] * 7)
    assert calibration_error(probabilities, right) == pytest.approx(0.15)
    logits = torch.stack([probabilities.log(), (1 - probabilities).log()], 1)
    labels = (~right).long()
    assert head_for("multiclass").calibration_error(logits, labels) == pytest.approx(0.15)
    found = head_for("multilabel").calibration_error(probabilities.logit()[:, None], right[:, None])
    assert found == pytest.approx(0.15)


class Spy(nn.Module):
    """Notes how it is called: batch sizes, mode, whether gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.dropout = nn.Dropout(0.9)
        self.batches: list[int] = []

    def forward(self, inputs: list[Tensor]) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(inputs[0]))
        logits: Tensor = self.linear(self.dropout(inputs[0]).flatten(1))
        return logits


def test_evaluation_sees_every_sample_once_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    data, labels = torch.randn(300, 1, 2), torch.randint(0, 3, (300,))
    samples = FeatureSamples(("a.1",), {"a.1": data}, {"a": torch.arange(300)}, labels)
    network = Spy().train()
    found = evaluate(network, network, samples, head_for("multiclass"), CPU)
    assert sum(network.batches) == 300
    assert len(network.batches) > 1
    logits = network.linear(data.flatten(1)).detach()
    assert torch.allclose(found.logits, logits, atol=1e-6)
    # The mean over samples, not over batches of different sizes.
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert found.score == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
