from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from bmnas_export.errors import ExportError, ParityError
from bmnas_export.measure import TOLERANCE, ParityReport, SampleInputs, measure_parity
from bmnas_export.prepare import reference_network
from bmnas_serve.session import Session
from numpy.typing import NDArray
from tiny_networks import tiny_network, tiny_task

from bmnas.pipeline.multimodal import MultimodalNetwork

Array = NDArray[Any]
Change = Callable[[Array], Array]


class FakeSession:
    """Answers with the network's logits after ``change``, and their probabilities."""

    def __init__(self, network: MultimodalNetwork, kind: str, change: Change) -> None:
        self.network = network
        self.kind = kind
        self.change = change

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            logits = self.network(*map(torch.from_numpy, inputs.values())).numpy()
        logits = self.change(logits.astype(np.float64)).astype(np.float32)
        return {"logits": logits, "probabilities": self.probabilities(torch.from_numpy(logits))}

    def probabilities(self, logits: torch.Tensor) -> Array:
        squashed = logits.softmax(-1) if self.kind == "multiclass" else logits.sigmoid()
        return squashed.numpy()


def compare(
    change: Change,
    *,
    kind: str = "multiclass",
    test: int = 70,
    session: type[FakeSession] = FakeSession,
    spoil: Callable[[MultimodalNetwork], object] | None = None,
) -> ParityReport:
    task = tiny_task(("vector", "vector"), kind=kind, test=test)
    trained = tiny_network(task)
    network = reference_network(trained.network)
    if spoil is not None:
        spoil(network)
    inputs = SampleInputs(task, trained.task, network)
    fake = cast(Session, session(network, kind, change))
    return measure_parity(network, fake, inputs, trained.task.head)


def test_equal_answers_pass_with_the_figures() -> None:
    report = compare(lambda logits: logits)
    assert report.passed
    assert [batch.batch for batch in report.batches] == [1, 2, 7, 64]
    # Torch computes other batches than those that it is compared in.
    assert report.difference < 1e-6
    assert report.rows == report.agree == 74
    shown = report.to_dict()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert (shown["passed"], shown["tolerance"]) == (True, 1e-5)
    assert shown["batches"]["7"]["agree"] == 7
    assert shown["test_samples"] == 70


def test_a_small_test_part_is_compared_as_a_whole() -> None:
    report = compare(lambda logits: logits, test=5)
    assert [batch.batch for batch in report.batches] == [1, 2, 5]
    assert report.available == 5
    assert report.to_dict()["compared"] == 8


def shifted(fraction: float, scale: float) -> Change:
    def change(logits: Array) -> Array:
        moved = logits.copy()
        moved[-1, 0] += fraction * scale
        return moved

    return change


def test_the_tolerance_is_on_logits_scaled_by_the_largest() -> None:
    scale = compare(lambda logits: logits).scale
    assert compare(shifted(0.9 * TOLERANCE, scale)).difference > 0.7 * TOLERANCE
    with pytest.raises(ParityError) as caught:
        compare(shifted(1.2 * TOLERANCE, scale))
    message = str(caught.value)
    assert message.startswith("onnxruntime and torch differ by more than 1e-05 on logits scaled by")
    assert ": batch 1: logits 1.2e-05, probabilities" in message
    assert "64 of 64 agree" in message
    assert "\n" not in message


def test_classes_that_differ_are_counted() -> None:
    def swap(logits: Array) -> Array:
        swapped = logits.copy()
        swapped[0] = -swapped[0]
        return swapped

    with pytest.raises(
        ParityError, match=r"0 of 1 agree.*1 of 2 agree.*6 of 7 agree.*63 of 64 agr"
    ):
        compare(swap)


def test_labels_agree_at_the_threshold_of_the_task() -> None:
    # 0.4: a logit of -0.1 is a label (0.475), one of -0.5 is none (0.378).
    task = tiny_task(("vector", "vector"), kind="multilabel")
    assert tiny_network(task).task.threshold == 0.4

    def reference(network: MultimodalNetwork) -> None:
        torch.nn.init.zeros_(network.fusion.classifier.weight)  # type: ignore[arg-type]
        torch.nn.init.constant_(network.fusion.classifier.bias, -0.1)  # type: ignore[arg-type]

    report = compare(lambda logits: logits, kind="multilabel", spoil=reference)
    assert report.agree == 74
    with pytest.raises(ParityError, match="0 of 1 agree"):
        compare(lambda logits: logits - 0.4, kind="multilabel", spoil=reference)
    # 0.475 and 0.512: both are labels here, at 0.5 only one would be.
    with pytest.raises(ParityError, match="1 of 1 agree"):
        compare(lambda logits: logits + 0.15, kind="multilabel", spoil=reference)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_never_passes(value: float) -> None:
    def last(logits: Array) -> Array:
        spoiled = logits.copy()
        if len(logits) == 7:
            spoiled[3, 1] = value
        return spoiled

    with pytest.raises(ParityError, match=r"batch 7: logits (nan|inf)"):
        compare(last)


def test_a_network_that_is_not_finite_itself_is_told() -> None:
    def spoil(network: MultimodalNetwork) -> None:
        torch.nn.init.constant_(network.fusion.classifier.bias, float("nan"))  # type: ignore[arg-type]

    with pytest.raises(ExportError, match="the trained network itself gives logits that are NaN"):
        compare(lambda logits: logits, spoil=spoil)


def test_one_sample_that_torch_makes_nan_is_told() -> None:
    task = tiny_task(("vector", "vector"))
    trained = tiny_network(task)
    network = reference_network(trained.network)

    def spoiled(*args: object) -> torch.Tensor:
        logits = cast(torch.Tensor, args[-1]).clone()
        if len(logits) == 16:  # what torch computes at a time
            logits[5] = float("nan")
        return logits

    network.register_forward_hook(spoiled)
    inputs = SampleInputs(task, trained.task, network)
    fake = cast(Session, FakeSession(network, "multiclass", lambda logits: logits))
    with pytest.raises(ExportError, match="the trained network itself gives logits that are NaN"):
        measure_parity(network, fake, inputs, trained.task.head)


def test_a_network_whose_answers_depend_on_the_batch_is_told() -> None:
    def mix(network: MultimodalNetwork) -> None:
        network.register_forward_hook(lambda *call: call[-1] - call[-1].mean(0))

    with pytest.raises(ParityError, match="differ by more than"):
        compare(lambda logits: logits, spoil=mix)


def test_zero_logits_are_compared_without_a_scale() -> None:
    def silence(network: MultimodalNetwork) -> None:
        for parameter in network.fusion.classifier.parameters():
            torch.nn.init.zeros_(parameter)

    report = compare(lambda logits: logits, spoil=silence)
    assert (report.scale, report.difference) == (0, 0)


class WrongProbabilities(FakeSession):
    def probabilities(self, logits: torch.Tensor) -> Array:
        return logits.sigmoid().numpy()


class Transposed(FakeSession):
    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array[:, :2] for name, array in super().run(inputs).items()}


def test_wrong_probabilities_fail_although_the_logits_are_right() -> None:
    with pytest.raises(ParityError, match=r"batch 7: logits \S+, probabilities 0\.\d+, 7 of 7 agr"):
        compare(lambda logits: logits, session=WrongProbabilities)


def test_another_number_of_classes_is_told() -> None:
    with pytest.raises(
        ParityError, match=r"returned logits \[1, 2\] and .*, torch logits \[1, 3\]"
    ):
        compare(lambda logits: logits, session=Transposed)


def test_a_report_with_nan_says_so() -> None:
    good = compare(lambda logits: logits)
    bad = dataclasses.replace(good.batches[1], difference=float("nan"))
    report = dataclasses.replace(good, batches=(good.batches[0], bad, *good.batches[2:]))
    assert np.isnan(report.difference)
    assert not report.passed
