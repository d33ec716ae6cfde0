"""``python -m bmnas.cli.workers ORDER.json``: a process that does one run of many."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from bmnas.machine.errors import UserError, one_line

if TYPE_CHECKING:
    from bmnas.lab.engines import Workers


def workers(count: int, retries: int) -> Workers:
    """Return the processes that do runs: Python with this module."""
    from bmnas.lab.engines import Workers

    return Workers((sys.executable, "-m", "bmnas.cli.workers"), count, retries)


def _end_with_parent() -> None:
    # Not sys.stdin, whose lock Python wants for itself when it ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def _main() -> None:
    from bmnas.cli.export import export_run
    from bmnas.lab.job import do_order
    from bmnas.machine.files import read_json

    # Ctrl-C ends it without a word.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        do_order(read_json(Path(sys.argv[1])), export_run)
    except UserError as error:
        print(one_line(error), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main()
