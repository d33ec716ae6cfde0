"""What an operator can set, in one place; ``bmnas serve`` has an option for each."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bmnas_serve.batcher import QueueLimits
from bmnas_serve.bodies import MAX_BODY_BYTES
from bmnas_serve.connection import ConnectionLimits
from bmnas_serve.errors import ServeError
from bmnas_serve.runner import CPU

MAX_BATCH = 1024
STOP_SECONDS = 20.0

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Settings:
    """How models are served.

    ``target`` and ``providers`` are as in ``Session.open``; ``threads`` None measures how many are
    fastest. ``port`` 0 takes any free one, and so does ``grpc_port``, where None serves no gRPC. A
    request may have ``max_batch`` rows and ``max_body_bytes``. A stop takes ``stop_seconds`` at
    most. ``allowed_hosts`` are the names that the server may be asked under: none stands for those
    of a loopback address, ``*`` for all. ``token`` is what clients have to show; ``certificate``
    and ``key`` are files in PEM, which make it HTTPS. Clients may load and unload models if
    ``model_control``, None for where the server listens to its own machine alone; so it is with
    ``samples``: whether they may see the test samples that lie in bundles. ``log_format`` is text
    or json; ``log_requests`` writes a line for every request; ``traces`` sends a span of each, see
    ``traces.traced``.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    target: str | None = None
    threads: int | None = None
    providers: Sequence[str] = (CPU,)
    max_batch: int = MAX_BATCH
    max_body_bytes: int = MAX_BODY_BYTES
    queue: QueueLimits = field(default_factory=QueueLimits)
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    stop_seconds: float = STOP_SECONDS
    allowed_hosts: Sequence[str] = ()
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    log_format: str = "text"
    log_requests: bool = False
    traces: bool = False
    model_control: bool | None = None
    samples: bool | None = None

    @property
    def hosts(self) -> frozenset[str] | None:
        """The names that the server may be asked under, None where that does not matter."""
        if "*" in self.allowed_hosts:
            return None
        if self.allowed_hosts:
            return frozenset((*self.allowed_hosts, self.host))
        return frozenset(_LOOPBACK) if self.host in _LOOPBACK else None

    @property
    def controllable(self) -> bool:
        """Whether clients may load and unload models."""
        return self._local if self.model_control is None else self.model_control

    @property
    def shows_samples(self) -> bool:
        """Whether clients may see the test samples that lie in bundles."""
        return self._local if self.samples is None else self.samples

    @property
    def _local(self) -> bool:
        return self.host in _LOOPBACK

    def check_tls(self) -> None:
        """Raise ServeError where certificate and key cannot be used."""
        if (self.certificate is None) != (self.key is None):
            given, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ServeError(f"received a TLS {given} without its {missing}: expected both")
        if self.certificate is None:
            return
        try:
            # A key that is encrypted would make it ask for a password.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                self.certificate, self.key, password=lambda: ""
            )
        except (OSError, ssl.SSLError) as error:
            raise ServeError(
                f"{self.certificate}, {self.key}: cannot be used for TLS: {error}; expected a"
                " certificate and its unencrypted key, both in PEM"
            ) from error
