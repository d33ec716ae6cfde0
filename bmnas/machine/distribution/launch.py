"""Joining the processes that torchrun started, and ending them all when one fails."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from bmnas.machine.errors import UserError

#: What torchrun tells a process; WORLD_SIZE alone is also set by schedulers.
_TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FAILED = "failed"
_ASKED = "asked"
_PATIENCE = 5.0  # seconds


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Run a command on all processes that torchrun started; elsewhere do nothing.

    The first process to fail raises its error, which says what went wrong once. The others leave
    with its exit status: 2 for a UserError, 1 for anything else. A process that was killed is
    told by the others as a ConnectionError.
    """
    if any(name not in os.environ for name in _TOLD) or int(os.environ["WORLD_SIZE"]) < 2:
        yield
        return
    from bmnas.machine.distribution.ranks import abandon, join, leave

    store = join()
    try:
        yield
    except BaseException as error:
        status = _first_failure(store, error)
        # Parted from, the others notice, and ask the store in their turn.
        abandon()
        _let_others_ask(store)
        if status is not None:
            raise SystemExit(status) from None
        if _is_lost(error):
            raise ConnectionError(
                "another process of this run was lost; go on with --resume"
            ) from error
        raise
    leave()


def _first_failure(store: Any, error: BaseException) -> int | None:
    """Return the exit status of the process that failed before this one, None if none did."""
    rank = os.environ["RANK"]
    mine = f"{rank} {_status(error)}"
    try:
        told = store.compare_set(_FAILED, "", mine).decode()
    except RuntimeError:
        # Where no agent keeps the store, the first process does: it failed, and told. Why, nobody
        # can say any more; a mistake of the user's is mostly everybody's.
        return 1 if _is_lost(error) else _status(error)
    failed, status = told.split()
    return None if failed == rank else int(status)


def _let_others_ask(store: Any) -> None:
    """Keep the store for a moment: where no agent does, it ends with the first process."""
    with contextlib.suppress(RuntimeError):
        asked = store.add(_ASKED, 1)
        end = time.monotonic() + _PATIENCE
        while os.environ["RANK"] == "0" and asked < int(os.environ["WORLD_SIZE"]):
            if time.monotonic() > end:
                break  # one was killed, and asks nothing
            time.sleep(0.01)
            asked = store.add(_ASKED, 0)


def _status(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 2 if isinstance(error, UserError | ModuleNotFoundError) or _is_usage(error) else 1


def _is_usage(error: BaseException) -> bool:
    return hasattr(error, "format_message")  # a wrong option, in typer's and click's terms


def _is_lost(error: BaseException) -> bool:
    """Tell whether ``error`` is what a collective raises when its peer has gone."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("gloo", "nccl", "connection closed by peer", "connection reset")
    )
