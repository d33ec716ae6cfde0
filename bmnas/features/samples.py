"""Batches of samples: raw inputs for backbones, pooled features for fusion networks.

Legend: B batch, L length, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bmnas.backbones.base import Backbone
from bmnas.features.mapped import Pages
from bmnas.features.transfer import CudaLane, Lane, Mark
from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.task import Array, Modality, Task

Batch = tuple[list[Tensor], Tensor]

_ENCODE_ROWS = 4096
_UNDER_WAY = 2  # steps that a device may have in its queue


class Samples(Protocol):
    """A set of labelled samples that yields batches by sample number."""

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batch(self, chosen: Tensor) -> Batch:
        """Return inputs and labels of the samples ``chosen`` (B,), numbers from 0."""
        ...

    def send(self, chosen: Tensor, lane: Lane) -> Batch:
        """Return what ``batch`` does, on the device of ``lane``, without waiting for it."""
        ...


def iterate_batches(
    samples: Samples, batches: Iterable[Tensor], device: torch.device
) -> Iterator[Batch]:
    """Yield inputs and labels of each of ``batches`` (B,) on ``device``.

    On an accelerator nothing waits for the work that the caller queues for a batch, but for that
    of the batch before the last.
    """
    if device.type == "cpu":
        yield from map(samples.batch, batches)
    else:
        yield from prefetch_batches(CudaLane(device), samples, batches)


def prefetch_batches(lane: Lane, samples: Samples, batches: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield inputs and labels of each of ``batches`` through ``lane``, see ``iterate_batches``."""
    under_way: deque[Mark] = deque()
    for chosen in batches:
        if len(under_way) == _UNDER_WAY:
            under_way.popleft().synchronize()
        yield samples.send(chosen, lane)
        # Resumed: the caller has queued its step.
        under_way.append(lane.mark())


def epoch_batches(count: int, batch_size: int) -> Iterator[Tensor]:
    """Yield the sample numbers of one epoch in random order, as equally large batches.

    What is left over after the last whole batch is skipped, so that every batch has one shape;
    a set smaller than one batch is one batch. Draws from torch's global generator. Raises
    UserError for batches of one, of which BatchNorm has no statistics.
    """
    order = torch.randperm(count)
    size = min(batch_size, count)
    if size < 2:
        raise UserError(f"received {count} samples in batches of {size}, expected batches of 2")
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Return how many batches ``epoch_batches`` yields."""
    return max(1, count // batch_size)


def samples_per_epoch(count: int, batch_size: int) -> int:
    """Return how many samples ``epoch_batches`` yields, those of its whole batches."""
    return batches_per_epoch(count, batch_size) * min(batch_size, count)


def label_tensor(task: Task, samples: Array) -> Tensor:
    """Return the labels of ``samples`` as losses take them: int64 (n,), float32 (n, K), …."""
    labels = np.asarray(task.labels[samples])
    return torch.from_numpy(labels.astype(task_kind(task.kind).dtype))


class RawInput:
    """One modality of some samples, in the form that its backbone takes.

    Strings are encoded once, everything else batch by batch, so that a memory-mapped array does
    not have to fit in memory.
    """

    def __init__(self, modality: Modality, backbone: Backbone, samples: Array) -> None:
        self._backbone = backbone
        self._rows = modality.rows_of(samples)
        self._data = modality.data
        self._encoded: Array | None = None
        if modality.data.dtype.kind in "UST":
            unique, self._rows = np.unique(self._rows, return_inverse=True)
            chunks = [
                backbone.encode(modality.data[unique[start : start + _ENCODE_ROWS]])
                for start in range(0, len(unique), _ENCODE_ROWS)
            ]
            self._encoded = np.concatenate(chunks)

    def batch(self, chosen: Tensor) -> Tensor:
        """Return the raw input (B, *shape) of the samples ``chosen`` (B,)."""
        rows = self._rows[chosen.numpy()]
        if self._encoded is not None:
            return torch.from_numpy(self._encoded[rows])
        return torch.from_numpy(np.ascontiguousarray(self._backbone.encode(self._data[rows])))


class RawSamples:
    """Raw inputs of several modalities with labels."""

    def __init__(self, inputs: Sequence[RawInput], labels: Tensor) -> None:
        self._inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def batch(self, chosen: Tensor) -> Batch:
        """Return one raw input per modality, and the labels, of the samples ``chosen`` (B,)."""
        return [source.batch(chosen) for source in self._inputs], self.labels[chosen]

    def send(self, chosen: Tensor, lane: Lane) -> Batch:
        """Return what ``batch`` does, copied by ``lane``."""
        inputs, labels = self.batch(chosen)
        *sent, labels = lane.send([*inputs, labels])
        return sent, labels


class FeatureSamples:
    """Pooled features of some samples with labels, read from arrays that need not fit in memory.

    ``names`` are the features; ``arrays[name]`` is (rows, L, C_raw), ``rows[modality]`` (samples,)
    says which row each sample uses. ``pages`` is told what was read, where arrays are mapped files.
    Arrays may lie on an accelerator, and be of half precision: batches are float32. ``labels`` are
    on the CPU.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        arrays: dict[str, Tensor],
        rows: dict[str, Tensor],
        labels: Tensor,
        pages: Pages | None = None,
    ) -> None:
        self.names = names
        self.labels = labels
        self._device = next(iter(arrays.values())).device
        self._labels = labels.to(self._device)
        self._pages = pages
        self._arrays = arrays
        self._rows = {modality: index.to(self._device) for modality, index in rows.items()}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @property
    def channels(self) -> dict[str, int]:
        """C_raw of every feature."""
        return {name: self._arrays[name].shape[-1] for name in self.names}

    @property
    def resident(self) -> bool:
        """Whether the features lie on an accelerator."""
        return self._device.type != "cpu"

    def select(self, names: Sequence[str]) -> FeatureSamples:
        """Return the same samples with the features ``names`` only, in that order."""
        return FeatureSamples(tuple(names), self._arrays, self._rows, self.labels, self._pages)

    def take(self, chosen: Tensor) -> FeatureSamples:
        """Return the samples ``chosen`` (n,) only, numbers from 0, in that order."""
        rows = {m: index[chosen.to(self._device)] for m, index in self._rows.items()}
        return FeatureSamples(self.names, self._arrays, rows, self.labels[chosen], self._pages)

    def averaged(self) -> FeatureSamples:
        """Return the same samples with features averaged over their positions, in memory.

        L of the new features is 1; they are float32 and lie where the old ones do. Rows that no
        sample uses are left out.
        """
        arrays, rows = {}, {}
        for modality, index in self._rows.items():
            used, rows[modality] = torch.unique(index, return_inverse=True)
            for name in self.names:
                if name.partition(".")[0] == modality:
                    arrays[name] = self._means(name, used)
        return FeatureSamples(self.names, arrays, rows, self.labels)

    def _means(self, name: str, used: Tensor) -> Tensor:
        """Return the feature ``name`` of the rows ``used``, averaged: (rows, 1, C_raw)."""
        means = []
        for chosen in used.split(_ENCODE_ROWS):
            stored = self._arrays[name].index_select(0, chosen)
            if self._pages is not None:
                self._pages.read(len(chosen), stored[0].nbytes)
            means.append(stored.float().mean(1, keepdim=True))
        return torch.cat(means)

    def batch(self, chosen: Tensor) -> Batch:
        """Return one (B, L, C_raw) tensor per feature, and the labels, of ``chosen`` (B,).

        They lie where the features do.
        """
        inputs, labels = self._gather(chosen.to(self._device), None)
        return [x.float() for x in inputs], labels

    def send(self, chosen: Tensor, lane: Lane) -> Batch:
        """Return what ``batch`` does, gathered on the device or copied by ``lane``."""
        if self.resident:
            return self.batch(*lane.send([chosen]))
        inputs, labels = self._gather(chosen, lane.empty)
        # As they are stored: half precision is half as much to copy.
        *sent, labels = lane.send([*inputs, labels])
        return [x.float() for x in sent], labels

    def _gather(
        self, chosen: Tensor, empty: Callable[[Sequence[int], torch.dtype], Tensor] | None
    ) -> Batch:
        """Return features as they are stored, in memory from ``empty`` if given, and labels."""
        rows = {m: index.index_select(0, chosen) for m, index in self._rows.items()}
        inputs = []
        for name in self.names:
            array, index = self._arrays[name], rows[name.partition(".")[0]]
            out = None if empty is None else empty((len(index), *array.shape[1:]), array.dtype)
            inputs.append(torch.index_select(array, 0, index, out=out))
            if self._pages is not None:
                self._pages.read(len(index), inputs[-1][0].nbytes)
        return inputs, self._labels.index_select(0, chosen)
