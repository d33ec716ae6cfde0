"""The page at ``/``: what is served here, and a command to try it with."""

from __future__ import annotations

import html
import json
import shlex
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
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1f24; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #d8dee4;
  vertical-align: top; }
code, pre { font: 14px/1.5 ui-monospace, monospace; }
pre { background: #f4f6f8; padding: .75rem 1rem; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$name</h1>
<p>A model served by bmnas over the Open Inference Protocol v2.</p>
<h2>Try it</h2>
<p>One sample of zeros, sent to the model:</p>
<pre>$example</pre>
<h2>Inputs</h2>
<table>
<tr><th>Name</th><th>Type</th><th>Shape</th><th>Meaning</th><th>Preprocessing</th></tr>
$inputs</table>
<h2>Outputs</h2>
<table>
<tr><th>Name</th><th>Type</th><th>Shape</th><th>Meaning</th><th></th></tr>
$outputs</table>
<p>A length of -1 is the batch: any number of samples.</p>
$classes<h2>Endpoints</h2>
<table>
<tr><th>Request</th><th>Answer</th></tr>
$endpoints</table>
</body>
</html>
""")


def describe(session: Session, base_url: str) -> dict[str, Any]:
    """Return the index as JSON-ready plain data; ``base_url`` ends without a slash."""
    return {
        "model": model_metadata(session),
        "endpoints": endpoints(session.name),
        "example": example_command(session.name, base_url),
    }


def endpoints(model: str) -> dict[str, str]:
    """Return every endpoint with what it answers."""
    root = f"/v2/models/{model}"
    return {
        "GET /v2": "the server: name and version",
        "GET /v2/health/live": "200 while the process runs",
        "GET /v2/health/ready": "200 while requests are welcome, 503 while stopping",
        f"GET {root}": "the model: inputs, outputs, class names",
        f"GET {root}/ready": "200 while the model takes requests, 503 while stopping",
        f"GET {root}/example.json": "a request of zeros, to send to infer",
        f"POST {root}/infer": "the outputs for the inputs in the body",
    }


def example_command(model: str, base_url: str) -> str:
    """Return a shell command that sends one sample of zeros to the model."""
    root = f"{base_url}/v2/models/{model}"
    return (
        f"curl -s {shlex.quote(f'{root}/example.json')} |"
        f" curl -s -H 'Content-Type: application/json' -d @- {shlex.quote(f'{root}/infer')}"
    )


def render(session: Session, base_url: str) -> str:
    """Return the index as an HTML page; every text that comes from outside is escaped."""
    index = describe(session, base_url)
    classes = index["model"].get("parameters", {}).get("class_names", [])
    return _PAGE.substitute(
        name=html.escape(session.name),
        example=html.escape(index["example"]),
        inputs="".join(_tensor_row(tensor) for tensor in index["model"]["inputs"]),
        outputs="".join(_tensor_row(tensor) for tensor in index["model"]["outputs"]),
        classes=_classes(classes),
        endpoints="".join(
            f"<tr><td><code>{html.escape(request)}</code></td><td>{html.escape(answer)}</td></tr>\n"
            for request, answer in index["endpoints"].items()
        ),
    )


def _tensor_row(tensor: dict[str, Any]) -> str:
    parameters = tensor.get("parameters", {})
    preprocessing = parameters.get("preprocessing")
    cells = (
        f"<code>{html.escape(tensor['name'])}</code>",
        tensor["datatype"],
        html.escape(str(tensor["shape"])),
        html.escape(parameters.get("meaning", "")),
        f"<code>{html.escape(json.dumps(preprocessing))}</code>" if preprocessing else "",
    )
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"


def _classes(names: list[str]) -> str:
    if not names:
        return ""
    return f"<h2>Classes</h2>\n<p>{html.escape(', '.join(names))}</p>\n"
