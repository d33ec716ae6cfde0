"""A task of a user's own arrays, described in a ``task.toml``; no Python needed.

See ``docs/your-own-data.md`` for a walk through one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
from bmnas_serve.boxes import in_rows
from bmnas_serve.media import Fit
from bmnas_serve.sources import Pictures, Sounds, TextFiles, Videos, is_missing

from bmnas.machine.errors import UserError, at, few
from bmnas.machine.files import read_toml
from bmnas.machine.schema import NotEmpty, OneOf, Range, read
from bmnas.tasks.class_labels import missing_labels, read_labels, without_number
from bmnas.tasks.columns import Columns, PartColumns
from bmnas.tasks.hub import PREFIX, absolute, model_folder
from bmnas.tasks.kinds import BOX, TASK_KINDS, Array, Grounding, TaskKind, task_kind
from bmnas.tasks.pictures import PicturePlan, image_size
from bmnas.tasks.sources import FileRows, Source, empty_rows, ending_of, fitted_vector
from bmnas.tasks.tags import tag_matrix
from bmnas.tasks.task import PARTS, Modality, ModalityType, Task, draw_groups, draw_parts

#: What a column of parts may hold.
PART_NAMES = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}
_SIDE = 64  # of pictures, in pixels

Name = Annotated[str, NotEmpty()]
Fraction = Annotated[float, Range(above=0, below=1)]


Side = Annotated[int, Range(4, 4096)]


@dataclass(frozen=True)
class ModalityTable:
    """A table ``[modality.name]``: names of columns, and which backbone reads them.

    ``array`` is a column of values, or of the paths of files below ``folder``; then ``size``,
    ``fit`` and ``grey`` say what pictures become, ``sample_rate`` and ``seconds`` what sounds,
    ``frames`` and ``size`` what videos. ``columns`` are several that make one vector. ``missing``
    says that rows may lack it.
    """

    type: ModalityType
    array: Name | None = None
    columns: tuple[Name, ...] = ()
    index: Name | None = None
    sample_rate: Annotated[int, Range(1)] | None = None
    length: Annotated[int, Range(1)] | None = None
    backbone: Name | None = None
    features: tuple[Name, ...] = ()
    weights: Name | None = None
    folder: Name | None = None
    size: Side | tuple[Side, ...] | None = None
    fit: Fit | None = None
    grey: bool = False
    seconds: Annotated[float, Range(0.01, 3600)] | None = None
    frames: Annotated[int, Range(1, 512)] = 8
    missing: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what does not fit together."""
        if self.array is None and not self.columns:
            yield "array", "expected the key 'array', which is missing"
        elif self.columns and (self.array is not None or self.type != "vector"):
            yield "columns", "expected type = 'vector' and no array: they make one vector"
        if isinstance(self.size, tuple) and len(self.size) != 2:
            yield "size", f"received {list(self.size)}, expected a number or [height, width]"

    def whole(self) -> ModalityTable:
        """Return a copy by which pictures are padded, not cut, unless it says how they fit.

        What the processor of a pretrained network does stays as it is.
        """
        own = self.size is None and (self.backbone or "").startswith(PREFIX)
        return self if self.fit is not None or own else replace(self, fit="pad")

    def modality(
        self,
        name: str,
        columns: Columns,
        folder: Path,
        train: Array | None = None,
        unread: dict[int, str] | None = None,
    ) -> Modality:
        """Return the modality; ``train`` are the samples to which ``columns`` are fitted.

        Weights and ``hf:`` folders are relative to ``folder``. ``unread`` gets why a row of texts
        cannot be read; by default that is an error.
        """
        backbone, weights, index = self.backbone, None, None
        if backbone is not None and backbone.startswith(PREFIX):
            backbone = absolute(backbone, folder)
        if self.weights is not None:
            weights = (folder / Path(self.weights).expanduser()).resolve()
            if not weights.is_file():
                raise UserError(
                    f"weights: received {self.weights!r}, expected a file; there is no {weights}"
                )
        if self.index is not None:
            with at("index"):
                index = columns.get(self.index)
        if self.columns:
            assert train is not None
            source = fitted_vector(columns, self.columns, train, missing=self.missing)
        else:
            with at("array"):
                source = self._source(columns, backbone)
        source = replace(source, folder=self.folder or "", missing=self.missing)
        with at("columns" if self.columns else "array"):
            data, own = source.rows(columns, text=self.type == "text", unread=unread)
            absent = empty_rows(data) if self.missing else None
        if own is not None:
            index = own if index is None else own[index]
        return Modality(
            name,
            self.type,
            data,
            index,
            backbone,
            weights,
            self.features,
            self.sample_rate,
            self.length,
            # A table of new rows says nothing of which row of the array each has.
            None if self.index is not None else source.to_dict(),
            absent,
        )

    def _source(self, columns: Columns, backbone: str | None) -> Source:
        """Return how rows are made of ``array``: values, or the files that it names."""
        assert self.array is not None
        fields = columns.get(self.array, text=self.type == "text")
        if fields.dtype.kind not in "UT" or fields.ndim != 1:
            return Source(self.array)
        told = fields[~is_missing(fields)].tolist()
        named = ending_of(told)
        if named is not None and named != self.type:
            raise UserError(
                f"column {self.array!r} names files such as {told[0]!r}: received type "
                f"{self.type!r}, expected {named!r}"
            )
        if self.type == "image":
            if self.size is None and backbone is not None and backbone.startswith(PREFIX):
                place = model_folder(backbone)
                plan = PicturePlan.of_folder(place, image_size(place))
                if plan.size is not None and (plan.crop is not None or not plan.keeps):
                    if self.fit is not None:
                        raise UserError(
                            f"received fit = {self.fit!r} without size: how pictures fit is said "
                            "by the backbone's own processor: leave fit out, or add size"
                        )
                    height, width = plan.crop or plan.size
                    resize = plan.size[:1] if plan.keeps else plan.size
                    pictures = Pictures(
                        height,
                        width,
                        grey=self.grey,
                        resize=resize,
                        resample=plan.resample,
                        rounded=plan.rounded,
                    )
                    return Source(self.array, pictures)
            height, width = self.size if isinstance(self.size, tuple) else (self.size or _SIDE,) * 2
            return Source(self.array, Pictures(height, width, self.fit or "crop", self.grey))
        if self.type == "waveform":
            if self.sample_rate is None or self.seconds is None:
                raise UserError(
                    f"column {self.array!r} names sounds: expected sample_rate, to which they are "
                    "resampled, and seconds, how long a row is: bmnas init proposes both"
                )
            samples = max(round(self.sample_rate * self.seconds), 1)
            return Source(self.array, Sounds(self.sample_rate, samples))
        if self.type == "clip":
            size = self.size[0] if isinstance(self.size, tuple) else self.size or _SIDE
            return Source(self.array, Videos(self.frames, size))
        return Source(self.array, TextFiles() if named == "text" else None)


@dataclass(frozen=True)
class Split:
    """A table ``split``: fractions of the samples, drawn with ``seed``."""

    train: Fraction
    validation: Fraction
    test: Fraction
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    group: Name | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield that the fractions do not sum to 1."""
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            yield "test", f"received fractions with the sum {total:g}, expected the sum 1"

    def draw(self, strata: Array, rows: Array, columns: Columns) -> Array:
        """Return the part of each sample, (samples,), 0 of those that are not in ``rows`` (n,).

        Samples of a group stay together; ``strata`` (samples,) are kept in proportion.
        """
        fractions = self.train, self.validation, self.test
        part = np.zeros(len(strata), np.uint8)
        part[rows] = _drawn(strata, rows, fractions, self.seed, _groups(self.group, columns))
        return part


@dataclass(frozen=True)
class PartFiles:
    """A table ``data``: one file for each part.

    In place of the file of ``validation`` may stand a share of train, drawn with ``seed``, by
    groups if there are some.
    """

    train: Name
    test: Name
    validation: Name | Fraction = 0.2
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    group: Name | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The files in the order of parts."""
        return tuple(
            name for name in (self.train, self.validation, self.test) if isinstance(name, str)
        )

    def draw(self, strata: Array, rows: Array, columns: PartColumns) -> Array:
        """Return the part of each sample, (samples,); validation is drawn from ``rows`` (n,)."""
        if isinstance(self.validation, str):
            return columns.part
        part = columns.part * np.uint8(2)
        rows = rows[part[rows] == 0]
        fractions = 1 - self.validation, self.validation, 0.0
        part[rows] = _drawn(strata, rows, fractions, self.seed, _groups(self.group, columns))
        return part


def _groups(name: str | None, columns: Columns) -> Array | None:
    if name is None:
        return None
    with at("group"):
        groups = columns.get(name, text=True)
        if groups.ndim != 1 or groups.dtype.kind not in "iubUT":
            raise UserError(f"column {name!r}: received {groups.dtype}, expected names or integers")
        if groups.dtype.kind in "UT" and len(empty := np.flatnonzero(np.char.strip(groups) == "")):
            raise UserError(
                f"column {name!r}: rows without a group ({len(empty)}): {few(empty, 20)}"
            )
    return groups


def _drawn(
    strata: Array,
    rows: Array,
    fractions: tuple[float, float, float],
    seed: int,
    groups: Array | None,
) -> Array:
    if groups is None:
        return draw_parts(strata[rows], fractions, seed)
    if len(groups) != len(strata):
        raise UserError(f"group has {len(groups)} rows and labels have {len(strata)}")
    return draw_groups(strata[rows], groups[rows], fractions, seed)


@dataclass(frozen=True)
class TaskFile:
    """What a ``task.toml`` says."""

    name: Name
    kind: Annotated[str, OneOf(TASK_KINDS)]
    data: Name | Annotated[tuple[Name, ...], NotEmpty()] | PartFiles
    labels: Name | Annotated[tuple[Name, ...], NotEmpty()]
    modality: Annotated[Mapping[str, ModalityTable], NotEmpty()]
    class_names: Name | tuple[Name, ...] | None = None
    split: Name | Split | None = None
    separator: Name | None = None
    types: Name | None = None
    class_weights: Literal["balanced"] | Mapping[str, float] | None = None
    broken: Literal["fail", "skip"] = "fail"
    unlabelled: Literal["fail", "skip"] = "fail"
    preset: Name = "default"
    licence: Name = "not stated"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what does not fit together."""
        if self.split is None and not isinstance(self.data, PartFiles):
            yield "split", "expected the key 'split', which is missing"
        elif self.split is not None and isinstance(self.data, PartFiles):
            yield "split", "received a split beside one file for each part: leave one of them out"
        if self.separator is not None and self.kind != "multilabel":
            yield "separator", "expected kind = 'multilabel', whose labels may be lists of tags"
        if self.kind in ("multiclass", "matching") and not isinstance(self.labels, str):
            yield "labels", f"received {list(self.labels)}, expected one column for {self.kind}"
        for name, table in self.modality.items():
            if self.kind == "grounding" and table.fit == "crop":
                what = "received 'crop', which cuts boxes off, expected pad or squeeze"
                yield f"modality.{name}.fit", what


def load_task_file(path: Path, data: Path | None = None) -> Task:
    """Load the task that the TOML file ``path`` describes.

    Data files are relative to ``path``'s folder, or to the folder ``data`` when it is given;
    weights and ``hf:`` folders are relative to ``path``'s folder. Modalities keep their order.

    Raises UserError: one line with the file, the key, what was received and what expected.
    """
    if data is not None and not data.is_dir():
        raise UserError(f"received --data {data}, expected a folder")
    file = read(TaskFile, read_toml(path), str(path))
    if file.kind == Grounding.name:
        # What is meant may be anywhere in a picture.
        file = replace(file, modality={n: table.whole() for n, table in file.modality.items()})
    source = {"task": str(path.resolve())}
    if data is not None:
        source["data"] = str(data.resolve())
    with at(path):
        return _load(file, path.parent, data, source)


def _load(file: TaskFile, folder: Path, data: Path | None, source: dict[str, str]) -> Task:
    kind, columns = task_kind(file.kind), _open_columns(file, folder, data)
    with at("labels"):
        labels = _labels(file.labels, columns)
        strata = kind.strata(labels)
        if strata is None:
            strata = np.zeros(labels.shape[:1] or 0)
        labels, blank, remarks = _tidy(labels, file, kind, columns)
        missing = np.flatnonzero(blank)
        if len(missing) and file.unlabelled == "fail":
            raise missing_labels(missing, len(labels))
    # Before parts are drawn: what is left out is as if the tables did not have it.
    arrays, reasons = _arrays(file, columns, folder, len(blank))
    reasons |= {row: f"row {row}, without a label" for row in missing.tolist()}
    out = np.zeros(blank.shape, np.bool_)
    out[[*reasons]] = True
    if reasons and out.all():
        raise UserError(f"no row is left: {few(reasons.values(), 20)}")
    kept = np.flatnonzero(~out)
    if isinstance(file.data, PartFiles):
        with at("data"):
            part = file.data.draw(strata, kept, cast(PartColumns, columns))
    else:
        assert file.split is not None
        with at("split"):
            if isinstance(file.split, Split):
                part = file.split.draw(strata, kept, columns)
            else:
                part = _part(columns.get(file.split))
    if out.shape != part.shape:  # that is told later, with whatever else is wrong
        out, reasons = np.zeros(part.shape, np.bool_), {}
    train = np.flatnonzero((part == PARTS.index("train")) & ~out)
    modalities = []
    for name, table in file.modality.items():
        with at(f"modality.{name}"):
            modalities.append(arrays.get(name) or table.modality(name, columns, folder, train))
    names = file.class_names
    if isinstance(names, str):
        with at("class_names"):
            array = columns.get(names, text=True)
            if array.dtype.kind not in "UT" or array.ndim != 1:
                raise UserError(
                    f"received {names!r}, expected a list of strings, or the name of an array of "
                    "strings"
                )
        names = tuple(array.tolist())
    if names is None and kind.NUMBERS:
        names = (file.labels,) if isinstance(file.labels, str) else file.labels
    elif names is None and kind.name == "multilabel" and not isinstance(file.labels, str):
        names = file.labels
    # Without names the classes are those of train: what validation holds must not add one.
    seen = part == PARTS.index("train") if names is None else part != PARTS.index("test")
    seen &= ~out
    if kind.name == "multilabel" and labels.dtype.kind in "UT" and len(labels) == len(seen):
        with at("labels"):
            labels, class_names, more = tag_matrix(labels, seen, names, file.separator)
        remarks += more
    else:
        labels, class_names = kind.encode(labels, seen, names, "labels")
        if kind.name == Grounding.name:
            with at("labels"):
                labels = _boxes_in_rows(labels, kept, modalities)
    types = None
    if file.types is not None:
        with at("types"):
            types = columns.get(file.types, text=True)
    task = Task(
        name=file.name,
        kind=kind.name,
        modalities=tuple(modalities),
        labels=labels,
        part=part,
        class_names=class_names,
        preset=file.preset,
        licence=file.licence,
        source=source,
        types=types,
        remarks=remarks,
        class_weights=file.class_weights,
    )
    task = _without(task, reasons)
    return replace(task, remarks=(*_shared_files(task), *task.remarks))


def _labels(names: str | tuple[str, ...], columns: Columns) -> Array:
    """Return a column of labels, or several side by side (samples, K)."""
    if isinstance(names, str):
        return columns.get(names)
    each = [columns.get(name) for name in names]
    if any(own.dtype.kind in "UT" for own in each):
        each = [columns.get(name, text=True) for name in names]
        each = [own if own.dtype.kind in "UT" else own.astype(np.str_) for own in each]
    if any(own.shape != (len(each[0]),) for own in each):
        shapes = ", ".join(f"{name} {own.shape}" for name, own in zip(names, each, strict=True))
        raise UserError(f"received columns of the shapes {shapes}, expected (samples) of each")
    return np.stack(each, axis=1)


def _tidy(
    labels: Array, file: TaskFile, kind: TaskKind, columns: Columns
) -> tuple[Array, Array, tuple[str, ...]]:
    """Return the labels, which samples have none (samples,) bool, and remarks."""
    if labels.ndim and kind.NUMBERS:
        return labels, without_number(labels), ()
    if labels.ndim and kind.name == "multiclass":
        assert isinstance(file.labels, str)
        return read_labels(columns, file.labels)
    return labels, np.zeros(labels.shape[:1] or 0, np.bool_), ()


def _boxes_in_rows(labels: Array, kept: Array, modalities: Sequence[Modality]) -> Array:
    """Return boxes (samples, 4) in pixels of what the network sees, where pictures come from files.

    Only samples ``kept`` (n,) have a file that can be read. Other labels stay as they are: what is
    wrong with them is told later.
    """
    pictures = [(m, m.data) for m in modalities if isinstance(m.data, FileRows)]
    found = [(m, rows, rows.files) for m, rows in pictures if isinstance(rows.files, Pictures)]
    if len(found) != 1 or labels.shape[1:] != (len(BOX),) or labels.dtype.kind not in "iuf":
        return labels
    modality, rows, files = found[0]
    sizes, boxes = rows.sizes(modality.rows_of(kept)), labels[kept]
    beyond = np.flatnonzero(np.any(boxes[:, 2:] > np.array(sizes)[:, ::-1], axis=1))
    if len(beyond):
        told = [
            f"row {kept[place]}: {boxes[place].tolist()} in {sizes[place][1]}x{sizes[place][0]}"
            for place in beyond
        ]
        raise UserError(
            f"boxes that end outside their picture ({len(told)}): {few(told, 5)}: expected the "
            "corners x1, y1, x2, y2 in pixels, not width and height"
        )
    placed = labels.astype(np.float32)
    placed[kept] = in_rows(files, boxes, sizes)
    return placed


def _shared_files(task: Task) -> Iterator[str]:
    """Yield a remark on each file that train and another part use."""
    part = task.part
    for modality in task.modalities:
        if not isinstance(modality.data, FileRows) or modality.index is None:
            continue
        if len(modality.index) != len(part):
            continue  # that is told later, with whatever else is wrong
        used = [np.flatnonzero(part == number) for number in range(len(PARTS))]
        own = [set(modality.rows_of(s[~modality.lacking(s)]).tolist()) for s in used]
        for number, name in enumerate(PARTS[1:], start=1):
            if shared := sorted(own[0] & own[number]):
                files = few((modality.data.names[row] for row in shared), 8)
                yield (
                    f"modality {modality.name}: {len(shared)} files of {name} are in train too: "
                    f"{files}: split = {{…, group = '<column>'}} keeps rows together"
                )


def _arrays(
    file: TaskFile, columns: Columns, folder: Path, samples: int
) -> tuple[dict[str, Modality], dict[int, str]]:
    """Return the modalities of one column each, and why samples of ``broken`` files are left out.

    These are found by reading all files.
    """
    made: dict[str, Modality] = {}
    reasons: dict[int, str] = {}
    for name, table in file.modality.items():
        if table.columns:
            continue
        unread: dict[int, str] | None = {} if file.broken == "skip" else None
        with at(f"modality.{name}"):
            made[name] = modality = table.modality(name, columns, folder, unread=unread)
        if unread is not None:
            if isinstance(modality.data, FileRows):
                unread = modality.data.unreadable(np.arange(len(modality.data)))
            every = np.arange(samples if modality.index is None else len(modality.index))
            rows = modality.rows_of(every).tolist()
            reasons |= {s: unread[r] for s, r in enumerate(rows) if s < samples and r in unread}
    return made, reasons


def _without(task: Task, reasons: Mapping[int, str]) -> Task:
    """Return the task without the samples that ``reasons`` names, where there are some."""
    if not reasons:
        return task
    kept = np.delete(np.arange(len(task.part)), list(reasons))
    return replace(
        task,
        modalities=tuple(replace(m, index=m.rows_of(kept)) for m in task.modalities),
        labels=task.labels[kept],
        part=task.part[kept],
        types=None if task.types is None else task.types[kept],
        left_out=(*task.left_out, *(reasons[sample] for sample in sorted(reasons))),
    )


def _open_columns(file: TaskFile, folder: Path, data: Path | None) -> Columns:
    if isinstance(file.data, PartFiles):
        names = file.data.names
    else:
        names = (file.data,) if isinstance(file.data, str) else file.data
    paths = [(data or folder) / name for name in names]
    if data is None and not all(path.exists() for path in paths):
        missing = next(path for path in paths if not path.exists())
        raise UserError(
            f"data: {missing}: no such file: give --data DIR, the folder that holds the data"
        )
    with at("data"):
        return PartColumns(paths) if isinstance(file.data, PartFiles) else Columns(paths)


def _part(part: Array) -> Array:
    """Return 0, 1 and 2 for the names of parts, in any case; numbers stay as they are."""
    if part.dtype.kind not in "UT":
        return part
    tidy = np.char.lower(np.char.strip(part))
    numbers = np.full(part.shape, -1, dtype=np.int64)
    for name, number in PART_NAMES.items():
        numbers[tidy == name] = number
    for row in np.flatnonzero(numbers < 0)[:1]:
        raise UserError(
            f"received {str(part.flat[row])!r} in row {row}, "
            f"expected one of {', '.join(PART_NAMES)}"
        )
    return numbers
