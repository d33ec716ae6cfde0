"""The state of a loop over epochs on disk: resumed, it gives the same result as uninterrupted.

A checkpoint holds the state of the loop's parts (networks, optimisers, schedules), of the random
generators, and a record of every epoch so far. It is read with ``weights_only=True``.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from bmnas.machine.costs import CostMeter
from bmnas.machine.distributed import barrier, is_rank_zero
from bmnas.machine.errors import UserError, one_line
from bmnas.machine.files import atomic_path, write_text

FORMAT = "bmnas.checkpoint/4"
_RARE = 20  # times as long as writing takes, until the next time: a twentieth of a loop at most

Record = dict[str, Any]


class Stateful(Protocol):
    """Anything with a state: a module, an optimiser, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take on a state."""
        ...


class Checkpoint:
    """The checkpoint of one loop, and the journal of its records as JSON lines.

    ``fingerprint`` is a digest of everything that the loop depends on: settings, seed, data. A
    checkpoint of another fingerprint is refused, not continued. ``meter`` counts what the loop
    costs; it lies in the checkpoint and never in the journal, which is equal bit for bit from run
    to run.
    """

    def __init__(self, path: Path, fingerprint: str, journal: Path | None = None) -> None:
        self._path = path
        self._fingerprint = fingerprint
        self._journal = journal
        self.meter = CostMeter()
        self._earlier = self._earlier_processor = 0.0
        self._started, self._started_processor = time.perf_counter(), time.process_time()
        self._next = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the clocks: the process that receives it counts its own time."""
        return Checkpoint, (self._path, self._fingerprint, self._journal)

    @property
    def seconds(self) -> float:
        """Seconds spent in the loop, those before it was stopped included."""
        return self._earlier + time.perf_counter() - self._started

    @property
    def processor_seconds(self) -> float:
        """Processor time of the loop, summed over threads; other load hardly changes it."""
        return self._earlier_processor + time.process_time() - self._started_processor

    @property
    def due(self) -> bool:
        """Whether to save after an epoch that is not the last: not yet, where epochs are short."""
        return time.perf_counter() >= self._next

    def of_part(self, name: str) -> Checkpoint:
        """Return the checkpoint, without a journal, of a part of this loop that runs by itself."""
        path = self._path.with_name(f"{self._path.stem}.{name}{self._path.suffix}")
        return Checkpoint(path, f"{self._fingerprint} {name}")

    def add_parts(self, parts: Iterable[Checkpoint]) -> None:
        """Add the costs of ``parts``, scaled to sum to no more than this loop's seconds."""
        found = list(parts)
        scale = min(1.0, self.seconds / max(sum(part._earlier for part in found), 1e-9))
        for part in found:
            self._earlier_processor += part._earlier_processor
            cost = part.meter.to_dict()
            seconds = {name: scale * value for name, value in cost["seconds"].items()}
            self.meter.resume({**cost, "seconds": seconds})

    def restore(self, parts: Mapping[str, Stateful]) -> list[Record]:
        """Bring ``parts`` and the generators to the last saved epoch; return its records.

        Returns no records where there is no checkpoint. Raises UserError when the file is
        damaged or belongs to another loop.
        """
        # Of several ranks, all read what rank zero wrote last.
        barrier()
        if not self._path.is_file():
            return []
        content = self._read()
        if content["fingerprint"] != self._fingerprint:
            raise UserError(
                f"{self._path}: belongs to other settings, backbones or data than those given "
                "now; delete it, start anew with --overwrite, or choose another folder with --run"
            )
        try:
            for name, part in parts.items():
                part.load_state_dict(content["states"][name])
            torch.set_rng_state(content["generator"])
            self._restore_cuda(content["cuda_generator"])
            records: list[Record] = json.loads(content["records"])
            self._earlier = float(content["seconds"])
            self._earlier_processor = float(content["processor_seconds"])
            self.meter.resume(content["costs"])
        except UserError:
            raise
        except Exception as error:  # whatever other content leads to
            raise self._damaged(error) from error
        self._write_journal(records)
        return records

    def save(self, parts: Mapping[str, Stateful], records: list[Record]) -> None:
        """Write the state of ``parts`` after the epoch that the last of ``records`` describes.

        Of several ranks, which are all in one state, rank zero writes.
        """
        if not is_rank_zero():
            return
        began = time.perf_counter()
        content = {
            "format": FORMAT,
            "fingerprint": self._fingerprint,
            "records": json.dumps(records, allow_nan=False),
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "costs": self.meter.to_dict(),
            "states": {name: part.state_dict() for name, part in parts.items()},
            "generator": torch.get_rng_state(),
            # Of every GPU: the loop's need not be the current one.
            "cuda_generator": (
                torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
            ),
        }
        # Not straight to the file: torch tells of a full disk with an internal RuntimeError.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with atomic_path(self._path) as aside:
            aside.write_bytes(buffer.getbuffer())
        self._write_journal(records)
        now = time.perf_counter()
        self._next = now + _RARE * (now - began)

    def remove(self) -> None:
        """Delete the checkpoint's file: the loop's result is safe elsewhere."""
        if is_rank_zero():
            self._path.unlink(missing_ok=True)

    def _restore_cuda(self, states: list[torch.Tensor] | None) -> None:
        if states is None or not torch.cuda.is_available():
            return
        if len(states) != torch.cuda.device_count():
            raise UserError(
                f"{self._path}: received the generators of {len(states)} GPUs, expected "
                f"{torch.cuda.device_count()}; resume with as many as before "
                "(CUDA_VISIBLE_DEVICES), or start anew with --overwrite"
            )
        torch.cuda.set_rng_state_all(states)

    def _read(self) -> dict[str, Any]:
        try:
            # torch does not look at the checksums that it writes.
            with zipfile.ZipFile(self._path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            content = torch.load(self._path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        except Exception as error:  # whatever zipfile and torch make of a damaged file
            raise self._damaged(error) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise self._damaged(f"expected format {FORMAT!r}")
        return content

    def _damaged(self, reason: object) -> UserError:
        text = one_line(reason, 120)
        return UserError(f"{self._path}: damaged checkpoint ({text}); start anew with --overwrite")

    def _write_journal(self, records: list[Record]) -> None:
        if self._journal is not None and is_rank_zero():
            lines = [json.dumps(record, allow_nan=False) + "\n" for record in records]
            write_text(self._journal, "".join(lines))
