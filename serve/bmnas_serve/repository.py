"""The models that are served: one or several, each in one or several versions.

A model can be loaded again while it is served. Requests that hold the version before it are
answered by that one, and it is closed after the last of them.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from bmnas_serve.batcher import Batcher, QueueLimits, Run
from bmnas_serve.errors import BundleError, RequestError, shorten
from bmnas_serve.files import reading
from bmnas_serve.logs import LOG
from bmnas_serve.manifest import MANIFEST_FILE
from bmnas_serve.session import Session
from bmnas_serve.statistics import Statistics

#: A bundle holds one version of a model; this one, unless its folder is called otherwise.
MODEL_VERSION = "1"

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

#: Where each version of each model lies: folders by version, by name.
Places = Mapping[str, Mapping[str, Path]]


class Served:
    """One version of a model, open: it stays so while a block runs, whatever replaces it meanwhile.

    Used from the event loop's thread only.
    """

    def __init__(
        self,
        session: Session,
        version: str,
        limits: QueueLimits,
        statistics: Statistics,
        ran: Callable[[Run], None],
    ) -> None:
        self.session = session
        self.version = version
        self.statistics = statistics
        self.batcher = Batcher(session, limits, ran)
        self._holders = 0
        self._retired = False

    @property
    def name(self) -> str:
        """Return the name of the model."""
        return self.session.name

    async def predict(
        self,
        inputs: Mapping[str, NDArray[Any]],
        timeout: float | None = None,
        since: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        """Return every output for checked ``inputs``, by name; see ``Batcher.predict``.

        Only in a block of it: outside it may be closed. Raises RequestError (504)
        when there is no answer within ``timeout`` seconds from ``since``, a time of the event
        loop's clock, None for now.
        """
        begin = asyncio.get_running_loop().time() if since is None else since
        deadline = None if timeout is None else begin + timeout
        return await self.batcher.predict(inputs, deadline=deadline)

    def __enter__(self) -> Self:
        self._holders += 1
        return self

    def __exit__(self, *exception: object) -> None:
        self._holders -= 1
        self._close_if_unused()

    def retire(self) -> None:
        """Close this version as soon as nobody holds it."""
        self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and not self._holders:
            # In a thread: a run whose client has gone may still be under way.
            asyncio.get_running_loop().run_in_executor(None, self.batcher.close)


class Repository:
    """What is served, by name and version; ``open`` and ``of_session`` make one.

    ``load`` opens the bundles that lie in ``places()`` through ``open_session``; each version has
    a queue with ``limits``. ``watch`` is called with name, version and run, of every run. Used from
    the event loop's thread only.
    """

    def __init__(
        self,
        places: Callable[[], Places],
        open_session: Callable[[Path], Session],
        limits: QueueLimits | None = None,
    ) -> None:
        self.watch: Callable[[str, str, Run], None] = lambda name, version, run: None
        self._places = places
        self._open_session = open_session
        self._limits = limits or QueueLimits()
        self._served: dict[str, dict[str, Served]] = {}
        self._statistics: dict[tuple[str, str], Statistics] = defaultdict(Statistics)
        self._failures: dict[str, str] = {}
        self._loading = asyncio.Lock()

    @classmethod
    def open(
        cls,
        path: Path,
        open_session: Callable[[Path], Session],
        limits: QueueLimits | None = None,
    ) -> Self:
        """Return a repository with every model of ``path`` open.

        ``path`` is a bundle folder or a bare ``.onnx`` file; or a folder of bundles: a folder in
        it is a model of that name, and holds a bundle, or folders called 1, 2, … with a bundle
        each. Raises BundleError when one of them cannot be opened.
        """
        with reading(path):
            several = path.is_dir() and not (path / MANIFEST_FILE).exists()
        if several and (bundles := _bundles_of(path)):
            repository = cls(lambda: _bundles_of(path), open_session, limits)
            for name, versions in bundles.items():
                repository._put(name, repository._open(name, versions))
            return repository
        return cls._of_one(open_session(path), path, open_session, limits)

    @classmethod
    def of_session(cls, session: Session, limits: QueueLimits | None = None) -> Self:
        """Return a repository of one session that is open already."""
        return cls._of_one(session, Path(session.name), lambda path: session, limits)

    @classmethod
    def _of_one(
        cls,
        session: Session,
        path: Path,
        open_session: Callable[[Path], Session],
        limits: QueueLimits | None,
    ) -> Self:
        places = {session.name: {MODEL_VERSION: path}}
        repository = cls(lambda: places, open_session, limits)
        repository._put(session.name, {MODEL_VERSION: session})
        return repository

    def get(self, name: str, version: str | None = None) -> Served:
        """Return a version of a model, None for the newest; raises RequestError (404)."""
        if name not in self._served:
            raise _unknown("model", name, self._served)
        versions = self._served[name]
        if version is None:
            return versions[max(versions, key=int)]
        if version not in versions:
            raise _unknown("version", version, versions)
        return versions[version]

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a model that are served; raises RequestError (404)."""
        return tuple(self._served[self.get(name).name])

    def served(self, name: str | None = None, version: str | None = None) -> list[Served]:
        """Return every version that is served, in order: of all models, of one, or that one alone.

        Raises RequestError (404) for what is not served.
        """
        if name is None:
            return [one for versions in self._served.values() for one in versions.values()]
        first = self.get(name, version)
        return list(self._served[name].values()) if version is None else [first]

    async def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """Return the protocol's index: each version that is or could be served, and its state.

        ``ready`` leaves out those that are not served. Where the folder of models cannot be read,
        the log tells so, and what is served is all.
        """
        try:
            found = await asyncio.to_thread(self._places)
        except BundleError as error:
            LOG.warning(str(error))
            found = {}
        entries = []
        for name in sorted(self._served.keys() | found.keys()):
            served = self._served.get(name, {})
            for version in sorted({*served, *found.get(name, ())}, key=int):
                entry = {"name": name, "version": version}
                if version in served:
                    entries.append({**entry, "state": "READY", "reason": ""})
                elif not ready:
                    reason = self._failures.get(name, "not loaded")
                    entries.append({**entry, "state": "UNAVAILABLE", "reason": reason})
        return entries

    async def load(self, name: str) -> None:
        """Open every version of a model, and serve them in the place of what was served.

        Raises RequestError: 404 when there is no such model, 400 when a version of it cannot be
        opened; then what was served goes on. Cancelled, it goes on nonetheless.
        """
        # Its thread cannot be stopped, and the next load has to wait for it.
        await asyncio.shield(asyncio.create_task(self._load(name)))

    async def _load(self, name: str) -> None:
        async with self._loading:
            try:
                found = await asyncio.to_thread(self._places)
            except BundleError as error:
                raise self._not_loaded(name, error) from error
            if name not in found:
                raise _unknown("model", name, found)
            try:
                sessions = await asyncio.to_thread(self._open, name, found[name])
            except BundleError as error:
                self._failures[name] = str(error)
                raise self._not_loaded(name, error) from error
            self._put(name, sessions)

    def _not_loaded(self, name: str, error: BundleError) -> RequestError:
        goes_on = "; what was served goes on" if name in self._served else ""
        return RequestError(400, f"cannot load {name!r}: {error}{goes_on}")

    def unload(self, name: str) -> None:
        """Serve a model no more; requests that hold it are answered. Raises RequestError (404)."""
        self._remove(self.get(name).name)

    def close(self) -> None:
        """Close everything; the runs that wait are dropped."""
        for version in self.served():
            version.batcher.close()
        self._served.clear()

    def _open(self, name: str, versions: Mapping[str, Path]) -> dict[str, Session]:
        sessions = {version: self._open_session(path) for version, path in versions.items()}
        for session in sessions.values():
            session.name = name
        return sessions

    def _put(self, name: str, sessions: Mapping[str, Session]) -> None:
        opened = {
            version: Served(
                session,
                version,
                self._limits,
                self._statistics[name, version],
                partial(self._ran, name, version),
            )
            for version, session in sessions.items()
        }
        self._remove(name)
        self._failures.pop(name, None)
        self._served = dict(sorted({**self._served, name: opened}.items()))

    def _ran(self, name: str, version: str, run: Run) -> None:
        self._statistics[name, version].ran(run)
        self.watch(name, version, run)

    def _remove(self, name: str) -> None:
        for version in self._served.pop(name, {}).values():
            version.retire()


def check_model_control(allowed: bool) -> None:
    """Raise RequestError (403) where clients may not load and unload models."""
    if not allowed:
        raise RequestError(
            403, "clients may not load and unload models: start the server with --model-control"
        )


def _bundles_of(folder: Path) -> dict[str, dict[str, Path]]:
    """Return the bundles of a folder of models; raises BundleError where it cannot be read."""
    models = {}
    with reading(folder):
        for model in sorted(path for path in folder.iterdir() if path.is_dir()):
            if model.name.startswith("."):  # what Kubernetes and git keep beside the files
                continue
            own = (model / MANIFEST_FILE).exists()
            if versions := {MODEL_VERSION: model} if own else _versions_of(model):
                models[model.name] = versions
    return models


def _versions_of(model: Path) -> dict[str, Path]:
    found = [path for path in model.iterdir() if _VERSION.fullmatch(path.name)]
    found = [path for path in found if (path / MANIFEST_FILE).exists()]
    return {path.name: path for path in sorted(found, key=lambda path: int(path.name))}


def _unknown(role: str, received: str, known: Mapping[str, Any]) -> RequestError:
    expected = f"expected {', '.join(map(repr, known))}" if known else "but none is served"
    return RequestError(404, f"received the {role} {shorten(received)}, {expected}")
