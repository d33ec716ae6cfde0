"""What the processes of one run tell each other. With one process every function is free."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

#: Ranks wait for what one of them does alone; one that ended breaks the connection at once.
_PATIENCE = datetime.timedelta(days=1)

_alone = False


def join() -> Any:
    """Join the processes that torchrun started: gloo for a CPU, nccl for CUDA.

    Returns a store that all of them can reach.
    """
    store, rank, ranks = next(iter(rendezvous("env://")))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        if local_rank() < torch.cuda.device_count():
            torch.cuda.set_device(local_rank())
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    return PrefixStore("bmnas", store)


def leave() -> None:
    """Wait for the others and part from them."""
    wait()
    # Before the interpreter ends: gloo's threads must not outlive it.
    _gloo_beside.cache_clear()
    dist.destroy_process_group()


def abandon() -> None:
    """Part from the others without waiting: this process or another one failed."""
    _gloo_beside.cache_clear()
    if not torch.cuda.is_available():
        # nccl would wait for work that nobody finishes; torchrun ends it.
        dist.destroy_process_group()


def size() -> int:
    """Return how many processes share the work; 1 without torchrun."""
    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Share no work: what is done within, every process does as if there were no others."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if size() > 1 else 0


def local_rank() -> int:
    """Return the number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def writer() -> bool:
    """Tell whether this process is the one that writes files and talks."""
    return rank() == 0


def wait() -> None:
    """Wait until every process has come here."""
    if size() > 1:
        # Not dist.barrier(), which would go through a GPU where there is one.
        dist.all_reduce(torch.zeros(1), group=_control())


def first(work: Callable[[], Any]) -> None:
    """Let the writer do ``work``, and wait until it is done.

    Where it raises, the others learn from the broken connection.
    """
    if writer():
        work()
    wait()


def agreed(flag: bool) -> bool:
    """Return what the writer thinks, to every process."""
    return bool(from_writer(torch.tensor([flag], dtype=torch.int64)).item())


def agreed_text(text: str) -> str:
    """Return the writer's text to every process."""
    if size() == 1:
        return text
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    length = int(from_writer(torch.tensor([len(content)])).item())
    if not writer():
        content = torch.empty(length, dtype=torch.uint8)
    return bytes(from_writer(content).tolist()).decode()


def from_writer(value: Tensor) -> Tensor:
    """Return the writer's ``value``, a tensor of one shape and type on every CPU."""
    if size() > 1:
        dist.broadcast(value, src=0, group=_control())
    return value


def mean(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over the processes."""
    if size() > 1:
        dist.all_reduce(value)
        value = value / size()
    return value


def gathered(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes on the CPU, in the order of their ranks.

    Each may bring another number of them.
    """
    if size() == 1:
        return rows
    own = rows.detach().cpu().contiguous()
    counts = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([len(own)]), group=_control())
    longest = max(int(count) for count in counts)
    padded = own.new_zeros((longest, *own.shape[1:]))
    padded[: len(own)] = own
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded, group=_control())
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])


def span(count: int, unit: int = 1) -> range:
    """Return this process's stretch of 0 … count, cut at multiples of ``unit``.

    Those of all processes, in order, are the whole.
    """
    blocks = -(-count // unit)
    start, stop = (blocks * number // size() * unit for number in (rank(), rank() + 1))
    return range(min(start, count), min(stop, count))


def _control() -> Any:
    return _gloo_beside(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _gloo_beside(world: Any) -> Any:
    """Return a group for CPU tensors with the members of ``world``, whatever backend that has."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)
