"""Folder locks: one run at a time writes to a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bmnas.machine.distributed import barrier, on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.files import remove_leftovers


@contextlib.contextmanager
def lock_folders(*folders: Path) -> Iterator[None]:
    """Lock ``folders``, made if need be, for this run; what killed writers left is removed.

    The first is that of the run, given with --run; others are given with --backbones. A folder that
    is named twice is locked once. Of several ranks, which must see the same folders, rank zero
    holds the locks until all are done. Raises UserError when another process holds one, or when one
    cannot be written.
    """
    with contextlib.ExitStack() as locks:

        def lock() -> None:
            locked = set()
            for number, folder in enumerate(folders):
                if os.path.realpath(folder) not in locked:
                    locked.add(os.path.realpath(folder))
                    locks.enter_context(_lock(folder, "--backbones" if number else "--run"))
                    remove_leftovers(folder)

        on_rank_zero(lock)
        yield
        barrier()


@contextlib.contextmanager
def _lock(folder: Path, option: str) -> Iterator[None]:
    if folder.is_file():
        raise UserError(f"{folder}: {option} names a file, expected a folder; choose another one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; choose another folder with {option}"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another bmnas process is at work there; wait for it, or choose "
                "another folder"
            ) from error
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be locked: {error.strerror}; choose a folder on another file "
                f"system with {option}"
            ) from error
        yield
