"""``bmnas predict``: what a bundle says of the rows of a table, or of one sample."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from bmnas_serve.boxes import in_pictures
from bmnas_serve.sources import Pictures
from typer import Argument, Option

from bmnas.cli.serve import needing
from bmnas.machine.errors import UserError, at, close, few
from bmnas.machine.files import write_text
from bmnas.machine.progress import Bars
from bmnas.tasks.columns import Columns
from bmnas.tasks.kinds import Array, Grounding
from bmnas.tasks.media import telling
from bmnas.tasks.rows import Data
from bmnas.tasks.sources import FileRows, Source, empty_rows

if TYPE_CHECKING:
    from bmnas_serve.manifest import InputSpec, Manifest
    from bmnas_serve.session import Session
    from bmnas_serve.texts import TextRule

_BATCH = 64


def predict(
    context: typer.Context,
    bundle: Annotated[Path, Argument(help="A bundle folder that 'bmnas export' wrote.")],
    table: Annotated[
        Path | None,
        Argument(help="A table with the columns that the task's modalities have; labels may lack."),
    ] = None,
    folder: Annotated[
        Path | None, Option(help="Where the files of the table lie, by default beside it.")
    ] = None,
    broken: Annotated[
        Literal["fail", "skip"], Option(help="What to do with rows whose files cannot be read.")
    ] = "fail",
    target: Annotated[
        str | None, Option(help="Which of the bundle's targets to run, by default onnx.")
    ] = None,
    out: Annotated[
        Path | None, Option(help="Write the .csv file here instead of to standard output.")
    ] = None,
) -> None:
    """Write labels and probabilities of the rows of a table, as CSV; needs no torch.

    Instead of a table, --COLUMN VALUE for each column that the network needs is one sample:
    bmnas predict runs/pets/bundle --photo a.jpg --title "a black cat"

    Example: bmnas predict runs/pets/bundle new.csv --out predictions.csv
    """
    if str(table).startswith("--"):
        # The first of the columns, which the parser took for the table.
        context.args.insert(0, str(table))
        table = None
    fields = _fields(context.args)
    if (table is None) == (not fields):
        raise UserError(
            "expected a table, or --COLUMN VALUE for each column of one sample, and not both"
        )
    columns = Columns.of_fields(fields) if table is None else Columns([table])
    with needing("serve", "predicting"):
        from bmnas_serve.session import Session

        session = Session.open(bundle, target=target)
        if session.manifest is None:
            raise UserError(f"{bundle}: received a model alone, expected a bundle folder")
        with at(bundle if table is None else table):
            names = columns.names()
            wanted = [spec for spec in session.inputs if not _left_out(spec, names)]
            if not wanted:
                raise UserError(f"received the columns {few(names, 20)}, of which no input is made")
            inputs = [_Rows.of(spec, columns, folder) for spec in wanted]
            rows = _rows(inputs, broken)
        text = "".join(_lines(session, session.manifest, inputs, rows))
    if out is None:
        sys.stdout.write(text)
    else:
        write_text(out, text)
        typer.echo(f"wrote {out}", err=True)


def _fields(words: list[str]) -> dict[str, str]:
    """Return the columns and values of ``--COLUMN VALUE``."""
    names, values = words[::2], words[1::2]
    wrong = [name for name in names if not name.startswith("--") or name == "--"]
    if wrong or len(names) != len(values):
        raise UserError(f"received {(wrong or words)[-1]!r}, expected --COLUMN VALUE in pairs")
    return {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}


def _left_out(spec: InputSpec, names: list[str]) -> bool:
    """Tell whether an input may be left out, and none of its columns is among ``names``."""
    source = spec.preprocessing.get("source")
    if not spec.optional or source is None:
        return False
    return {*Source.from_dict(source, "manifest.json: source").columns}.isdisjoint(names)


@dataclass(frozen=True)
class _Rows:
    """The rows of an input, which of them each row of the table has, and why some are unread."""

    spec: InputSpec
    data: Data
    index: Array
    texts: TextRule | None
    unread: Mapping[int, str]

    @classmethod
    def of(cls, spec: InputSpec, columns: Columns, folder: Path | None) -> _Rows:
        """Read the columns of an input; raises UserError that names it."""
        from bmnas_serve.texts import TextRule

        with at(f"modality {spec.name}"), telling():
            found = spec.preprocessing.get("source")
            if found is None:
                raise UserError(
                    "the bundle does not say from which column it comes: its task was no "
                    "task.toml, the modality has an index, or an earlier version exported it"
                )
            source = Source.from_dict(found, "manifest.json: source")
            if lacking := columns.lacking(source.columns):
                others = [name for name in columns.names() if name not in source.columns]
                near = close(lacking[0], others)
                empty = " (a field is empty where it is not known)" if source.vector else ""
                raise UserError(
                    f"received no column {', '.join(lacking)}, expected "
                    f"{', '.join(source.columns)}{empty}{near}"
                )
            text = spec.preprocessing.get("type") == "text"
            unread: dict[int, str] = {}
            data, index = source.rows(columns, text=text, below=folder, unread=unread)
            if isinstance(data, FileRows):
                unread = data.unreadable(np.arange(len(data)))
            every = np.arange(len(data)) if index is None else index
            return cls(spec, data, every, TextRule(spec.preprocessing) if text else None, unread)

    def batch(self, rows: Array) -> Array:
        """Return what the model takes of the table's ``rows`` (n,)."""
        raw = self.data[self.index[rows]]
        spec = self.spec
        with at(f"modality {spec.name}"):
            if self.texts is not None:
                return self.texts.encode(raw.tolist())
            if raw.shape[1:] != spec.shape[1:]:
                raise UserError(f"received rows of {raw.shape[1:]}, expected {spec.shape[1:]}")
            dtype = np.dtype(spec.dtype)
            if spec.optional:
                raw[empty_rows(raw)] = 0
            if raw.dtype != dtype and (dtype.kind != "f" or raw.dtype.kind not in "fiu"):
                raise UserError(f"received {raw.dtype}, expected {dtype}")
            return np.ascontiguousarray(raw, dtype)

    def boxes(self, box: Array, rows: Array) -> dict[str, Array]:
        """Return boxes (n, 4) in pixels of the pictures of the table's ``rows``, if it has some."""
        if not isinstance(self.data, FileRows) or not isinstance(self.data.files, Pictures):
            return {}
        sizes = self.data.sizes(self.index[rows])
        return {"box": in_pictures(self.data.files, box, sizes).astype(np.float32)}


def _rows(inputs: list[_Rows], broken: str) -> Array:
    """Return the rows of the table that can be predicted; raises UserError for others."""
    counts = {one.spec.name: len(one.index) for one in inputs}
    if len({*counts.values()}) > 1:
        raise UserError(f"received columns of different lengths: {counts}")
    every = np.arange(next(iter(counts.values())))
    wrong: dict[int, str] = {}
    for one in inputs:
        wrong |= {
            r: one.unread[row] for r, row in enumerate(one.index.tolist()) if row in one.unread
        }
    told = few((f"row {row}: {reason}" for row, reason in sorted(wrong.items())), 20)
    if wrong and broken == "fail":
        raise UserError(
            f"files that cannot be read ({len(wrong)}): {told}: mend them, or leave their rows "
            "out with --broken skip"
        )
    if wrong:
        if len(wrong) == len(every):
            raise UserError(f"no row is left: all have files that cannot be read: {told}")
        typer.echo(f"note: rows that are left out: {len(wrong)}: {told}", err=True)
    return np.delete(every, list(wrong))


def _lines(session: Session, manifest: Manifest, inputs: list[_Rows], rows: Array) -> Iterator[str]:
    """Yield the lines of the CSV file, the header first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    with Bars().stage("predict", len(rows)) as stage:
        for start in range(0, len(rows), _BATCH):
            some = rows[start : start + _BATCH]
            arrays = {one.spec.name: one.batch(some) for one in inputs}
            left_out = [spec for spec in session.inputs if spec.name not in arrays]
            outputs = session.run(arrays | {s.name: s.stand_ins(len(some)) for s in left_out})
            for one in inputs if manifest.task.kind == Grounding.name else ():
                outputs |= one.boxes(outputs["box"], some)
            header, lines = _answers(manifest, outputs)
            if not start:
                writer.writerow(["row", *header])
            writer.writerows([row, *line] for row, line in zip(some.tolist(), lines, strict=True))
            stage.advance(len(some))
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()


def _answers(manifest: Manifest, outputs: Mapping[str, Array]) -> tuple[list[str], list[list[Any]]]:
    """Return header and lines: label and probabilities, numbers by name, or else all outputs."""
    from bmnas_serve.answers import for_people, labels

    if manifest.scale is not None:
        return list(manifest.class_names), [list(map(_shown, row)) for row in outputs["prediction"]]
    if manifest.task.decision == "none":
        wide = {name: np.atleast_2d(x.T).T for name, x in for_people(outputs).items()}
        header = [
            f"{name}.{n}" if x.shape[1] > 1 else name
            for name, x in wide.items()
            for n in range(x.shape[1])
        ]
        return header, [list(map(_shown, row)) for row in np.concatenate([*wide.values()], 1)]
    probabilities = outputs["probabilities"]
    one_of_all = manifest.task.decision == "argmax"
    lines: list[list[Any]] = []
    for told, row in zip(labels(manifest, probabilities), probabilities, strict=True):
        first = [told[0], _shown(row.max())] if one_of_all else ["|".join(told)]
        lines.append([*first, *map(_shown, row)])
    return [*(["label", "probability"] if one_of_all else ["labels"]), *manifest.class_names], lines


def _shown(number: Any) -> str:
    """Return the shortest digits that are this float32."""
    return np.format_float_positional(np.float32(number), trim="-")
