"""Load a task by its registered name, its ``task.toml``, or as ``module:attribute``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, close
from bmnas.tasks.array import load_task_file
from bmnas.tasks.registry import REGISTERED
from bmnas.tasks.task import Task


def load_task(source: str | Path | Task, data: Path | None = None, **options: Any) -> Task:
    """Load a task, without checking its content (see ``check_task``).

    ``source`` is one of

    - a registered name, with options where it has some: ``"av-digits:split=speaker,image=full"``;
    - the path of a ``task.toml``, or of the folder that holds one;
    - ``"module:attribute"``, a Task or a function that returns one; the module is looked for
      in the current directory first, and a function gets ``data`` and ``options`` by name;
    - a Task, which is returned as it is.

    ``data`` is the folder of the task's data. ``task.source`` holds what ``reload_task`` needs,
    ready for JSON, with absolute paths.

    Raises UserError: one line that says what there is instead.
    """
    if isinstance(source, Task):
        return source
    text = str(source)
    path = Path(source)
    if isinstance(source, Path) or path.suffix == ".toml" or (path / "task.toml").is_file():
        if options:
            raise UserError(f"{text}: received option {next(iter(options))}, expected none")
        return load_task_file(path / "task.toml" if path.is_dir() else path, data)
    name, _, rest = text.partition(":")
    if name in REGISTERED:
        return _load_registered(name, data, {**_parse_options(text, rest), **options})
    if rest:
        return _load_attribute(name, rest, data, options)
    names = list(REGISTERED)
    raise UserError(
        f"received task {text!r}, expected {', '.join(names)}, a path to a task.toml, "
        f"or module:attribute{close(name, names)}"
    )


def reload_task(source: Mapping[str, Any], folder: Path | None = None) -> Task:
    """Load again the registered task or task.toml whose ``source`` this is.

    Its data lies where ``source`` says, or in ``folder``.

    A recorded module is not imported: a run folder or a network that came from somewhere else
    must not choose code that runs here. Raises UserError for such a task, for one that was built
    in Python and never named, and for one that cannot be loaded.
    """
    name, options, recorded = (source.get(key) for key in ("task", "options", "data"))
    if name is None:
        raise UserError(
            "the task was built in Python and has no name to load it by: give it with --task "
            "module:attribute, or as a Task"
        )
    if not isinstance(name, str) or not isinstance(options or {}, dict):
        raise UserError(f"received a recorded task {name!r}, expected a name and options")
    if not reloadable(source):
        raise UserError(
            f"the task was recorded as {name}: a recorded module is never imported; name it "
            f"with --task {name}"
        )
    data = Path(recorded) if folder is None and recorded is not None else folder
    return load_task(name, data, **(options or {}))


def reloadable(source: Mapping[str, Any]) -> bool:
    """Tell whether ``reload_task`` can load ``source``; if not, the user must name the task."""
    name = str(source.get("task", ""))
    return name in REGISTERED or name.endswith(".toml")


def _load_registered(name: str, data: Path | None, options: Mapping[str, Any]) -> Task:
    entry = REGISTERED[name]
    chosen = entry.check_options(options)
    folder = entry.folder(data)
    found = entry.load(**chosen) if folder is None else entry.load(folder, **chosen)
    return replace(found, source=_source(name, folder, chosen))


def _parse_options(text: str, rest: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        name, equals, value = item.partition("=")
        if not equals or name in options:
            raise UserError(f"{text}: received {item!r}, expected options as name=value, each once")
        options[name.strip()] = value.strip()
    return options


def _load_attribute(
    module: str, attribute: str, data: Path | None, options: Mapping[str, Any]
) -> Task:
    place = f"{module}:{attribute}"
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise UserError(f"received task {place!r}, expected a task as module:attribute")
    folder = Path.cwd()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        value: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that the user's module imports is another matter: let that one be seen.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{place}: no module {module!r} in {folder} or installed") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if not name.startswith("_")]
            raise UserError(
                f"{place}: {module} has no attribute {attribute!r}{close(attribute, names)}"
            )
        value = getattr(value, part)
    arguments = {**options, **({} if data is None else {"data": data})}
    if callable(value):
        _check_arguments(place, value, arguments)
        value = value(**arguments)
    elif arguments:
        raise UserError(f"{place}: received {', '.join(arguments)}, but it is not a function")
    if not isinstance(value, Task):
        raise UserError(f"{place}: received a {type(value).__name__}, expected a bmnas.tasks.Task")
    return replace(value, source=_source(place, data, options))


def _check_arguments(place: str, function: Any, arguments: Mapping[str, Any]) -> None:
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:
        given = ", ".join(arguments) or "no argument"
        raise UserError(f"{place}: called with {given}: {error}") from error


def _source(task: str, data: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    source: dict[str, Any] = {"task": task}
    if data is not None:
        source["data"] = str(Path(data).resolve())
    if options:
        source["options"] = dict(options)
    return source
