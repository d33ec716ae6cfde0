"""``bmnas tasks``: the tasks that have a name."""

from __future__ import annotations

from typing import Any

from bmnas.cli.options import Json
from bmnas.cli.output import print_facts, print_json


def tasks(as_json: Json = False) -> None:
    """List the registered tasks: data, samples, licence, expected time and score.

    A task of your own is a task.toml file, see docs/your-own-data.md.

    Example: bmnas tasks --json
    """
    from bmnas.tasks import REGISTERED

    listed = [_facts(name) for name in REGISTERED]
    if as_json:
        print_json({"tasks": listed})
        return
    for facts in listed:
        shown = facts | {
            "modalities": ", ".join(facts["modalities"]),
            "samples": ", ".join(f"{part} {n:,}" for part, n in facts["samples"].items()),
        }
        print_facts([(k.replace("_", " "), str(v)) for k, v in shown.items()], facts["name"])


def _facts(name: str) -> dict[str, Any]:
    from bmnas.pipeline.presets import read_preset
    from bmnas.tasks import load_task
    from bmnas.tasks.task import PARTS

    task = load_task(name)
    promise = read_preset(task.preset)["promise"]
    return {
        "name": name,
        "kind": task.kind,
        "classes": task.classes,
        "modalities": [
            f"{m.name} ({m.type} {'x'.join(map(str, m.data.shape[1:]))})" for m in task.modalities
        ],
        "samples": {part: len(task.samples(part)) for part in PARTS},
        "licence": task.licence,
        "expected_time": promise["time"],
        "expected_score": promise["score"],
    }
