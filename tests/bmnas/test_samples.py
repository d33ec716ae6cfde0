from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_tasks import Fragile, changed, tiny_task
from torch import Tensor

from bmnas.backbones import build_backbone
from bmnas.features.files import moved
from bmnas.features.pairs import RawPairSamples
from bmnas.features.samples import (
    FeatureSamples,
    RawInput,
    RawSamples,
    batches_per_epoch,
    epoch_batches,
    iterate_batches,
    label_tensor,
    samples_per_epoch,
)
from bmnas.machine.errors import UserError
from bmnas.tasks import Modality, check_task
from bmnas.tasks import Rows as LazyRows
from bmnas.tasks.task import Array


class Rows:
    """A backbone's encoder that doubles, and counts the rows that it is given."""

    def __init__(self) -> None:
        self.rows = 0

    def encode(self, rows: Array) -> Array:
        self.rows += len(rows)
        if rows.dtype.kind == "U":
            return np.array([[len(text)] for text in rows])
        return 2 * rows


@given(st.integers(2, 200), st.integers(2, 60))
def test_an_epoch_is_counted_as_it_runs(count: int, batch_size: int) -> None:
    batches = list(epoch_batches(count, batch_size))
    assert len(batches) == batches_per_epoch(count, batch_size)
    assert sum(map(len, batches)) == samples_per_epoch(count, batch_size)
    seen = torch.cat(batches)
    assert len(seen.unique()) == len(seen)
    assert {len(batch) for batch in batches} == {min(count, batch_size)}


@pytest.mark.parametrize(("count", "batch_size"), [(1, 8), (8, 1)])
def test_batches_of_one_are_refused(count: int, batch_size: int) -> None:
    with pytest.raises(UserError, match=f"{count} samples in batches of 1, expected 2 or more"):
        list(epoch_batches(count, batch_size))


def test_the_order_is_drawn_anew_and_repeats_with_the_seed() -> None:
    torch.manual_seed(0)
    first, second = (torch.cat(list(epoch_batches(64, 16))) for _ in range(2))
    torch.manual_seed(0)
    again = torch.cat(list(epoch_batches(64, 16)))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_labels_have_the_type_that_the_loss_takes() -> None:
    samples = np.array([2, 0])
    task = tiny_task()
    labels = label_tensor(task, samples)
    assert labels.dtype == torch.int64
    assert labels.tolist() == task.labels[samples].tolist()
    labels = label_tensor(tiny_task(kind="multilabel"), samples)
    assert (labels.dtype, labels.shape) == (torch.float32, (2, 2))


def test_raw_rows_are_encoded_batch_by_batch() -> None:
    modality = Modality("a", "vector", np.arange(20.0).reshape(10, 2))
    rows = Rows()
    source = RawInput(modality, rows, np.array([3, 5, 7]))  # type: ignore[arg-type]
    assert rows.rows == 0
    found = source.batch(torch.tensor([2, 0]))
    assert found.tolist() == [[28.0, 30.0], [12.0, 14.0]]
    assert rows.rows == 2


def test_raw_rows_are_not_copied_from_a_file_as_a_whole(tmp_path: object) -> None:
    path = f"{tmp_path}/rows.npy"
    np.save(path, np.arange(20.0).reshape(10, 2))
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    source = RawInput(Modality("a", "vector", mapped), Rows(), np.arange(10))  # type: ignore[arg-type]
    assert isinstance(source._data, np.memmap)
    assert source.batch(torch.tensor([4])).tolist() == [[16.0, 18.0]]


def test_shared_media_are_found_through_the_index() -> None:
    data = np.array([[1.0], [10.0]])
    modality = Modality("a", "vector", data, index=np.array([1, 0, 1, 0]))
    source = RawInput(modality, Rows(), np.array([0, 1, 2]))  # type: ignore[arg-type]
    assert source.batch(torch.tensor([0, 1, 2])).flatten().tolist() == [20.0, 2.0, 20.0]


def test_texts_are_encoded_once_each() -> None:
    texts = np.array(["a", "four", "never used"])
    modality = Modality("a", "text", texts, index=np.array([1, 0, 1, 1]))
    rows = Rows()
    source = RawInput(modality, rows, np.arange(4))  # type: ignore[arg-type]
    assert rows.rows == 2
    for _ in range(2):
        found = source.batch(torch.tensor([0, 1, 3]))
        assert found.flatten().tolist() == [4, 1, 4]
    assert rows.rows == 2


def test_raw_samples_join_modalities_and_labels() -> None:
    task = tiny_task()
    used = task.samples("validation")
    inputs = [RawInput(modality, Rows(), used) for modality in task.modalities]  # type: ignore[arg-type]
    samples = RawSamples(inputs, label_tensor(task, used))
    assert len(samples) == len(used)
    batch = samples.batch(torch.tensor([1, 4]))
    (first, second), labels = batch.inputs, batch.labels
    for found, modality in zip((first, second), task.modalities, strict=True):
        assert np.array_equal(found.numpy(), 2 * modality.data[used[[1, 4]]])
    assert labels.tolist() == task.labels[used[[1, 4]]].tolist()


class Drawn(LazyRows):
    """Rows that are their number, and in training what was drawn."""

    shape, dtype, varies = (9, 4), np.dtype(np.float32), True

    def __getitem__(self, numbers: Array) -> Array:
        return np.repeat(numbers[:, None], 4, 1).astype(np.float32)

    def varied(self, numbers: Array, draws: Array) -> Array:
        return (self[numbers] + draws).astype(np.float32)

    def digest(self, numbers: Array) -> str:
        return ""


def test_training_draws_for_rows_that_vary_the_same_for_all_modalities() -> None:
    chosen, labels = torch.tensor([1, 4, 4]), torch.zeros(9)
    used = np.arange(9)
    inputs = [RawInput(Modality(n, "vector", Drawn()), Rows(), used) for n in "ab"]  # type: ignore[arg-type]
    plain, training = RawSamples(inputs, labels), RawSamples(inputs, labels, training=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(plain.batch(chosen).inputs[0], 2 * chosen[:, None].float().expand(3, 4))
    fixed = RawInput(Modality("c", "vector", np.ones((9, 2))), Rows(), used)  # type: ignore[arg-type]
    RawSamples([fixed], labels, training=True).batch(chosen)
    assert torch.equal(torch.get_rng_state(), before)
    first, second = training.batch(chosen).inputs
    assert torch.equal(first, second)
    draws = first / 2 - chosen[:, None]
    assert (draws >= 0).all()
    assert (draws < 1).all()
    assert len(draws.unique()) == 12
    assert not torch.equal(training.batch(chosen).inputs[0], first)
    torch.set_rng_state(before)
    assert torch.equal(training.batch(chosen).inputs[0], first)
    pairs = RawPairSamples(inputs, torch.arange(9), training=True).batch(chosen).inputs
    varied = torch.cat([(x / 2) % 1 for x in pairs])
    assert len(varied.unique()) > 12


def test_what_is_read_lazily_is_read_a_batch_ahead_and_draws_in_order() -> None:
    asked: list[int] = []
    second = threading.Event()

    class Slow(Drawn):
        def varied(self, numbers: Array, draws: Array) -> Array:
            asked.append(int(numbers[0]))
            if len(asked) == 2:
                second.set()
            return super().varied(numbers, draws)

    inputs = [RawInput(Modality("a", "vector", Slow()), Rows(), np.arange(9))]  # type: ignore[arg-type]
    samples = RawSamples(inputs, torch.zeros(9), training=True)
    batches = [torch.tensor([n, n + 1]) for n in (0, 4, 7)]
    torch.manual_seed(0)
    expected = [samples.batch(chosen).inputs[0] for chosen in batches]
    asked.clear()
    second.clear()
    torch.manual_seed(0)
    found = []
    for batch in iterate_batches(samples, iter(batches), torch.device("cpu")):
        assert second.wait(10)  # while the first one is computed
        found.append(batch.inputs[0])
    assert asked == [0, 4, 7]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_real_backbone_encodes_what_it_takes() -> None:
    task = changed(tiny_task(), 0, data=tiny_task().modalities[0].data.astype(np.float64))
    modality = task.modalities[0]
    backbone = build_backbone(modality, classes=4, rows=modality.data)
    found = RawInput(modality, backbone, np.arange(5)).batch(torch.tensor([0, 4]))
    assert (found.dtype, found.shape) == (torch.float32, (2, 6, 3))


def feature_samples(dtype: torch.dtype = torch.float32) -> FeatureSamples:
    arrays = {
        "image.1": torch.arange(12.0).reshape(3, 2, 2).to(dtype),
        "audio.1": torch.arange(8.0).reshape(2, 2, 2).to(dtype),
    }
    rows = {"image": torch.tensor([0, 2, 2, 1]), "audio": torch.tensor([0, 1, 0, 1])}
    return FeatureSamples(("image.1", "audio.1"), arrays, rows, torch.tensor([3, 2, 1, 0]))


def test_features_of_a_batch_are_those_of_its_rows() -> None:
    samples = feature_samples()
    assert len(samples) == 4
    assert samples.channels == {"image.1": 2, "audio.1": 2}
    batch = samples.batch(torch.tensor([3, 1]))
    (image, audio), labels = batch.inputs, batch.labels
    assert image.tolist() == [[[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert audio.tolist() == [[[4, 5], [6, 7]], [[4, 5], [6, 7]]]
    assert labels.tolist() == [0, 2]


def test_features_are_selected_in_the_order_asked_for() -> None:
    samples = feature_samples()
    audio, image = samples.select(["audio.1", "image.1"]).batch(torch.tensor([0])).inputs
    assert torch.equal(audio[0], samples.batch(torch.tensor([0])).inputs[1][0])
    assert torch.equal(image[0], samples.batch(torch.tensor([0])).inputs[0][0])
    only = samples.select(["image.1"])
    assert (only.names, only.channels) == (("image.1",), {"image.1": 2})
    assert len(only.batch(torch.tensor([0, 1])).inputs) == 1


def test_samples_are_taken_in_the_order_asked_for() -> None:
    samples = feature_samples()
    taken = samples.take(torch.tensor([3, 1, 0]))
    assert len(taken) == 3
    assert taken.labels.tolist() == samples.labels[[3, 1, 0]].tolist()
    found, wanted = taken.batch(torch.tensor([2, 0])), samples.batch(torch.tensor([0, 3]))
    assert all(torch.equal(x, y) for x, y in zip(found.inputs, wanted.inputs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_are_averaged_over_their_positions(dtype: torch.dtype) -> None:
    samples = feature_samples(dtype)
    averaged = samples.averaged()
    batch = averaged.batch(torch.tensor([3, 1]))
    (image, audio), labels = batch.inputs, batch.labels
    # Of [[4, 5], [6, 7]] and [[8, 9], [10, 11]].
    assert image.tolist() == [[[5, 6]], [[9, 10]]]
    assert audio.tolist() == [[[5, 6]], [[5, 6]]]
    assert labels.tolist() == samples.batch(torch.tensor([3, 1])).labels.tolist()
    assert (image.dtype, averaged.names) == (torch.float32, samples.names)


def test_rows_that_no_sample_uses_are_not_averaged() -> None:
    averaged = feature_samples().take(torch.tensor([1])).averaged()
    assert {name: len(array) for name, array in averaged.arrays.items()} == {
        "image.1": 1,
        "audio.1": 1,
    }
    assert averaged.batch(torch.tensor([0])).inputs[0].tolist() == [[[9, 10]]]


def test_labels_follow_the_parts_in_their_order() -> None:
    task = dataclasses.replace(tiny_task(samples=6), labels=np.arange(6) % 4)
    assert label_tensor(task, task.samples("validation", "train")).tolist() == [1, 0, 0, 3]


def test_a_batch_is_taken_from_its_source_when_it_is_due() -> None:
    # The share of a batch that several ranks have is forgotten once its source has ended.
    taken: list[int] = []

    def source() -> Iterator[Tensor]:
        for number in range(3):
            taken.append(number)
            yield torch.tensor([number])
        taken.append(-1)

    batches = iterate_batches(feature_samples(), source(), torch.device("cpu"))
    for number, _ in enumerate(batches):
        assert taken == list(range(number + 1))
    assert taken[-1] == -1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_are_used_in_float32(dtype: torch.dtype) -> None:
    batch = feature_samples(dtype).batch(torch.tensor([3, 1]))
    assert {x.dtype for x in batch.inputs} == {torch.float32}
    assert torch.equal(batch.inputs[0], torch.arange(12.0).reshape(3, 2, 2)[[1, 2]])


@pytest.mark.parametrize("resident", [True, False])
def test_batches_reach_the_device_from_there_and_from_here(resident: bool) -> None:
    here, device = feature_samples(), torch.device("meta")
    arrays = moved(here.arrays, here.names, device) if resident else here.arrays
    samples = FeatureSamples(here.names, arrays, here.rows, here.labels)
    assert samples.resident == samples.select(["audio.1"]).resident == resident
    assert samples.labels.device.type == "cpu"
    batch = samples.batch(torch.tensor([3, 1]), device)
    assert [(x.device.type, x.shape) for x in batch.inputs] == [("meta", (2, 2, 2))] * 2
    assert batch.labels.device.type == "meta"


def test_on_a_cpu_batches_are_what_the_samples_give() -> None:
    samples = feature_samples()
    found = list(iterate_batches(samples, torch.arange(4).split(2), torch.device("cpu")))
    assert [batch.labels.tolist() for batch in found] == [[3, 2], [1, 0]]
    assert torch.equal(found[1].inputs[0], samples.batch(torch.tensor([2, 3])).inputs[0])


def test_a_row_that_cannot_be_read_is_told_with_what_to_do() -> None:
    task = tiny_task()
    broken = changed(task, 0, data=Fragile(np.asarray(task.modalities[0].data), {3}))
    backbone = build_backbone(
        task.modalities[0], classes=4, rows=np.asarray(task.modalities[0].data)
    )
    source = RawInput(broken.modalities[0], backbone, np.arange(96))
    match = "file 3: cannot be read: bmnas check finds all such files, and with --leave-out"
    with pytest.raises(UserError, match=match):
        source.batch(torch.arange(8))
    with pytest.raises(UserError, match=match):
        check_task(broken)
