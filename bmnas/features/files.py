"""The files of the feature cache: ``.npy``, written batch by batch and mapped into memory.

A search computes in float32 whatever the files hold; half precision halves what a cache takes of
disk, memory and copies. bfloat16 keeps the range of float32, float16 three bits more of each
number. NumPy has no bfloat16: its files hold the bits as uint16, and the manifest says what they
are.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bmnas.machine.errors import UserError
from bmnas.machine.files import growing_folder, read_json, write_json
from bmnas.tasks.task import Array

#: Of each type of a cache, what torch and what NumPy has for it; bool is for the masks of tokens.
_TYPES: dict[str, tuple[torch.dtype, np.dtype[Any]]] = {
    "float32": (torch.float32, np.dtype(np.float32)),
    "float16": (torch.float16, np.dtype(np.float16)),
    "bfloat16": (torch.bfloat16, np.dtype(np.uint16)),
    "bool": (torch.bool, np.dtype(np.bool_)),
}
#: How many bytes of mapped files may lie in a process's memory.
LIMIT = 1 << 30
_AROUND = 1 << 16  # what a system maps around a page that is asked for, where it does not tell
_ACCOUNT = Path("/proc/self/statm")
_CHUNK_BYTES = 1 << 22
_CHUNK_ROWS = 1024
_MANIFEST = "manifest.json"
#: After so many seconds what was written so far is brought to the disk, and noted.
SAVE_SECONDS = 10.0
AGAIN = "delete its folder, it will be made again"


def cache_bytes(rows: int, length: int, channels: int, dtype: str) -> int:
    """Return the size of one feature in the cache, its header of some dozen bytes left out."""
    return rows * length * channels * _TYPES[dtype][1].itemsize


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what a ``.npy`` file begins with; rows as of ``to_file`` follow.

    Not written through a memory map: a disk that is full would end the process with SIGBUS.
    """
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(_TYPES[dtype][1])
    form = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, form)
    return header.getvalue()


def to_file(x: Tensor, dtype: str, name: str) -> Array:
    """Return the feature ``name`` (rows, L, C_raw) on the CPU as files of ``dtype`` hold it.

    Raises UserError for a number that ``dtype`` has no room for, and for boxes, which it rounds.
    """
    if dtype.endswith("float16") and name.endswith(".regions"):
        raise UserError(
            f"--cache-dtype {dtype}: feature {name} has boxes in pixels, expected float32, which "
            "does not move them"
        )
    rounded = x.to(_TYPES[dtype][0])
    if dtype.endswith("float16") and bool((rounded.isinf() & x.isfinite()).any()):
        largest = float(x[x.isfinite()].abs().max())
        raise UserError(
            f"--cache-dtype {dtype}: feature {name} has numbers up to {largest:.6g}, expected at "
            f"most {torch.finfo(rounded.dtype).max:.6g}: give another type"
        )
    return (rounded.view(torch.uint16) if dtype == "bfloat16" else rounded).numpy()


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file's bytes."""
    checksum = 0
    with path.open("rb") as file:
        while content := file.read(_CHUNK_BYTES):
            checksum = zlib.crc32(content, checksum)
    return checksum


class Form(NamedTuple):
    """Type and shape of the array in a file."""

    dtype: str
    shape: tuple[int, ...]

    def size(self, rows: int) -> int:
        """Return the bytes of the file with its first ``rows`` rows."""
        row_bytes = math.prod(self.shape[1:]) * _TYPES[self.dtype][1].itemsize
        return len(npy_header(self.shape, self.dtype)) + rows * row_bytes


class EntryWriter:
    """The files of an entry while they grow in ``folder``; after a kill they grow on.

    ``identity`` tells the entry from others, ``forms`` are those of its files by name. ``rows`` of
    them are written, which took ``seconds``.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, object], forms: Mapping[str, Form]
    ) -> None:
        self._folder, self._forms = folder, forms
        self._identity = {**identity, "shapes": {n: list(form.shape) for n, form in forms.items()}}
        self._files: dict[str, BinaryIO] = {}
        self.rows, self.seconds = self._earlier()
        self._started = self._saved = time.perf_counter()

    def _earlier(self) -> tuple[int, float]:
        """Return what an earlier process noted of the same entry, whose files have it."""
        with contextlib.suppress(UserError):
            found = read_json(self._folder / _MANIFEST)
            types = {"rows": int, "seconds": float}
            if (
                isinstance(found, dict)
                and self._identity.items() <= found.items()
                and all(isinstance(found.get(name), type_) for name, type_ in types.items())
                and all(self._holds(name, found["rows"]) for name in self._forms)
            ):
                return found["rows"], found["seconds"]
        return 0, 0.0

    def _holds(self, name: str, rows: int) -> bool:
        path, form = self._folder / f"{name}.npy", self._forms[name]
        return (
            0 <= rows <= form.shape[0] and path.is_file() and path.stat().st_size >= form.size(rows)
        )

    @contextlib.contextmanager
    def opened(self) -> Iterator[EntryWriter]:
        """Open the files where they end; nothing is left of those that were never noted."""
        try:
            with contextlib.ExitStack() as opened:
                for name, form in self._forms.items():
                    path = self._folder / f"{name}.npy"
                    file = opened.enter_context(path.open("r+b" if self.rows else "wb"))
                    if not self.rows:
                        file.write(npy_header(form.shape, form.dtype))
                    file.truncate(form.size(self.rows))
                    file.seek(form.size(self.rows))
                    self._files[name] = file
                yield self
        except BaseException:
            if not (self._folder / _MANIFEST).exists():
                for name in self._forms:
                    (self._folder / f"{name}.npy").unlink(missing_ok=True)
            raise

    def write(self, arrays: Sequence[Mapping[str, Array]], rows: int) -> None:
        """Write ``arrays``, by their files, one after the other: ``rows`` rows of each file."""
        for found in arrays:
            for name, array in found.items():
                self._files[name].write(array.tobytes())
        self.rows += rows
        if time.perf_counter() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self, **more: object) -> None:
        """Bring what was written to the disk, then note it, and ``more``, in the manifest."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self._saved = time.perf_counter()
        seconds = self.seconds + self._saved - self._started
        manifest = {**self._identity, **more, "rows": self.rows, "seconds": seconds}
        write_json(self._folder / _MANIFEST, manifest)


@contextlib.contextmanager
def written(
    folder: Path, identity: Mapping[str, object], forms: Mapping[str, Form]
) -> Iterator[EntryWriter]:
    """Yield what writes the entry ``folder``, which has its name when the block ends well.

    Raises ValueError when that has not written all rows.
    """
    with (
        growing_folder(folder) as aside,
        EntryWriter(aside, identity, forms).opened() as writer,
    ):
        yield writer
        (expected,) = {form.shape[0] for form in forms.values()}
        if writer.rows != expected:
            raise ValueError(f"{folder}: received {writer.rows} rows, expected {expected}")
        writer.save()
        writer.save(crc32={name: checksum_of(aside / f"{name}.npy") for name in forms})


class MappedFile(NamedTuple):
    """A ``.npy`` file of the feature cache, and what it must hold."""

    path: Path
    shape: tuple[int, ...]
    dtype: str = "float32"

    def map(self) -> tuple[Tensor, mmap.mmap]:
        """Return the array, and what it is mapped by; raises UserError where it is another."""
        expected = _TYPES[self.dtype][1]
        # Copy on write: torch refuses read-only memory, and nothing here ever writes.
        array = np.load(self.path, mmap_mode="c", allow_pickle=False)
        if array.shape != self.shape or array.dtype != expected:
            raise UserError(
                f"{self.path}: received {array.dtype} {array.shape}, expected {expected} "
                f"{self.shape}: damaged feature cache; {AGAIN}"
            )
        mapped = array.base
        assert isinstance(mapped, mmap.mmap)
        return torch.from_numpy(array).view(_TYPES[self.dtype][0]), mapped


class MappedArrays(dict[str, Tensor]):
    """The arrays of ``files`` by name; at most ``limit`` bytes and one batch of them in memory.

    Whoever reads rows says so with ``read``. Pages that were handed back come again from the
    system's own cache or from the disk. Files that are smaller than ``limit`` altogether stay. In
    another process, which gets them by pickle, the files are mapped anew.
    """

    def __init__(self, files: Mapping[str, MappedFile], limit: int = LIMIT) -> None:
        mapped = {name: file.map() for name, file in files.items()}
        super().__init__({name: array for name, (array, _) in mapped.items()})
        self._files, self._limit = files, limit
        self._maps = [mapping for _, mapping in mapped.values()]
        self._whole = sum(map(len, self._maps))
        self._read = 0
        self._before = _resident_file_bytes()

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArrays, (self._files, self._limit)

    def read(self, rows: int, row_bytes: int) -> None:
        """Take note of ``rows`` rows, of ``row_bytes`` in one file, that were read."""
        if self._whole <= self._limit:
            return
        now = _resident_file_bytes()
        if now is None or self._before is None:
            self._read += rows * (row_bytes + _AROUND)
        else:
            # A page that is asked for may bring a megabyte with it, which only the system knows.
            self._read = now - self._before
        if self._read > self._limit:
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
            self._read, self._before = 0, _resident_file_bytes()


def note_read(arrays: Mapping[str, Tensor], rows: Tensor) -> None:
    """Say that ``rows`` were read, in case ``arrays`` are mapped files."""
    if isinstance(arrays, MappedArrays) and len(rows):
        arrays.read(len(rows), rows[0].nbytes)


def moved(
    arrays: Mapping[str, Tensor], names: Iterable[str], device: torch.device
) -> dict[str, Tensor]:
    """Return the arrays ``names`` copied to ``device``, chunk by chunk."""
    found = {name: torch.empty_like(arrays[name], device=device) for name in names}
    for name, target in found.items():
        chunks = zip(target.split(_CHUNK_ROWS), arrays[name].split(_CHUNK_ROWS), strict=True)
        for copy, part in chunks:
            copy.copy_(part)
            note_read(arrays, part)
    return found


def _resident_file_bytes() -> int | None:
    """Return how many bytes of mapped files lie in this process's memory, None if unknown."""
    try:
        return int(_ACCOUNT.read_text(encoding="ascii").split()[2]) * mmap.PAGESIZE
    except (OSError, ValueError, IndexError):
        return None
