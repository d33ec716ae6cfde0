"""Several processes at one run, started by torchrun: torch.distributed for the loops of bmnas.

Every process (a rank) trains on its part of each batch. Rank zero decides, writes files and talks;
the others hear of it by broadcast. With one process every function here is free.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from bmnas.machine.errors import UserError
from bmnas.machine.files import remove_leftovers

T = TypeVar("T")
Forward = Callable[..., Any]

#: The others wait while rank zero writes or evaluates; a process that ended is noticed at once.
_TIMEOUT = datetime.timedelta(days=1)
_FAILED = "bmnas/failed"
_LOST = "another process of this run was lost; go on with --resume"


def world_size() -> int:
    """Return how many processes share the work; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Tell whether this process is the one that decides, writes files and talks."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        # Of a CPU tensor, so by gloo: dist.barrier() takes nccl where there is a GPU.
        dist.all_reduce(torch.zeros(1))


def on_rank_zero(work: Callable[[], Any]) -> None:
    """Let rank zero do ``work``; the others wait until it is done."""
    if is_rank_zero():
        work()
    barrier()


def broadcast(value: T) -> T:
    """Return rank zero's ``value`` to every process."""
    if world_size() == 1:
        return value
    dist.broadcast_object_list(values := [value], src=0)
    return values[0]


def broadcast_buffers(network: nn.Module) -> None:
    """Give the buffers of ``network``, such as running statistics, the values of rank zero."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def gather(value: T) -> list[T]:
    """Return the ``value`` of every process, by rank, to every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes on the CPU, by rank; n may differ."""
    return torch.cat(gather(rows.detach().cpu()))


def mean(value: Tensor) -> Tensor:
    """Return the mean of ``value`` over the processes."""
    if world_size() > 1:
        dist.all_reduce(value := value.clone())
        value /= world_size()
    return value


def split_batches(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield this process's part of each of ``batches``, sample numbers of equal count.

    Rank zero's batches count. Parts are equally large; what is left over is left out. The other
    ranks go on with random numbers of their own, which follow from those of rank zero, so that a
    run that is resumed draws them again. Raises UserError for a part of fewer than two samples.
    """
    size, own = world_size(), rank()
    if size == 1:
        yield from batches
        return
    chosen, seed = broadcast((torch.stack(list(batches)), int(torch.randint(2**62, ()))))
    if own > 0:
        torch.manual_seed(seed + own)
    part = chosen.shape[1] // size
    if part < 2:
        raise UserError(
            f"received batches of {chosen.shape[1]} samples for {size} processes, expected two "
            "samples or more for each: raise --batch-size, or lower --nproc-per-node"
        )
    for batch in chosen:
        yield batch[own * part : (own + 1) * part]


def data_parallel(
    network: nn.Module, parameters: Sequence[nn.Parameter], forward: Forward
) -> Forward:
    """Return ``forward`` such that backward averages the gradients of ``parameters`` over ranks.

    ``parameters``, which must want gradients now, start everywhere as they are at rank zero; other
    ones are not touched, so one network may have several optimisers. On CUDA (not run on two GPUs
    yet) the BatchNorms of ``network``, which ``forward`` runs, become SyncBatchNorms; on a CPU each
    process normalises its own part. ``network.single_path``: every step reads other parameters.
    """
    if world_size() == 1:
        return forward
    if parameters[0].is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    varies = bool(getattr(network, "single_path", False))
    # A static graph may leave out parameters too, and finds out once which.
    return DistributedDataParallel(
        _Step(parameters, forward), find_unused_parameters=varies, static_graph=not varies
    )


class _Step(nn.Module):
    """A forward as a module that owns the given parameters and nothing else."""

    def __init__(self, parameters: Sequence[nn.Parameter], forward: Forward) -> None:
        super().__init__()
        self.owned = nn.ParameterList(parameters)
        # In a tuple: a module in an attribute would bring its other parameters along.
        self._forward = (forward,)

    def forward(self, *arguments: Any) -> Any:
        return self._forward[0](*arguments)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Run a command on all processes that torchrun started; elsewhere do nothing.

    The first process to fail raises its error; the others leave silently with its exit status, 2
    for a UserError, else 1. Where one was killed, the first to notice raises ConnectionError.
    """
    if "MASTER_ADDR" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    store, number, size = next(iter(rendezvous("env://")))
    cuda = torch.cuda.is_available()
    gpu = int(os.environ["LOCAL_RANK"])
    if cuda and gpu < torch.cuda.device_count():
        torch.cuda.set_device(gpu)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=_TIMEOUT)
    try:
        yield
        barrier()
    except BaseException as error:
        failed = store.compare_set(_FAILED, "", f"{number} {_status(error)}").decode().split()
        if not cuda:
            # The others notice that the connection is closed. With nccl, which was not tried,
            # closing may wait for them; there torchrun ends them.
            dist.destroy_process_group()
        if int(failed[0]) != number:
            raise SystemExit(int(failed[1])) from None
        if _is_connection_lost(error):
            raise ConnectionError(_LOST) from error
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def lock_folders(run: Path, backbones: Path | None = None) -> Iterator[None]:
    """Lock the folder of a run and that of its backbones, made if need be.

    What killed writers left in them is removed. Of several ranks, which must see the same folders,
    rank zero holds the locks until all are done. Raises UserError when another process holds one,
    or when one cannot be written.
    """
    with contextlib.ExitStack() as locks:
        if is_rank_zero():
            locks.enter_context(_lock(run, "--run"))
            if backbones is not None and backbones.resolve() != run.resolve():
                locks.enter_context(_lock(backbones, "--backbones"))
        barrier()
        yield
        barrier()


@contextlib.contextmanager
def _lock(folder: Path, option: str) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; choose another folder with {option}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another bmnas process is at work there; wait for it, or choose "
                "another folder"
            ) from error
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be locked: {error.strerror}; choose a folder on another file "
                f"system with {option}"
            ) from error
        remove_leftovers(folder)
        yield


def _status(error: BaseException) -> int:
    # format_message: a wrong option, in the terms of typer.
    wrong = isinstance(error, UserError | ModuleNotFoundError) or hasattr(error, "format_message")
    return 2 if wrong else 1


def _is_connection_lost(error: BaseException) -> bool:
    """Tell whether ``error`` is what a collective raises when its peer has gone."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
