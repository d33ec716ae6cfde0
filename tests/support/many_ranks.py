"""Real processes of one run that find each other as those of torchrun do, in less time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import Printed
from torch.distributed import TCPStore


@contextmanager
def started_ranks(folder: Path, *words: object, ranks: int = 2) -> Iterator[list[subprocess.Popen]]:
    """Run ``python <words>`` in ``folder`` once for each rank; this process keeps their store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    told = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(ranks),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env={**told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(process: subprocess.Popen[str]) -> Printed:
    """Wait for a process and return what it left behind."""
    out, err = process.communicate(timeout=240)
    return Printed(process.returncode, out, err)


def run_ranks(folder: Path, *words: object, ranks: int = 2) -> list[Printed]:
    """Run ``python <words>`` on several ranks to their ends."""
    with started_ranks(folder, *words, ranks=ranks) as processes:
        return [ended(process) for process in processes]
