"""Batches of samples: raw inputs for backbones, pooled features for fusion networks.

Legend: B batch, L length, T tokens, C_raw channels of a raw feature, K classes.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from bmnas.backbones.base import Backbone
from bmnas.features.files import note_read
from bmnas.machine.errors import UserError
from bmnas.tasks.kinds import task_kind
from bmnas.tasks.rows import DRAWS, Rows, piece_rows, read_rows
from bmnas.tasks.task import Array, Modality, Task

T = TypeVar("T")

#: Samples that are computed at once in evaluation mode, at most.
AT_ONCE = 256
_ENCODE_ROWS = 4096
_SAMPLED_NUMBERS = 2_000_000
_UNDER_WAY = 2  # steps that a device may have in its queue


@dataclass(frozen=True)
class Batch:
    """Some samples as a network and its loss take them.

    ``inputs`` is one tensor a modality (raw inputs) or a feature, ``labels`` (B, …). Of inputs that
    are tokens (B, T, C_raw), ``masks`` says which count, (B, T) each; ``extras`` holds what else a
    task says of a sample, by name.
    """

    inputs: list[Tensor]
    labels: Tensor
    masks: tuple[Tensor, ...] = ()
    extras: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What a network is called with: the inputs; of tokens also the masks and the extras."""
        return (self.inputs, self.masks, self.extras) if self.masks else (self.inputs,)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; nobody waits for copies to CUDA."""
        inputs = [_sent(x, device) for x in self.inputs]
        masks = tuple(_sent(x, device) for x in self.masks)
        extras = {name: _sent(x, device) for name, x in self.extras.items()}
        return Batch(inputs, _sent(self.labels, device), masks, extras)

    def float(self) -> Batch:
        """Return the batch with inputs of float32, whatever type they are stored in."""
        return replace(self, inputs=[x.float() for x in self.inputs])


class Samples(Protocol):
    """A set of labelled samples that yields batches by sample number."""

    @property
    def at_once(self) -> int:
        """How many are computed at once in evaluation mode, at most."""
        ...

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def batch(self, chosen: Tensor, device: torch.device | None = None) -> Batch:
        """Return the samples ``chosen`` (B,), numbers from 0, on ``device`` or where they lie."""
        ...


def iterate_batches(
    samples: Samples, batches: Iterable[Tensor], device: torch.device
) -> Iterator[Batch]:
    """Yield the samples of each of ``batches`` (B,) on ``device``.

    What ``RawSamples`` must read first is read a batch ahead. On CUDA a batch is copied beside the
    computation, and nothing waits for the work that the caller queues for a batch but for that of
    the batch before the last: two are in memory.
    """
    ready = _read(samples, batches, device)
    if device.type != "cuda":
        yield from ready
        return
    copies = torch.cuda.Stream(device)
    copies.wait_stream(torch.cuda.current_stream(device))
    under_way: deque[torch.cuda.Event] = deque()
    while True:
        if len(under_way) == _UNDER_WAY:
            under_way.popleft().synchronize()
        with torch.cuda.stream(copies):
            batch = next(ready, None)
        if batch is None:
            return
        current = torch.cuda.current_stream(device)
        current.wait_stream(copies)
        for x in (*batch.inputs, batch.labels, *batch.masks, *batch.extras.values()):
            x.record_stream(current)  # its memory is not used again under the step
        yield batch
        # Resumed: the caller has queued its step.
        under_way.append(current.record_event())


def _read(samples: Samples, batches: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
    if isinstance(samples, RawSamples) and samples.lazy:
        for batch in ahead(samples.reading(chosen) for chosen in batches):
            yield batch.to(device)
    else:
        for chosen in batches:
            yield samples.batch(chosen, device)


def ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield what each of ``reads`` returns; the next is at work while the caller is."""
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[T]] = deque()
        for read in reads:
            coming.append(pool.submit(read))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def _sent(x: Tensor, device: torch.device) -> Tensor:
    pinned = device.type == "cuda" and x.device.type == "cpu"
    if pinned and not x.is_pinned():
        x = x.pin_memory()
    return x.to(device, non_blocking=pinned)


def epoch_batches(count: int, batch_size: int) -> Iterator[Tensor]:
    """Yield the sample numbers of one epoch in random order, as equally large batches.

    What is left over after the last whole batch is skipped, so that every batch has one shape;
    a set smaller than one batch is one batch. Draws from torch's global generator. Raises
    UserError for batches of one, of which BatchNorm has no statistics.
    """
    order = torch.randperm(count)
    size = min(batch_size, count)
    if size < 2:
        raise UserError(f"received {count} samples in batches of {size}, expected 2 or more")
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
    not have to fit in memory. ``change`` gets rows of the modality before the backbone does. Rows
    that stand for a modality which samples lack are ``nothing_of`` them.
    ``rows`` (n,) says which samples have the same one.
    ``lazy`` tells whether rows are read when they are asked for, ``varies`` whether training sees
    other parts of a row each time, ``at_once`` how many samples are computed at once where nobody
    says it: fewer of clips, whose maps are large.
    """

    def __init__(
        self,
        modality: Modality,
        backbone: Backbone,
        samples: Array,
        change: Callable[[Array], Array] | None = None,
    ) -> None:
        self._backbone, self._change = backbone, change
        self.rows = modality.rows_of(samples)
        self._data, self._absent = modality.data, modality.absent
        self.lazy = isinstance(modality.data, Rows)
        self.varies = isinstance(modality.data, Rows) and modality.data.varies
        self.at_once = min(AT_ONCE, piece_rows(modality.data))
        self._encoded: Array | None = None
        if modality.data.dtype.kind in "UST":
            unique, self.rows = np.unique(self.rows, return_inverse=True)
            chunks = [
                self._encode(unique[start : start + _ENCODE_ROWS])
                for start in range(0, len(unique), _ENCODE_ROWS)
            ]
            self._encoded = np.concatenate(chunks)

    def batch(self, chosen: Tensor, draws: Array | None = None) -> Tensor:
        """Return the raw input (B, *shape) of the samples ``chosen`` (B,).

        With ``draws`` (B, DRAWS) it is what training sees of them, see ``Rows.varied``.
        """
        rows = self.rows[chosen.numpy()]
        if self._encoded is not None:
            return torch.from_numpy(self._encoded[rows])
        return torch.from_numpy(np.ascontiguousarray(self._encode(rows, draws)))

    def _encode(self, numbers: Array, draws: Array | None = None) -> Array:
        rows = read_rows(self._data, numbers, draws)
        if self._absent is not None and (lacking := self._absent[numbers]).any():
            rows = np.array(rows)
            rows[lacking] = nothing_of(rows[lacking])
        return self._backbone.encode(rows if self._change is None else self._change(rows))


def nothing_of(rows: Array) -> Array:
    """Return what stands for ``rows`` (n, *axes) where a modality is lacking: zeros, or no text."""
    return np.full_like(rows, "") if rows.dtype.kind in "UT" else np.zeros_like(rows)


class RawSamples:
    """Raw inputs of several modalities with labels.

    For ``training`` rows that vary do so, and each batch draws from torch's global generator.
    ``lazy`` tells whether some are read when they are asked for.
    """

    def __init__(
        self, inputs: Sequence[RawInput], labels: Tensor, *, training: bool = False
    ) -> None:
        self.inputs = inputs
        self._varies = training and any(source.varies for source in inputs)
        self.lazy = any(source.lazy for source in inputs)
        self.at_once = min(source.at_once for source in inputs)
        self.labels = labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def batch(self, chosen: Tensor, device: torch.device | None = None) -> Batch:
        """Return one raw input per modality, and the labels, of the samples ``chosen`` (B,)."""
        batch = self.reading(chosen)()
        return batch if device is None else batch.to(device)

    def reading(self, chosen: Tensor) -> Callable[[], Batch]:
        """Return what reads the samples ``chosen`` (B,), in any thread: its draws are made now."""
        draws = self.draws(len(chosen))

        def read() -> Batch:
            inputs = [source.batch(chosen, draws) for source in self.inputs]
            return Batch(inputs, self.labels[chosen])

        return read

    def draws(self, count: int) -> Array | None:
        """Return numbers by chance (count, DRAWS) for rows that vary, None where none do."""
        return torch.rand(count, DRAWS).double().numpy() if self._varies else None


def train_rows(task: Task, modality: Modality) -> Array:
    """Return the train rows: all of texts and tokens, of others an evenly spaced sample."""
    used = np.unique(modality.rows_of(task.having(modality, "train")))
    if modality.type not in ("text", "tokens"):
        size = max(1, math.prod(modality.data.shape[1:]))
        count = min(len(used), 4096, max(16, _SAMPLED_NUMBERS // size))
        used = used[np.linspace(0, len(used) - 1, count).astype(np.int64)]
    return np.asarray(read_rows(modality.data, used))


def train_samples(task: Task, modality: Modality, backbone: Backbone, samples: Array) -> RawSamples:
    """Return ``samples`` (n,) as the training of ``backbone`` sees them."""
    source = RawInput(modality, backbone, samples)
    return RawSamples([source], label_tensor(task, samples), training=True)


@dataclass(frozen=True)
class FeatureSamples:
    """Features of some samples with labels, read from arrays that need not fit in memory.

    ``names`` are the features; ``arrays[name]`` is (rows, L, C_raw), ``rows[modality]`` (samples,)
    says which row each sample uses. Arrays may be mapped files (``MappedArrays``) or lie on an
    accelerator, and be of half precision: batches are float32. ``labels`` are on the CPU. Of
    features that are tokens, ``masks[name]`` (rows, T) says which count; ``extras`` are further
    tensors (samples, …) by name.
    """

    names: tuple[str, ...]
    arrays: Mapping[str, Tensor]
    rows: Mapping[str, Tensor]
    labels: Tensor
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    at_once: ClassVar[int] = AT_ONCE

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @property
    def channels(self) -> dict[str, int]:
        """C_raw of every feature."""
        return {name: self.arrays[name].shape[-1] for name in self.names}

    @property
    def device(self) -> torch.device:
        """Where the features lie."""
        return next(iter(self.arrays.values())).device

    @property
    def resident(self) -> bool:
        """Whether the features lie on an accelerator."""
        return self.device.type != "cpu"

    def select(self, names: Sequence[str]) -> FeatureSamples:
        """Return the same samples with the features ``names`` only, in that order."""
        return replace(self, names=tuple(names))

    def take(self, chosen: Tensor) -> FeatureSamples:
        """Return the samples ``chosen`` (n,) only, numbers from 0, in that order."""
        return replace(
            self,
            rows={m: index[chosen.to(index.device)] for m, index in self.rows.items()},
            labels=self.labels[chosen],
            extras={name: extra[chosen] for name, extra in self.extras.items()},
        )

    def averaged(self) -> FeatureSamples:
        """Return the same samples with features averaged over their positions, in memory.

        L of the new features is 1; they are float32 and lie where the old ones do. Rows that no
        sample uses are left out. Raises ValueError for tokens, of which some do not count.
        """
        if self.masks:
            raise ValueError("received tokens, expected pooled features")
        arrays, rows = {}, {}
        for modality, index in self.rows.items():
            used, rows[modality] = torch.unique(index, return_inverse=True)
            for name in self.names:
                if name.partition(".")[0] == modality:
                    arrays[name] = self._means(name, used)
        return replace(self, arrays=arrays, rows=rows)

    def _means(self, name: str, used: Tensor) -> Tensor:
        """Return the feature ``name`` of the rows ``used``, averaged: (rows, 1, C_raw)."""
        means = []
        for chosen in used.to(self.device).split(_ENCODE_ROWS):
            stored = self.arrays[name].index_select(0, chosen)
            note_read(self.arrays, stored)
            means.append(stored.float().mean(1, keepdim=True))
        return torch.cat(means)

    def batch(self, chosen: Tensor, device: torch.device | None = None) -> Batch:
        """Return one (B, L, C_raw) tensor per feature, and the labels, of ``chosen`` (B,)."""
        pin = device is not None and device.type == "cuda" and self.device.type == "cpu"
        here, chosen = self._here, _sent(chosen, self.device)
        rows = {m: index.index_select(0, chosen) for m, index in here.rows.items()}
        inputs, masks = [], []
        for name in self.names:
            array, index = self.arrays[name], rows[name.partition(".")[0]]
            shape = (len(index), *array.shape[1:])
            # Into memory that CUDA copies from at full speed, as they are stored: half precision
            # is half as much to copy.
            out = torch.empty(shape, dtype=array.dtype, pin_memory=True) if pin else None
            inputs.append(torch.index_select(array, 0, index, out=out))
            note_read(self.arrays, inputs[-1])
            if name in self.masks:
                masks.append(self.masks[name].index_select(0, index))
        extras = {name: extra.index_select(0, chosen) for name, extra in here.extras.items()}
        batch = Batch(inputs, here.labels.index_select(0, chosen), tuple(masks), extras)
        return (batch if device is None else batch.to(device)).float()

    @functools.cached_property
    def _here(self) -> FeatureSamples:
        """The same samples with all that says which and what they are beside the features."""
        device = self.device
        return replace(
            self,
            rows={modality: index.to(device) for modality, index in self.rows.items()},
            labels=self.labels.to(device),
            extras={name: extra.to(device) for name, extra in self.extras.items()},
        )
