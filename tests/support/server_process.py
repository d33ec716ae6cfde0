"""A server in a process of its own, as ``bmnas serve`` starts it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MAIN = """
import json, sys
from pathlib import Path
from bmnas_serve.connection import ConnectionLimits
from bmnas_serve.server import serve
from bmnas_serve.settings import Settings
options = json.loads(sys.argv[2])
limits = ConnectionLimits(**options.pop("connections", {}))
for name in ("certificate", "key"):
    options[name] = Path(options[name]) if name in options else None
serve(Path(sys.argv[1]), Settings(port=0, threads=1, connections=limits, **options))
"""
READY = re.compile(
    r"serving .* at https?://(127\.0\.0\.1:\d+)( and gRPC at (127\.0\.0\.1:\d+))? \(stop .*\n"
)


class Server:
    """``serve`` on ports that it chose: ``address`` is that of HTTP, ``grpc`` that of gRPC."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", MAIN, str(path), json.dumps(options)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "serve")},
        )
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        found = READY.fullmatch(first)
        assert found, first + self.process.stderr.read()
        self.address, self.grpc = found[1], found[3]

    def get(self, path: str) -> tuple[int, Any]:
        """Return status and body; every call opens a connection of its own."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def stop(self) -> tuple[int, str]:
        """Return the exit status after a signal was sent, and the rest of standard error."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.communicate()
