"""The page at ``/``: what is served here, and a command to try it with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from html import escape
from string import Template
from typing import Any

from bmnas_serve.metadata import model_metadata
from bmnas_serve.session import Session

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #d8dee4;
  vertical-align: top; }
pre { background: #f4f6f8; padding: .75rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$name</h1>
<p>A model served by bmnas over the Open Inference Protocol v2.</p>
<h2>Try it</h2>
<p>One sample of zeros, sent to the model:</p>
<pre>$example</pre>
<h2>Inputs</h2>
$inputs
<h2>Outputs</h2>
$outputs
<p>A length of -1 is the batch: any number of samples.</p>
$classes
<h2>Endpoints</h2>
$endpoints
</body>
</html>
""")


def describe(session: Session, base_url: str) -> dict[str, Any]:
    """Return the index as JSON-ready plain data; ``base_url`` ends without a slash.

    ``example`` is a shell command that sends one sample of zeros to the model.
    """
    root = f"/v2/models/{session.name}"
    sample, infer = (shlex.quote(f"{base_url}{root}/{end}") for end in ("example.json", "infer"))
    return {
        "model": model_metadata(session),
        "endpoints": {
            "GET /v2": "the server: name and version",
            "GET /v2/health/live": "200 while the process runs",
            "GET /v2/health/ready": "200 while requests are welcome, 503 while stopping",
            f"GET {root}": "the model: inputs, outputs, class names",
            f"GET {root}/ready": "200 while the model takes requests, 503 while stopping",
            f"GET {root}/example.json": "a request of zeros, to send to infer",
            f"POST {root}/infer": "the outputs for the inputs in the body",
        },
        "example": f"curl -s {sample} | curl -s -H 'Content-Type: application/json' -d @- {infer}",
    }


def render(session: Session, base_url: str) -> str:
    """Return the index as an HTML page; every text that comes from outside is escaped."""
    index = describe(session, base_url)
    model = index["model"]
    classes = model.get("parameters", {}).get("class_names", [])
    return _PAGE.substitute(
        name=escape(session.name),
        example=escape(index["example"]),
        inputs=_tensors(model["inputs"]),
        outputs=_tensors(model["outputs"]),
        classes=f"<h2>Classes</h2>\n<p>{escape(', '.join(classes))}</p>" if classes else "",
        endpoints=_table(("Request", "Answer"), index["endpoints"].items()),
    )


def _tensors(tensors: list[dict[str, Any]]) -> str:
    rows = []
    for tensor in tensors:
        about = tensor.get("parameters", {})
        steps = json.dumps(about["preprocessing"]) if "preprocessing" in about else ""
        shape = str(tensor["shape"])
        rows.append((tensor["name"], tensor["datatype"], shape, about.get("meaning", ""), steps))
    return _table(("Name", "Type", "Shape", "Meaning", "Preprocessing"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
        for tag, cells in (("th", head), *(("td", row) for row in rows))
    ]
    return "<table>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"
