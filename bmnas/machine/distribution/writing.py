"""Files of several processes: the first writes them, the others wait for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bmnas.machine.distribution.ranks import agreed_text, first, wait, writer
from bmnas.machine.files import atomic_folder
from bmnas.machine.progress import Progress, Silent
from bmnas.pipeline.run_folder import locked


@contextlib.contextmanager
def lock_folders(*folders: Path) -> Iterator[None]:
    """Hold ``folders`` as ``runs.locked`` does, once for all ranks, until all are done.

    Every rank must see the same folders. Raises what ``runs.locked`` raises, at the writer.
    """
    with contextlib.ExitStack() as stack:
        first(lambda: stack.enter_context(locked(*folders)))
        yield
        wait()


@contextlib.contextmanager
def shared_folder(path: Path) -> Iterator[Path]:
    """Yield one ``atomic_folder`` to all ranks; it takes the name when every block ended well."""
    with contextlib.ExitStack() as stack:
        aside = str(stack.enter_context(atomic_folder(path))) if writer() else ""
        yield Path(agreed_text(aside))
        wait()
    wait()


def shown_by_writer(progress: Progress | None) -> Progress:
    """Return ``progress`` to the writer, and to the others one that shows nothing."""
    return progress if progress is not None and writer() else Silent()
