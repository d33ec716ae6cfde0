from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Serves one request in a process where torch and bmnas cannot be imported.
PROGRAM = """
import asyncio, importlib.abc, json, pkgutil, sys
from pathlib import Path

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "bmnas", "bmnas_export", "onnx", "tritonclient"):
            raise ImportError(f"{name} is not for the server")
        return None

sys.meta_path.insert(0, Block())
import bmnas_serve
for module in pkgutil.iter_modules(bmnas_serve.__path__):
    __import__(f"bmnas_serve.{module.name}")

from bmnas_serve.batcher import Batcher
from bmnas_serve.codec import decode_request, encode_response
from bmnas_serve.metadata import example_json
from bmnas_serve.session import Session

session = Session.open(Path(sys.argv[1]))
body = example_json(session)
request = decode_request(body, session.inputs, session.outputs, 8)
batcher = Batcher(session)
outputs = asyncio.run(batcher.predict(request.inputs))
batcher.close()
print(len(encode_response("pets", "1", request, outputs)[0]["outputs"]))
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"torch", "bmnas", "bmnas_export", "onnx", "tritonclient"}, loaded
"""


def test_the_server_needs_neither_torch_nor_bmnas(tmp_path):
    from tiny_bundles import save_bundle

    folder = save_bundle(tmp_path / "pets")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "serve")},
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")
