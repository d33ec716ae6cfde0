"""``bmnas tasks``: the tasks that have a name."""

from __future__ import annotations

from bmnas.cli.options import Json
from bmnas.cli.output import print_facts, print_json


def tasks(as_json: Json = False) -> None:
    """List the registered tasks: data, samples, licence, expected time and score.

    A task of your own is a task.toml file, see docs/your-own-data.md.

    Example: bmnas tasks --json
    """
    from bmnas.tasks import REGISTERED

    if as_json:
        print_json({"tasks": [_facts(name) for name in REGISTERED]})
        return
    for name in REGISTERED:
        facts = _facts(name).items()
        shown = [(k.replace("_", " "), _words(v)) for k, v in facts if v not in ({}, "", name)]
        print_facts(shown, name)


def _facts(name: str) -> dict[str, object]:
    from bmnas.pipeline.presets import read_preset
    from bmnas.tasks import REGISTERED

    task = REGISTERED[name]
    # A registered task has a preset of its own name, which says what was measured with it.
    promise = read_preset(name)["promise"]
    train, validation, test = task.samples
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": task.classes,
        "modalities": list(task.modalities),
        "samples": {"train": train, "validation": validation, "test": test},
        "options": {option: list(values) for option, values in task.options.items()},
        "data": task.origin,
        "data_present": task.present(),
        "licence": task.licence,
        "expected_time": promise["time"],
        "expected_score": promise["score"],
    }


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(
            f"{key}={'|'.join(v)}" if isinstance(v, list) else f"{key} {_words(v)}"
            for key, v in value.items()
        )
    return str(value)
