"""Files that appear whole or not at all: written aside, flushed to disk, renamed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bmnas.machine.errors import UserError, one_line

#: How this module names what it has not finished: ``.<name>.<eight random characters>.part``.
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(?P<kind>part|old)", re.DOTALL)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it takes the name when the block ends well.

    After an exception, and after a kill, ``path`` still holds what it held before. An OSError
    of the block that names no file gets the name of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        _flush(aside)
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        _name(error, path)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; it replaces ``path`` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = aside.with_suffix(".old")
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _flush(file)
        os.chmod(aside, 0o777 & ~_umask())
        # rename(2) cannot replace a folder that has content: the old one moves out first.
        if path.exists():
            os.replace(path, old)
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException as error:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(aside, ignore_errors=True)
        _name(error, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def growing_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path`` that takes this name when the block ends well.

    After an exception, and after a kill, it is there again with what it held; an empty one goes.
    The block brings files to the disk itself. ``path`` must not exist.
    """
    aside = unfinished(path)
    aside.mkdir(parents=True, exist_ok=True)
    try:
        yield aside
        os.replace(aside, path)
        _flush(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.rmdir()
        _name(error, path)
        raise


def unfinished(path: Path) -> Path:
    """Return where ``growing_folder`` keeps what is to become ``path``."""
    return path.with_name(f".{path.name}.part")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left in ``folder``, and put back what they had moved away.

    To be called when nobody else writes there. Files that this module did not name stay.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or path.is_symlink():
            continue
        replaced = folder / match["name"]
        if match["kind"] == "old" and not replaced.exists():
            path.rename(replaced)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_folder(path: Path) -> None:
    """Remove a folder, whole or not at all: after a kill nothing half empty has its name."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    os.replace(path, aside)
    shutil.rmtree(aside)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON to ``path``; NaN and infinities raise ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, limit: int = 64_000_000) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Raises UserError, naming the file, when it is missing, too large, not UTF-8 or not JSON.
    """

    def parse(text: str) -> Any:
        return json.loads(text, parse_constant=_reject_constant)

    return _parsed(path, parse, "JSON", limit)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; raises UserError, naming it, when it is missing, not UTF-8 or not TOML."""
    content: dict[str, Any] = _parsed(path, tomllib.loads, "TOML")
    return content


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of plain data; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _parsed(path: Path, parse: Callable[[str], Any], kind: str, limit: int = 1 << 40) -> Any:
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path}: received {size:,} bytes, expected at most {limit:,}")
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a {kind} file: {one_line(error)}") from error


def _reject_constant(name: str) -> Any:
    raise ValueError(f"received {name}, expected a finite number")


def _name(error: BaseException, path: Path) -> None:
    # A full disk is told by write(2), which knows no name.
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def _umask() -> int:
    # The mask can be read only by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
