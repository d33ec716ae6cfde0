"""Batches on their way to an accelerator, which nobody waits for inside an epoch.

Features lie on the device as a whole where they find room there. Otherwise each batch is gathered
into page-locked memory and copied beside the computation: a loop only queues its steps, so the
next batch is gathered while the device is still at the last one. Two steps are under way at most,
so two batches are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from bmnas.features.mapped import Pages

#: Of the device's free memory, what features may take; networks, gradients and batches need some.
_FRACTION = 0.6
_ROWS = 1024


class Mark(Protocol):
    """A place in a device's queue of work."""

    def synchronize(self) -> None:
        """Wait until the device has come here."""
        ...


class Lane:
    """A way to a CUDA device, on which copies run beside the computation: a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def empty(self, size: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return page-locked memory, which ``send`` copies from at full speed."""
        # From torch's cache of such memory, which gives none away again before it was copied.
        return torch.empty(tuple(size), dtype=dtype, pin_memory=True)

    def send(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of CPU tensors on the device, to be used by work that is queued later."""
        locked = [x if x.is_pinned() else x.pin_memory() for x in tensors]
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            sent = [x.to(self._device, non_blocking=True) for x in locked]
        current.wait_stream(self._copies)
        for x in sent:
            # The memory belongs to the other stream, which must not reuse it under the step.
            x.record_stream(current)
        return sent

    def mark(self) -> Mark:
        """Return the end of the work that is queued now."""
        event: Mark = torch.cuda.current_stream(self._device).record_event()
        return event


def room(device: torch.device) -> int:
    """Return how many bytes of features may lie on ``device``: a part of what is free there.

    A CPU has them where they are, so there is none to ask for.
    """
    if device.type == "cpu":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_FRACTION * (free + unused))


def moved(
    arrays: Mapping[str, Tensor], device: torch.device, pages: Pages | None
) -> dict[str, Tensor]:
    """Return ``arrays`` copied to ``device``, chunk by chunk; ``pages`` is told what was read."""
    found = {}
    for name, array in arrays.items():
        found[name] = torch.empty(array.shape, dtype=array.dtype, device=device)
        for start in range(0, len(array), _ROWS):
            part = array[start : start + _ROWS]
            found[name][start : start + _ROWS].copy_(part)
            if pages is not None:
                pages.read(len(part), part[0].nbytes)
    return found
