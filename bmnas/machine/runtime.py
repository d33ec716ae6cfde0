"""Where computation runs: device, torch.compile, seeds of the stages, threads and workers.

Workers have one thread each, and there are as many as processor cores: so a result does not depend
on the number of workers, and none waits for another, as threads do after every operation.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bmnas.machine.costs import proc_entry
from bmnas.machine.distributed import world_size
from bmnas.machine.errors import UserError, one_line
from bmnas.machine.progress import Progress

#: Products in bfloat16, as Linux calls them: AVX-512, AMX, Arm.
_BFLOAT16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
#: Shorter loops are compiled on request alone: at 10 ms a step, what compiling takes cold.
PAYS_FROM = 5000


@dataclass(frozen=True)
class Runtime:
    """A device, and whether networks go through torch.compile on it.

    Loops of fewer than ``pays_from`` steps do not: compiling would take longer than they do. It is
    steps that count, not seconds, so that a run that goes on decides as it did before.
    """

    device: torch.device
    compile: bool
    pays_from: int = 0

    @classmethod
    def choose(cls, device: str = "auto", compile: bool | None = None) -> Runtime:  # noqa: A002
        """Return the runtime for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        ``auto`` takes the accelerator where there is one. Networks are compiled if ``compile`` is
        True, and with None on CUDA, by loops of ``PAYS_FROM`` steps or more. Several
        ranks have a GPU each, and do not compile: SyncBatchNorm talks in the middle of a pass.
        Raises UserError for a device that is not there.
        """
        if world_size() > 1:
            if compile:
                raise UserError(
                    "received --compile with several processes, expected no such option"
                )
            return cls(_device_of_rank(device), compile=False)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        if device not in ("cpu", *gpus, *(["cuda"] if gpus else [])):
            raise UserError(
                f"received device {device!r}, expected one of those here: "
                f"{', '.join(['auto', 'cpu', *gpus])}"
            )
        chosen = torch.device(device)
        if compile is None and chosen.type == "cuda":
            return cls(chosen, compile=True, pays_from=PAYS_FROM)
        return cls(chosen, compile=bool(compile))

    def computes_bfloat16(self) -> bool:
        """Tell whether the device multiplies matrices in bfloat16, and not by way of float32."""
        if self.device.type == "cuda":
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return not _BFLOAT16.isdisjoint(proc_entry("cpuinfo", "flags", "Features").split())

    def autocast(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``forward`` with its matrix products in bfloat16, and its results in float32."""

        def call(*inputs: Any) -> Any:
            with torch.autocast(self.device.type, torch.bfloat16):
                found = forward(*inputs)
            return tuple(x.float() for x in found) if isinstance(found, tuple) else found.float()

        return call

    def mixed(
        self, forward: Callable[..., Any], precision: str, progress: Progress
    ) -> Callable[..., Any]:
        """Return ``forward`` in ``precision``, float32 or bfloat16, see ``autocast``.

        A note says where the device has no products in bfloat16: then all is float32.
        """
        if precision != "bfloat16":
            return forward
        if self.computes_bfloat16():
            return self.autocast(forward)
        progress.note("this processor has no products in bfloat16: going on in float32")
        return forward

    def compiles(self, steps: float) -> bool:
        """Tell whether a loop of ``steps`` steps runs compiled."""
        return self.compile and steps >= self.pays_from

    def compiled(self, network: nn.Module, steps: float = math.inf) -> Callable[..., Any]:
        """Return a callable that runs ``network`` in a loop of ``steps``, compiled if that pays.

        In torch.compile's default mode, which launches kernels one by one. CUDA graphs, its mode
        ``reduce-overhead``, would put every result into memory that the next call overwrites, where
        ``fit`` and ``evaluate`` keep logits until an epoch ends. Shapes are static as long as they
        stay the same, as all batches of a pass do.
        """
        if not self.compiles(steps):
            return network
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))
        compiled: Callable[..., Any] = torch.compile(network)
        return compiled


def in_full_precision(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``call(x)``, in float32 where products around it are not, see ``Runtime.autocast``."""
    if not torch.is_autocast_enabled(x.device.type):
        return call(x)
    with torch.autocast(x.device.type, enabled=False):
        return call(x)


def cache_folder() -> Path:
    """Return where compiled code and engines are kept: ``bmnas`` in ``XDG_CACHE_HOME``, ~/.cache.

    A user id without a home, as in containers, has a temporary folder for this process; a note on
    standard error says so.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bmnas"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError) as error:
        return _temporary_folder(one_line(error))
    return folder


@functools.cache
def _temporary_folder(reason: str) -> Path:
    # A new one: in a folder of a known name another user could leave code for us.
    folder = Path(tempfile.mkdtemp(prefix="bmnas-"))
    print(
        f"note: compiled code is kept in {folder}, as there is no home to write to ({reason}): "
        "XDG_CACHE_HOME names a folder that stays",
        file=sys.stderr,
    )
    return folder


def check_seed(seed: int) -> None:
    """Raise UserError for a seed below 0."""
    if seed < 0:
        raise UserError(f"--seed: received {seed}, expected 0 or more")


def seed_stage(seed: int, stage: str) -> None:
    """Seed torch for a stage, so that no stage depends on how many draws another made."""
    torch.manual_seed(stage_seed(seed, stage))


def stage_seed(seed: int, stage: str) -> int:
    """Return the seed of a stage, below 2**63."""
    digest = hashlib.sha256(f"{seed} {stage}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work with one thread in this block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def worker_pool(
    workers: int, prepare: Callable[..., None], *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of new processes that each called ``prepare(*arguments)`` first.

    They end with this process, whatever ends it. Raises UserError when one was killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (prepare, arguments)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process ended early: it was killed, perhaps for want of memory, or the "
                'calling script does not start its work under `if __name__ == "__main__":`'
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # Ctrl-C reaches workers as well: they end without a word. So they do when the parent is killed.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    prepare(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _device_of_rank(device: str) -> torch.device:
    """Return the CPU, or this rank's own GPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(
            f"received device {device!r}, expected auto, cpu or cuda with several processes: each "
            "takes the GPU of its number"
        )
    count = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    number = int(os.environ["LOCAL_RANK"])
    if number >= count:
        raise UserError(
            f"received process {number + 1} on this machine, expected at most {count}, as it has "
            f"{count} GPUs: lower --nproc-per-node, or give --device cpu"
        )
    return torch.device("cuda", number)
