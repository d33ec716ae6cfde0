"""Columns of ``.parquet`` files and of folders that Hugging Face datasets saves, by pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bmnas.machine.errors import UserError, few
from bmnas.machine.files import read_json
from bmnas.tasks.kinds import Array
from bmnas.tasks.text_arrays import padded, reading, text_array

#: Reads a column; where its argument is true, what could be a number stays text.
Reader = Callable[[bool], Array]


def parquet_file(path: Path) -> Mapping[str, Reader]:
    """Return what reads each column of a ``.parquet`` file, by name."""
    from pyarrow import parquet

    names = parquet.read_schema(path).names
    if len(set(names)) < len(names):
        raise UserError(f"{path}: names a column twice: {', '.join(names)}")
    return {name: partial(_parquet_column, path, name) for name in names}


def _parquet_column(path: Path, name: str, text: bool) -> Array:
    from pyarrow import parquet

    with reading(f"{path}: {name}"):
        return _array(parquet.read_table(path, columns=[name]).column(0), f"{path}: {name}")


def arrow_folder(path: Path) -> Mapping[str, Reader]:
    """Return what reads each column of a folder that ``Dataset.save_to_disk`` wrote, by name.

    Numbers of classes become their names. Raises UserError for another folder.
    """
    from pyarrow import ipc

    if not (path / "state.json").is_file():
        parts = sorted(part.parent.name for part in path.glob("*/state.json"))
        told = f"one of the folders in it: {', '.join(parts)}" if parts else "a file, or state.json"
        raise UserError(f"{path}: received a folder, expected {told}, as save_to_disk writes it")
    files = [path / str(part["filename"]) for part in read_json(path / "state.json")["_data_files"]]
    wrong = [file.name for file in files if file.parent != path or not file.is_file()]
    if wrong or not files:
        named = few(wrong) or "none"
        raise UserError(f"{path}: state.json names {named}, expected files in the folder")
    with ipc.open_stream(str(files[0])) as stream:
        names = stream.schema.names
    described = path / "dataset_info.json"
    features = read_json(described).get("features") if described.is_file() else None
    return {name: partial(_arrow_column, files, name, features or {}) for name in names}


def _arrow_column(files: list[Path], name: str, features: Mapping[str, Any], text: bool) -> Array:
    import pyarrow
    from pyarrow import ipc

    place = f"{files[0].parent}: {name}"
    with reading(place):
        read = []
        for file in files:
            with pyarrow.memory_map(str(file)) as content, ipc.open_stream(content) as stream:
                read += [batch.column(name) for batch in stream]
        column = pyarrow.chunked_array(read)
        feature = features.get(name)
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature["names"]:
            classes = feature["names"]
            # -1 is that of a row without a label.
            known = dict(enumerate(classes))
            return text_array([str(known.get(number, "")) for number in column.to_pylist()])
        return _array(column, place)


def _array(column: Any, place: str) -> Array:
    """Return numbers, NaN for a missing one; strings, empty for a missing one; or lists of them."""
    from pyarrow import types

    kind = column.type
    if types.is_integer(kind) or types.is_floating(kind):
        numbers: Array = column.to_numpy()
        return numbers
    if types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        raise UserError(
            f"{place}: received {kind}, expected numbers, strings or lists: write each as a file, "
            "and have a column of their paths"
        )
    values = column.to_pylist()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        if any(isinstance(item, str) for value in values for item in value or ()):
            return padded([value or [] for value in values])
        first: Any = next((value for value in values if value is not None), [])
        nothing = np.full(np.shape(first), np.nan)
        try:
            return np.array([nothing if v is None else v for v in values], np.float64)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{place}: lists of different lengths: fill them up to one length"
            ) from error
    if types.is_boolean(kind):
        values = [None if value is None else str(value).lower() for value in values]
    return text_array(["" if value is None else str(value) for value in values])
