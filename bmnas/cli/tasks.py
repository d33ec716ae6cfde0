"""``bmnas tasks`` and ``bmnas presets``: the tasks and the settings that come with the package."""

from __future__ import annotations

from typing import Annotated

from typer import Argument

from bmnas.cli.options import Json
from bmnas.cli.output import print_facts, print_json
from bmnas.pipeline.config import DEFAULT, load_preset, preset_names, read_preset
from bmnas.tasks import FOLDER_TASKS, REGISTERED
from bmnas.tasks.task import PARTS


def tasks(as_json: Json = False) -> None:
    """List the registered tasks: data, samples, licence, expected time and score.

    A task of your own is a task.toml file, see docs/your-own-data.md.

    Example: bmnas tasks --json
    """
    found = [*map(_facts, REGISTERED), *map(_facts_of_folder, FOLDER_TASKS)]
    if as_json:
        print_json({"tasks": found})
        return
    for facts in found:
        title = str(facts.pop("name"))
        print_facts(facts, title)


def presets(
    name: Annotated[str | None, Argument(help="Print this one as a file to change.")] = None,
    as_json: Json = False,
) -> None:
    """List the presets: what each is for, the expected time and score, its settings.

    With a name the preset is printed as TOML: a file that --preset of search and train takes.

    Example: bmnas presets quick > mine.toml
    """
    found = {n: load_preset(n) for n in (preset_names() if name is None else [name])}
    if as_json:
        print_json({"presets": [{"name": n, **c.promise, **c.to_dict()} for n, c in found.items()]})
    elif name is not None:
        print(found[name].to_toml(), end="")
    else:
        for title, config in found.items():
            print_facts({**config.promise, **config.to_dict()}, title)


def _facts(name: str) -> dict[str, object]:
    task = REGISTERED[name]
    return {
        "name": name,
        "kind": task.kind,
        "classes": task.classes,
        "modalities": list(task.modalities),
        "samples": dict(zip(PARTS, task.samples, strict=True)),
        "licence": task.licence,
        **_expected(task.preset),
    }


def _facts_of_folder(name: str) -> dict[str, object]:
    task = FOLDER_TASKS[name]
    samples = {} if task.samples is None else dict(zip(PARTS, task.samples, strict=True))
    return {
        "name": name,
        "data": f"--data DIR with {task.files}",
        **({"samples": samples} if samples else {}),
        **_expected(task.preset),
    }


def _expected(preset: str) -> dict[str, object]:
    """Return what was measured with a preset, nothing for one that follows from the data."""
    if preset == DEFAULT:
        return {}
    promise = read_preset(preset)["promise"]
    return {"expected_time": promise["time"], "expected_score": promise["score"]}
