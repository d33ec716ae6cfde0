"""``python -m bmnas.sweep JOB.json``: one job of a sweep, in a process that may be lost."""

from __future__ import annotations

import sys
from pathlib import Path

from bmnas.files import read_json
from bmnas.sweep.job import user_error


def _main() -> None:
    problem = user_error(read_json(Path(sys.argv[1])))
    if problem is not None:
        print(problem, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    _main()
