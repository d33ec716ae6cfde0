"""Load a task by its name, its ``task.toml``, or as ``module:attribute``."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, close
from bmnas.tasks.captioned import load_flickr30k, load_refcoco, load_vqa
from bmnas.tasks.egogesture import load_egogesture
from bmnas.tasks.mmimdb import (
    load_mmimdb,
    load_mmimdb_raw,
    load_mmimdb_vgg,
    load_mmimdb_words,
)
from bmnas.tasks.ntu import load_ntu
from bmnas.tasks.refshapes import (
    load_refshapes,
    load_refshapes_answers,
    load_refshapes_answers_regions,
    load_refshapes_captions,
    load_refshapes_regions,
)
from bmnas.tasks.task import Modality, Task, draw_parts
from bmnas.tasks.task_file import load_task_file


def load_digits() -> Task:
    """Return the 1,797 digits as the image modalities ``left`` and ``right``, (8, 4) uint8.

    Pixels are 0 to 16, as scikit-learn ships them. The split is stratified over the ten
    classes, 60/20/20 with the fixed seed 20240520: 1,078 train, 360 validation and 359 test
    samples. Neither half is enough to tell all digits apart, so fusion has something to add.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (its test set),
    UCI Machine Learning Repository, CC BY 4.0.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.int64)
    return Task(
        name="digits",
        kind="multiclass",
        modalities=(
            Modality("left", "image", np.ascontiguousarray(images[:, :, :4])),
            Modality("right", "image", np.ascontiguousarray(images[:, :, 4:])),
        ),
        labels=labels,
        part=draw_parts(labels, (0.6, 0.2, 0.2), 20240520),
        class_names=tuple(str(k) for k in range(10)),
        licence="CC BY 4.0",
    )


@dataclass(frozen=True)
class FolderTask:
    """A task with a name of its own, which ``load`` reads from a folder.

    ``files`` says what lies in the folder, ``samples`` how many of each part were published, None
    where nobody says it, ``preset`` is the task's.
    """

    load: Callable[[Path], Task]
    files: str
    samples: tuple[int, int, int] | None
    preset: str = "default"


_FILMS, _STORED = (15_552, 2_608, 7_799), "multimodal_imdb.hdf5 and split.json"
_FOUND = "the regions of a detector, a .npz file a picture"
_VIDEOS = "the *_rgb.avi and *.skeleton files of NTU RGB+D"
_JUDGING = 2_509, 16_487  # in validation and test, whatever the train subjects


@dataclass(frozen=True)
class OwnTask:
    """A task with a name of its own that carries its data, and what a list says of it unloaded."""

    load: Callable[[], Task]
    kind: str
    classes: int
    modalities: tuple[str, ...]
    samples: tuple[int, int, int]
    licence: str
    preset: str = "default"


_SHAPES = "text (text)", "image (image 64x64x3)"
_SENTENCES = 36_000, 1_500, 3_000
_DETECTED = "text (text)", "image (regions 10x116)"
_NAMED = "text (text)", "image (regions 10x19)"

#: The tasks that have a name of their own and carry their data.
REGISTERED: Mapping[str, OwnTask] = {
    "digits": OwnTask(
        load_digits,
        "multiclass",
        10,
        ("left (image 8x4)", "right (image 8x4)"),
        (1078, 360, 359),
        "CC BY 4.0",
    ),
    "refshapes": OwnTask(load_refshapes, "grounding", 4, _SHAPES, _SENTENCES, "CC0"),
    "refshapes-regions": OwnTask(
        load_refshapes_regions, "grounding", 4, _DETECTED, _SENTENCES, "CC0"
    ),
    "refshapes-answers": OwnTask(load_refshapes_answers, "answers", 16, _SHAPES, _SENTENCES, "CC0"),
    "refshapes-answers-regions": OwnTask(
        load_refshapes_answers_regions, "answers", 16, _NAMED, _SENTENCES, "CC0"
    ),
    "refshapes-captions": OwnTask(
        load_refshapes_captions, "matching", 1, _SHAPES, (27_928, 1_444, 2_812), "CC0"
    ),
}

#: The tasks that have a name of their own and read the folder that --data names.
FOLDER_TASKS: Mapping[str, FolderTask] = {
    "mmimdb": FolderTask(load_mmimdb, _STORED, _FILMS, "mmimdb-1"),
    "mmimdb-words": FolderTask(load_mmimdb_words, _STORED, _FILMS),
    "mmimdb-vgg": FolderTask(load_mmimdb_vgg, _STORED, _FILMS),
    "mmimdb-raw": FolderTask(
        load_mmimdb_raw, "split.json and the folder dataset of mmimdb.tar.gz", _FILMS
    ),
    "ntu": FolderTask(load_ntu, _VIDEOS, (22_952, *_JUDGING), "ntu-1"),
    "ntu-released": FolderTask(
        partial(load_ntu, variant="ntu-released"), _VIDEOS, (23_633, *_JUDGING), "ntu-1"
    ),
    "ntu-all": FolderTask(
        partial(load_ntu, variant="ntu-all"), _VIDEOS, (37_582, *_JUDGING), "ntu-1"
    ),
    "vqa": FolderTask(
        load_vqa, f"the questions and annotations of VQA-v2 and {_FOUND}", None, "mmnas-vqa"
    ),
    "flickr30k": FolderTask(
        load_flickr30k,
        f"dataset_flickr30k.json and {_FOUND}",
        (145_000, 5_070, 5_000),
        "mmnas-itm",
    ),
    "refcoco": FolderTask(
        load_refcoco,
        f"train.json, val.json, testA.json and testB.json of RefCOCO and {_FOUND}",
        (120_624, 10_834, 10_752),
        "mmnas-vgd",
    ),
    "egogesture": FolderTask(
        load_egogesture,
        "the frames of EgoGesture and the lists of its split",
        (14_416, 4_768, 4_977),
        "ego-1",
    ),
}


def load_task(source: str | Path | Task, data: Path | None = None) -> Task:
    """Load a task, without checking its content (see ``check_task``).

    ``source`` is one of

    - a registered name: ``"digits"``, or one of ``FOLDER_TASKS``, which need ``data``; weights of
      backbones lie there in ``weights``, each file called as its modality, and ``left_out.txt``
      may name samples that are not loaded;
    - the path of a ``task.toml``, or of the folder that holds one;
    - ``"module:attribute"``, a Task or a function that returns one; the module is looked for
      in the current directory first, and a function gets ``data`` where it is given;
    - a Task, which is returned as it is.

    ``data`` is the folder of the task's data. ``task.source`` holds what ``reload_task`` needs,
    ready for JSON, with absolute paths.

    Raises UserError: one line that says what there is instead.
    """
    if isinstance(source, Task):
        return source
    text, path = str(source), Path(source)
    if isinstance(source, Path) or path.suffix == ".toml" or (path / "task.toml").is_file():
        return load_task_file(path / "task.toml" if path.is_dir() else path, data)
    if text in REGISTERED:
        if data is not None:
            raise UserError(f"task {text} carries its own data: leave --data out")
        return replace(REGISTERED[text].load(), source={"task": text})
    if text.partition(":")[2]:
        return _load_attribute(text, data)
    if text in FOLDER_TASKS:
        return _load_folder(text, data)
    names = [*REGISTERED, *FOLDER_TASKS]
    raise UserError(
        f"received task {text!r}, expected {', '.join(names)}, a path to a task.toml, "
        f"or module:attribute{close(text, names)}"
    )


def reload_task(source: Mapping[str, Any], folder: Path | None = None) -> Task:
    """Load again the registered task or task.toml whose ``source`` this is.

    Its data lies where ``source`` says, or in ``folder``.

    A recorded module is not imported: a run folder or a network that came from somewhere else
    must not choose code that runs here. Raises UserError for such a task, for one that was built
    in Python and never named, and for one that cannot be loaded.
    """
    name, recorded = source.get("task"), source.get("data")
    if name is None:
        raise UserError(
            "the task was built in Python and has no name to load it by: give it with --task "
            "module:attribute, or as a Task"
        )
    if not isinstance(name, str):
        raise UserError(f"received a recorded task {name!r}, expected a name")
    if not reloadable(source):
        raise UserError(
            f"the task was recorded as {name}, and no module is imported because a file says so: "
            f"name it with --task {name if ':' in name else 'module:attribute'}"
        )
    return load_task(name, Path(recorded) if folder is None and recorded is not None else folder)


def reloadable(source: Mapping[str, Any]) -> bool:
    """Tell whether ``reload_task`` can load ``source``; if not, the user must name the task."""
    name = str(source.get("task", ""))
    return name in REGISTERED or name in FOLDER_TASKS or name.endswith(".toml")


def imported(place: str) -> Any:
    """Return what ``place``, ``"module:attribute"``, names.

    The module is looked for in the current directory first. Raises UserError when there is no such
    module or attribute.
    """
    module, _, attribute = place.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise UserError(f"received {place!r}, expected module:attribute")
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
    return value


def _load_folder(name: str, data: Path | None) -> Task:
    files = f"the folder with {FOLDER_TASKS[name].files}"
    if data is None:
        raise UserError(f"task {name}: give --data DIR, {files}")
    if not data.is_dir():
        raise UserError(f"task {name}: received --data {data}, expected {files}")
    task = FOLDER_TASKS[name].load(data)
    source: dict[str, Any] = {"task": name, "data": str(data.resolve())}
    if task.left_out:
        source["left_out"] = len(task.left_out)
    return replace(task, modalities=_with_weights(task, data / "weights"), source=source)


def _with_weights(task: Task, folder: Path) -> tuple[Modality, ...]:
    """Return the modalities; one that names its backbone has the file in ``folder`` of its name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*")):
        task.modality(path.stem)  # raises UserError where there is none of that name
        if found.setdefault(path.stem, path) != path:
            raise UserError(f"{path}: received {found[path.stem]} too, expected one of them")
    return tuple(
        replace(m, weights=found.get(m.name)) if m.backbone else m for m in task.modalities
    )


def _load_attribute(place: str, data: Path | None) -> Task:
    value = imported(place)
    arguments = {} if data is None else {"data": data}
    if callable(value):
        try:
            inspect.signature(value).bind(**arguments)
        except (TypeError, ValueError) as error:
            given = ", ".join(arguments) or "no argument"
            raise UserError(f"{place}: called with {given}: {error}") from error
        value = value(**arguments)
    elif arguments:
        raise UserError(f"{place}: received data, but it is not a function")
    if not isinstance(value, Task):
        raise UserError(f"{place}: received a {type(value).__name__}, expected a bmnas.tasks.Task")
    where = {} if data is None else {"data": str(Path(data).resolve())}
    return replace(value, source={"task": place, **where})
