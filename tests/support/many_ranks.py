"""Real processes that find each other as those of torchrun do, without its seconds of start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from command_line import Printed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_ranks(folder: Path, *words: object, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """Start ``python <words>`` in ``folder`` once for each rank."""
    told = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
    }
    return [
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


def ended(process: subprocess.Popen[str]) -> Printed:
    """Wait for a process and return what it left behind."""
    out, err = process.communicate(timeout=240)
    return Printed(process.returncode, out, err)


def run_ranks(folder: Path, *words: object, ranks: int = 2) -> list[Printed]:
    """Run ``python <words>`` on several ranks to their ends."""
    return [ended(process) for process in start_ranks(folder, *words, ranks=ranks)]
