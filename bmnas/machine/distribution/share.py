"""This process's share of the batch that is being trained on.

The share is set while a loop is at a batch, so that norms and dropout, deep inside, know which
rows of the whole batch they see. Outside training, and with one process, there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bmnas.machine.distribution import ranks
from bmnas.machine.errors import UserError

_current: Share | None = None


@dataclass(frozen=True)
class Share:
    """Samples ``start`` to ``stop`` of a batch of ``total``, cut at ``bounds``."""

    start: int
    stop: int
    bounds: tuple[int, ...]

    @property
    def total(self) -> int:
        """The samples of the whole batch."""
        return self.bounds[-1]

    @property
    def counts(self) -> list[int]:
        """The samples of every rank."""
        return [stop - start for start, stop in zip(self.bounds, self.bounds[1:], strict=False)]

    def whole(self, x: Tensor) -> tuple[tuple[int, ...], slice] | None:
        """Return the shape of ``x`` for the whole batch, and the rows of it that ``x`` is.

        The first axis of ``x`` is that of samples, each perhaps of several rows; None where it
        cannot be.
        """
        each, rest = divmod(x.shape[0], self.stop - self.start)
        if rest or not each:
            return None
        shape = (self.total * each, *x.shape[1:])
        return shape, slice(self.start * each, self.stop * each)


def current() -> Share | None:
    """Return this process's share of the batch at hand; None where it has all of it."""
    return _current


def shares(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield this process's samples of each of ``batches``, equally large ones.

    The writer's batches count. Raises UserError where a batch has fewer samples than there are
    processes.
    """
    if ranks.size() == 1:
        yield from batches
        return
    global _current
    # At once: one message an epoch.
    chosen = ranks.from_writer(torch.stack(list(batches)))
    total, count, own = chosen.shape[1], ranks.size(), ranks.rank()
    if total < count:
        raise UserError(
            f"received batches of {total} samples for {count} processes, expected one sample or "
            "more for each: raise --batch-size, or lower --nproc-per-node"
        )
    bounds = tuple(total * number // count for number in range(count + 1))
    try:
        _current = Share(bounds[own], bounds[own + 1], bounds)
        for batch in chosen:
            yield batch[bounds[own] : bounds[own + 1]]
    finally:
        _current = None


def weighted(loss: Tensor) -> Tensor:
    """Return the mean ``loss`` of a share such that the mean over ranks is that of the batch."""
    share = current()
    if share is None:
        return loss
    return loss * (ranks.size() * (share.stop - share.start) / share.total)


def drawn(draw: Callable[[tuple[int, ...]], Tensor], *shape: int) -> Tensor:
    """Return random numbers of ``shape``, whose first axis is that of samples: the share's rows.

    ``draw`` makes them for a shape, those of the whole batch where there is a share.
    """
    share = current()
    if share is None:
        return draw(shape)
    return draw((share.total, *shape[1:]))[share.start : share.stop]
