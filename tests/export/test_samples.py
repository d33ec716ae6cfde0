from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from bmnas_export.measure import SampleInputs
from tiny_networks import tiny_network, tiny_task

from bmnas.machine.errors import UserError
from bmnas.tasks.task import Task


def inputs_of(task: Task, trained_on: Task | None = None) -> SampleInputs:
    trained = tiny_network(trained_on or task)
    return SampleInputs(task, trained.task, trained.network)


def test_batches_are_spread_over_the_test_part() -> None:
    task = tiny_task(("vector", "image"), test=9)
    inputs = inputs_of(task)
    assert len(inputs) == 9
    batch = inputs.batch(3)
    assert list(batch) == ["m0", "m1"]
    vectors, images = (
        modality.data[task.samples("test")[[0, 4, 8]]] for modality in task.modalities
    )
    np.testing.assert_array_equal(batch["m0"].numpy(), vectors.astype(np.float32))
    np.testing.assert_array_equal(batch["m1"].numpy(), images)
    assert batch["m1"].dtype == torch.uint8


def test_a_small_test_part_is_repeated() -> None:
    batch = inputs_of(tiny_task(("vector", "vector"), test=3)).batch(7)
    assert batch["m0"].shape == (7, 5)
    assert len(batch["m0"].unique(dim=0)) == 3


def test_another_task_is_refused() -> None:
    task = tiny_task(("vector", "vector"))
    other = dataclasses.replace(task, name="pets", class_names=("ant", "bee", "cow"))
    with pytest.raises(
        UserError,
        match=r"task pets: received multiclass with 3 classes \(ant, bee, cow\), but the network"
        r" was trained on tiny: multiclass with 3 classes \(cat, dog, owl\)",
    ):
        inputs_of(other, trained_on=task)
    labels = tiny_task(("vector", "vector"), kind="multilabel")
    with pytest.raises(UserError, match="received multilabel with 3 classes"):
        inputs_of(labels, trained_on=task)


def test_modalities_of_other_names_are_refused() -> None:
    task = tiny_task(("vector", "vector"))
    other = tiny_task(("vector", "vector"), names=("left", "right"))
    with pytest.raises(UserError, match="received modality 'm0', expected one of left, right"):
        inputs_of(other, trained_on=task)


def test_rows_of_another_shape_are_refused() -> None:
    task = tiny_task(("vector", "vector"))
    wide = dataclasses.replace(task.modalities[0], data=np.ones((88, 6)))
    other = dataclasses.replace(task, modalities=(wide, task.modalities[1]))
    with pytest.raises(UserError, match="6"):
        inputs_of(other, trained_on=task).batch(1)


def test_spoiled_test_data_is_told() -> None:
    task = tiny_task(("vector", "vector"))
    trained = tiny_network(task)
    task.modalities[1].data[task.samples("test")[3]] = float("nan")
    with pytest.raises(UserError, match="modality m1: NaN"):
        SampleInputs(task, trained.task, trained.network)


def test_without_test_samples_there_is_nothing_to_compare() -> None:
    task = tiny_task(("vector", "vector"))
    trained = tiny_network(task)
    none = dataclasses.replace(task, part=np.where(task.part == 2, 1, task.part))
    with pytest.raises(UserError, match="test"):
        SampleInputs(none, trained.task, trained.network)
