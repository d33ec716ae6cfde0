"""Recorded calls of many networks, merged: k calls of one kind are one call on stacked tensors.

Legend: k calls of a group, B batch, C channels, R rows, L length.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bmnas.training.recording import (
    ELEMENTWISE,
    SLOT,
    Call,
    Value,
    Weight,
    dropout_mask,
    name_of,
    walked,
)

_RESHAPING = frozenset(["flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view"])

#: Where a tensor lies: the number of a group and of its output, or the name of what is given.
Source = tuple[int, int] | str
#: How a group's inputs become its outputs.
Way = Callable[[Sequence[Tensor]], Any]
#: Says in which row of which stack each of some weights is.
Place = Callable[[Sequence[Weight]], Sequence[tuple[str, int]]]


@dataclass(frozen=True)
class Rows:
    """The rows that make one stacked tensor: each of a source, or all of a shared one (None).

    ``together`` says that they are neighbours in one source.
    """

    places: Sequence[tuple[Source, int | None]]
    together: bool


class Program:
    """Groups of calls in an order in which they can be made, and where their inputs lie.

    ``wanted`` are lists of results, each of which is returned as one stacked tensor.
    """

    def __init__(self, wanted: Sequence[Sequence[Value]], place: Place) -> None:
        self._place = place
        self._found: dict[Value, tuple[Source, int | None]] = {}
        self._groups: list[tuple[Call, Way, list[Rows]]] = []
        for number, calls in enumerate(schedule([value for each in wanted for value in each])):
            # In the order of what they read, so that it need not be put in order.
            calls.sort(key=lambda call: [self._order(value) for value in call.inputs])
            columns = zip(*(call.inputs for call in calls), strict=True)
            inputs = [self._rows(c[:1] if c[0].call.shared else c) for c in columns]
            if calls[0].func is F.batch_norm and calls[0].arguments[1]["training"]:
                # What is updated must be the statistics themselves.
                assert all(rows.together for rows in inputs[1:3])
            self._groups.append((calls[0], way(calls[0], len(calls)), inputs))
            for row, call in enumerate(calls):
                for value in call.outputs:
                    self._found[value] = (number, value.index), None if call.shared else row
        self._wanted = [self._rows(values) for values in wanted]
        last: dict[Source, int] = {}
        every = [*(inputs for _, _, inputs in self._groups), self._wanted]
        for number, inputs in enumerate(every):
            last.update({source: number for rows in inputs for source, _ in rows.places})
        self._last = [[s for s, n in last.items() if n == number] for number in range(len(every))]

    def __call__(
        self, given: Mapping[str, Tensor], seed: int, device: torch.device
    ) -> list[Tensor]:
        """Return the results from weights and features, with dropout masks drawn from ``seed``."""
        found: dict[Source, Any] = dict(given.items())
        pieces: dict[Source, Sequence[Tensor]] = {}
        for number, (first, compute, inputs) in enumerate(self._groups):
            tensors = [self._gather(rows, found, pieces) for rows in inputs]
            if first.func is dropout_mask:
                results: Any = _call(first, (), partial(_draw, seed, device))
            else:
                results = compute(tensors)
            results = results if isinstance(results, tuple | list) else (results,)
            found.update({(number, index): x for index, x in enumerate(results)})
            for source in self._last[number]:  # memory that nobody needs any more
                del found[source]
                pieces.pop(source, None)
        return [self._gather(rows, found, pieces, stack=True) for rows in self._wanted]

    def _gather(
        self,
        rows: Rows,
        found: Mapping[Source, Tensor],
        pieces: dict[Source, Sequence[Tensor]],
        *,
        stack: bool = False,
    ) -> Tensor:
        source, first = rows.places[0]
        x, count = found[source], len(rows.places)
        if first is None and not stack:
            return x
        if rows.together and first is not None:
            if count == len(x):
                return x
            if not x.requires_grad:  # the gradient of a slice is as large as all of it
                return x[first : first + count]
        parts = []
        for source, row in rows.places:
            if row is not None and source not in pieces:
                pieces[source] = found[source].unbind()
            parts.append(found[source] if row is None else pieces[source][row])
        return torch.stack(parts)

    def _rows(self, values: Sequence[Value]) -> Rows:
        """Return where ``values`` lie."""
        weights = [v.call.given for v in values if isinstance(v.call.given, Weight)]
        of_weights = iter(self._place(weights) if weights else ())
        places: list[tuple[Source, int | None]] = []
        for value in values:
            given = value.call.given
            if given is None:
                places.append(self._found[value])
            else:
                places.append((given, None) if isinstance(given, str) else next(of_weights))
        source, first = places[0]
        together = first is not None and places == [(source, first + n) for n in range(len(places))]
        return Rows(places, together)

    def _order(self, value: Value) -> tuple[int, int, int]:
        source, row = self._found.get(value, ("", None))
        return (-1, 0, 0) if isinstance(source, str) else (*source, row or 0)


def schedule(results: Sequence[Value]) -> list[list[Call]]:
    """Return the calls that ``results`` need, in groups that can be made one after the other.

    Of the kinds that have a call whose inputs are there, the one whose calls have the fewest before
    them on average is next (Neubig et al., NeurIPS 2017).
    """
    needed: dict[Call, None] = {}
    left = [value.call for value in reversed(results)]
    while left:
        call = left.pop()
        if call not in needed and call.given is None:
            needed[call] = None
            left += [value.call for value in reversed(call.inputs)]
    depths: dict[Any, list[int]] = defaultdict(list)
    readers: dict[Call, list[Call]] = defaultdict(list)
    ready: dict[Any, list[Call]] = defaultdict(list)
    waits: dict[Call, int] = {}
    for call in needed:
        depths[call.kind].append(call.depth)
        before = {value.call: None for value in call.inputs if value.call.given is None}
        waits[call] = len(before)
        for each in before:
            readers[each].append(call)
        if not before:
            ready[call.kind].append(call)
    rank = {kind: (sum(d) / len(d), n) for n, (kind, d) in enumerate(depths.items())}
    groups = []
    while ready:
        groups.append(ready.pop(min(ready, key=rank.__getitem__)))
        for call in groups[-1]:
            for reader in readers[call]:
                waits[reader] -= 1
                if waits[reader] == 0:
                    ready[reader.kind].append(reader)
    return groups


def way(call: Call, count: int) -> Way:
    """Return how ``count`` calls of the kind of ``call`` are made at once.

    Its inputs are stacked along a first axis, but for those that are shared.
    """
    many = [not value.call.shared for value in call.inputs]
    rule, inputs = _RULES.get(call.func, (None, ()))
    if call.shared:
        return lambda tensors: _call(call, tensors)
    if rule is not None and len(many) in inputs and all(many[1:]):
        return lambda tensors: _call(call, tensors, partial(rule, many[0]))
    if name_of(call.func) in _RESHAPING and many == [True]:
        shape = count, *call.outputs[0].shape
        return lambda tensors: tensors[0].reshape(shape)
    if name_of(call.func) in ELEMENTWISE:
        rank = len(call.outputs[0].shape)
        index = [
            (slice(None), *[None] * (rank - len(value.shape))) if m else ()
            for m, value in zip(many, call.inputs, strict=True)
        ]
        return lambda tensors: _call(call, [x[i] for x, i in zip(tensors, index, strict=True)])
    return _Mapped(call, count, many)


class _Mapped:
    """``torch.vmap`` of a call, or k calls one by one where that is not possible."""

    def __init__(self, call: Call, count: int, many: Sequence[bool]) -> None:
        axes = tuple(0 if m else None for m in many)
        self._call, self._count, self._many = partial(_call, call), count, many
        self._vmap: Way | None = None
        if any(many):
            mapped = torch.vmap(lambda *own: _call(call, own), axes, randomness="different")
            self._vmap = lambda tensors: mapped(*tensors)

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if self._vmap is None:
            return self._one_by_one(tensors)
        try:
            # What torch does one by one itself it warns of.
            with warnings.catch_warnings(action="error"):
                return self._vmap(tensors)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, Warning):
            self._vmap = None
            return self._one_by_one(tensors)

    def _one_by_one(self, tensors: Sequence[Tensor]) -> Sequence[Any]:
        pairs = zip(self._many, tensors, strict=True)
        rows = [x.unbind() if m else [x] * self._count for m, x in pairs]
        found = [self._call([row[n] for row in rows]) for n in range(self._count)]
        each = found if isinstance(found[0], tuple | list) else [(own,) for own in found]
        columns = zip(*each, strict=True)
        return [torch.stack(c) if isinstance(c[0], Tensor) else None for c in columns]


def _call(call: Call, inputs: Sequence[Any], func: Callable[..., Any] | None = None) -> Any:
    left = iter(inputs)
    args, kwargs = walked(call.arguments, lambda x: next(left) if x is SLOT else x)
    return (func or call.func)(*args, **kwargs)  # type: ignore[misc]


def _draw(
    seed: int, device: torch.device, shape: Sequence[int], dtype: torch.dtype, keep: float, n: int
) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed + n)
    mask = torch.empty(shape, dtype=dtype, device=device).bernoulli_(keep, generator=generator)
    return mask.div_(keep) if keep else mask


def _linear(many: bool, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not many:  # one product for all
        y = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return cast(Tensor, y.unflatten(-1, weight.shape[:2])).movedim(-2, 0)
    rows, factor = x.flatten(1, -2), weight.mT
    y = torch.bmm(rows, factor) if bias is None else torch.baddbmm(bias[:, None], rows, factor)
    return y.view(*x.shape[:-1], -1)


def _batch_norm(
    many: bool,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalise k times C channels as one batch."""
    x = x if many else x.expand(len(mean), *x.shape)
    m, v, w, b = (each.flatten() for each in (mean, variance, weight, bias))
    y = F.batch_norm(x.movedim(0, 1).flatten(1, 2), m, v, w, b, training, momentum, eps)
    return cast(Tensor, y.unflatten(1, mean.shape)).movedim(1, 0)


#: Functions that vmap is slow at, and how many inputs they have where a rule fits.
_RULES: dict[Any, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    F.linear: (_linear, (2, 3)),
    F.batch_norm: (_batch_norm, (5,)),
}
