"""``python -m bmnas.lab.sweep JOB.json``: one job of a sweep, in a process that may be lost."""

from __future__ import annotations

import sys
from pathlib import Path

from bmnas.lab.sweep.job import user_error
from bmnas.machine.files import read_json


def _main() -> None:
    problem = user_error(read_json(Path(sys.argv[1])))
    if problem is not None:
        print(problem, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main()
